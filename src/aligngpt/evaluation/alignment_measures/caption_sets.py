"""Benchmarks of right and wrong captions, read from the files of their releases: SugarCrepe, Winoground, What'sUp."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aligngpt.data.images.reference import Picture
from aligngpt.evaluation.benchmarks.folder import DataError, DataFolder, Row

SUGARCREPE = "SugarCrepe's repository (the files of its `data`), with COCO val2017 in `val2017`"
WINOGROUND = "facebook/winoground (`examples.jsonl`, and `images.zip` unpacked to `images`)"
WHATSUP = "What'sUp's release (`controlled_images_dataset.json`, `controlled_clevr_dataset.json` and their folders)"
SUGARCREPE_KINDS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
WHATSUP_KINDS = ("controlled_images", "controlled_clevr")


@dataclass(frozen=True)
class CaptionSet:
    """Pictures and captions of which each picture has one right caption.

    Attributes:
        id: as in the file.
        kind: the benchmark's own division.
        pictures: one or several.
        captions: the right caption of picture i is caption i.
    """

    id: str
    kind: str
    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]


def sugarcrepe(root: Path) -> list[CaptionSet]:
    """SugarCrepe (Hsieh et al., 2023): one picture, a right caption and one changed in one respect.

    Raises:
        DataError: a file is missing or damaged.
    """
    data = DataFolder(root, SUGARCREPE)
    found = []
    for kind in SUGARCREPE_KINDS:
        path = data.find(f"{kind}.json", f"data/{kind}.json")
        content = data.json(f"{kind}.json", f"data/{kind}.json")
        # The release has an object of numbered records; copies of it an array.
        records = content.items() if isinstance(content, dict) else enumerate(content)
        for number, fields in records:
            row = _row(fields, path, number)
            captions = (_text(row, "caption"), _text(row, "negative_caption"))
            found.append(
                CaptionSet(str(number), kind, (data.picture(_text(row, "filename"), "val2017", ""),), captions)
            )
    return found


def winoground(root: Path) -> list[CaptionSet]:
    """Winoground (Thrush et al., 2022): two pictures and two captions with the same words.

    Raises:
        DataError: a file is missing or damaged.
    """
    data = DataFolder(root, WINOGROUND)
    found = []
    for row in data.rows("examples.jsonl", "data/examples.jsonl"):
        names = [_text(row, f"image_{side}") for side in (0, 1)]
        pictures = tuple(
            data.picture(name if Path(name).suffix else f"{name}.png", "images", "data/images") for name in names
        )
        captions = (_text(row, "caption_0"), _text(row, "caption_1"))
        found.append(CaptionSet(str(row["id"]), str(row.get("collapsed_tag") or ""), pictures, captions))
    return found


def whatsup(root: Path) -> list[CaptionSet]:
    """What'sUp's controlled pictures (Kamath et al., 2023): four captions that differ in the preposition.

    Raises:
        DataError: a file is missing or damaged.
    """
    data = DataFolder(root, WHATSUP)
    found = []
    for kind in WHATSUP_KINDS:
        for number, row in enumerate(data.records(f"{kind}_dataset.json")):
            options = row["caption_options"]
            if not isinstance(options, list) or len(options) < 2 or not all(isinstance(one, str) for one in options):
                raise DataError(f"{row.where} has no list of captions in 'caption_options'")
            # The paths in the release begin with its own folder `data`.
            name = _text(row, "image_path").removeprefix("data/")
            found.append(CaptionSet(str(number), kind, (data.picture(name, "", "data"),), tuple(options)))
    return found


CAPTION_SETS: dict[str, Callable[[Path], list[CaptionSet]]] = {
    "sugarcrepe": sugarcrepe,
    "winoground": winoground,
    "whatsup": whatsup,
}
"""Benchmark → its reader, which takes the folder of its release."""


def _row(fields: object, path: Path, number: object) -> Row:
    if not isinstance(fields, dict):
        raise DataError(f"{path}, record {number} is not a JSON object")
    return Row(fields, f"{path}, record {number}")


def _text(row: Row, field: str) -> str:
    if not isinstance(value := row[field], str) or not value.strip():
        raise DataError(f"{row.where} has {value!r} as {field}, expected a text")
    return value
