"""Draws docs/images/rooms.svg from the table in docs/architecture.md: `python tests/rooms_picture.py`."""

import re
from collections import defaultdict
from html import escape
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = DOCS / "images" / "rooms.svg"
WIDTH, EDGE, HEIGHT, GAP = 760, 10, 58, 12
IDEA, PLAIN = "#f3ead8", "#f6f7f9"

IN_SHORT = {
    "cli": "the command aligngpt",
    "study": "do levels help: many runs, one table",
    "starting": "a first recipe",
    "quickstart": "the whole pipeline, small",
    "inspecting": "what alignment does",
    "serving": "for programs",
    "chatting": "in a terminal",
    "web": "in a browser",
    "evaluation": "accuracy, benchmarks",
    "exporting": "for other engines",
    "levels": "scores → levels",
    "checking": "problems of data",
    "inference": "answers",
    "training": "recipes, stages",
    "scoring": "similarity of pairs",
    "reports": "figures and pages",
    "data": "files → records → samples → batches",
    "model": "network, processor, backbones, checkpoints",
    "alignment": "the idea: levels, embedding, gate",
    "the files beside the rooms": "errors, atomic files, locks, progress, device",
}
"""What each room is, in a few words."""


def layers() -> list[list[str]]:
    """The rooms of each layer, the highest layer first."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    found: defaultdict[int, list[str]] = defaultdict(list)
    for room, layer in re.findall(r"^\| `(\w+)` \| (\d+) \|", text, flags=re.MULTILINE):
        found[int(layer)].append(room)
    return [found[layer] for layer in sorted(found, reverse=True)] + [["the files beside the rooms"]]


def picture() -> str:
    """The picture as SVG.

    Raises:
        KeyError: a room of the table has no entry in `IN_SHORT`.
    """
    rows = layers()
    height = 2 * EDGE + len(rows) * HEIGHT + (len(rows) - 1) * GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" role="img"><title>The rooms of aligngpt: each uses only those below it'
        '</title><rect width="100%" height="100%" fill="#ffffff"/>'
    ]
    for number, rooms in enumerate(rows):
        top = EDGE + number * (HEIGHT + GAP)
        width = (WIDTH - 2 * EDGE - GAP * (len(rooms) - 1)) // len(rooms)
        for place, room in enumerate(rooms):
            left = EDGE + place * (width + GAP)
            middle, fill = left + width // 2, IDEA if room == "alignment" else PLAIN
            lines += [
                f'<rect x="{left}" y="{top}" width="{width}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="#8a93a3"/>',
                f'<text x="{middle}" y="{top + 24}" text-anchor="middle" font-size="16" font-weight="600" '
                f'fill="#1d2430">{room}</text>',
                f'<text x="{middle}" y="{top + 44}" text-anchor="middle" font-size="12" fill="#4a5362">'
                f"{escape(IN_SHORT[room])}</text>",
            ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
