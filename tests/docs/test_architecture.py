"""The table of floors in docs/architecture.md is what the code does."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms_picture import PICTURE, picture

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "aligngpt"


def floors() -> dict[str, int]:
    """The floor of each room; files beside the rooms are on floor 1."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", text, flags=re.MULTILINE))
    return {path.stem: 1 for path in PACKAGE.glob("[!_]*.py")} | {room: int(n) for room, n in written.items()}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write the import in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "aligngpt" and rest.partition(".")[0] in floors():
                yield rest.partition(".")[0]


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file.parent != PACKAGE or room_of(file) in floors()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_from_lower_floors(file: Path) -> None:
    table, room = floors(), room_of(file)
    above = {other for other in imported_rooms(file) if other != room and table[other] >= max(table[room], 2)}
    assert not above, f"{room} is on floor {table[room]}"


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms == set(floors())


def test_the_picture_is_that_of_the_table() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run python tests/rooms_picture.py"
