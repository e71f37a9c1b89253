"""Scenes for the quickstart: fewer pictures, and caption files that say which captions are right, vague or wrong."""

import json
from pathlib import Path
from typing import Any, Literal

from aligngpt.data.sources.json import read_records
from aligngpt.files import atomic_write
from aligngpt.quickstart.scenes.files import ScenesFiles, as_json, caption_record
from aligngpt.quickstart.scenes.material import Material
from aligngpt.quickstart.scenes.preparing import Sizes, Source, prepare_scenes

NOISE = 0.3
QUICKSTART_SIZES = Sizes(captions=6_000, encoder=4_000, train=4_000, validation=150, test=1_000, shift=250)

QUALITY: dict[str, Literal["right", "vague", "wrong"]] = {
    "clean": "right",
    "language": "vague",
    "tags": "vague",
    "category": "vague",
    "exchanged-name": "wrong",
    "exchanged-position": "wrong",
    "other-scene": "wrong",
}
"""What a caption with each kind of noise is: a vague one is true of the picture, a wrong one is not."""


def prepare_scenes_for_quickstart(
    folder: Path, *, sizes: Sizes, source: Source = "npm", material: Material | None = None, noise: float = NOISE
) -> tuple[ScenesFiles, Path, Path]:
    """Prepare scenes, and their caption files with `caption_quality` (right, vague or wrong) in each record.

    Args:
        folder: output folder.
        sizes, source, material, noise: see `prepare_scenes`.

    Returns:
        The scenes; the captions to score and to pre-train on; a right and a bad caption of each test picture.

    Raises:
        AlignGPTError: the scenes cannot be prepared, see `prepare_scenes`.
    """
    files = prepare_scenes(folder, sizes=sizes, source=source, material=material, noise=noise)
    captions = [_with_quality(record) for _, record in read_records(files.captions)]
    pairs = []
    for line in files.both_test_captions.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for which, noise_kind in (("clean", "clean"), ("noisy", row["noise"])):
            name, caption = f"{row['id']}-{which}", row[f"caption_{which}"]
            record = caption_record(name, row["image"], caption, noise_kind, row["caption_clean"], row["hand"])
            pairs.append(_with_quality(record))
    return (
        files,
        _write(folder / "captions_train.json", captions),
        _write(folder / "pairs_test.json", pairs),
    )


def _with_quality(record: Any) -> dict[str, Any]:
    return {**record, "caption_quality": QUALITY[record["noise"]]}


def _write(path: Path, records: list[dict[str, Any]]) -> Path:
    text = as_json(records)
    # An unchanged file keeps its time: a resumed run sees that its input is the same.
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        with atomic_write(path) as file:
            file.write(text)
    return path
