"""The files of a prepared folder of scenes, and the captions file of a share of noise."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.quickstart.scenes.noise import ORACLE_QUALITY, NoiseError

TEST_SPLITS = ("test", "test_hand", "test_combination", "test_subgroup")


class ScenesError(AlignGPTError):
    """Scenes cannot be prepared with these arguments, or in this folder."""


@dataclass(frozen=True)
class ScenesFiles:
    """Paths of prepared scenes; image paths in the files are relative to `folder`.

    Attributes:
        folder: contains everything, with `ABOUT.md` and a `manifest.json` of counts, priors, seed and licences.
        noise: share of bad captions in `captions`, 0 to 1.
    """

    folder: Path
    noise: float

    @property
    def captions(self) -> Path:
        """A caption for each picture to score and pre-train on, with its `noise` and `oracle_quality`."""
        return captions_path(self.folder, self.noise)

    @property
    def encoder_captions(self) -> Path:
        """Captions of other pictures, to train the dual encoder on that scores `captions`."""
        return self.folder / "captions_encoder.json"

    @property
    def train_questions(self) -> Path:
        return self.questions("train")

    @property
    def validation_questions(self) -> Path:
        return self.questions("validation")

    @property
    def test_questions(self) -> Path:
        return self.questions("test")

    @property
    def test_captions(self) -> Path:
        """The exact caption of each picture of the test split, for likelihoods and for the encoder's quality."""
        return self.folder / "captions_test.json"

    def questions(self, split: str) -> Path:
        """Questions of a split: `train`, `validation`, or one of `test_splits`."""
        return self.folder / f"questions_{split}.json"

    @property
    def test_splits(self) -> tuple[str, ...]:
        """The test splits there are: `test`, and the shifts; `test_hand` only if the material has three hands."""
        return tuple(split for split in TEST_SPLITS if self.questions(split).is_file())

    @property
    def both_captions(self) -> Path:
        """For each picture of `captions` its exact and its bad caption, from which the file of any share is made."""
        return self.folder / "captions_both.jsonl"

    @property
    def both_test_captions(self) -> Path:
        """As `both_captions`, for the pictures of the test split."""
        return self.folder / "captions_both_test.jsonl"


def captions_path(folder: Path, noise: float) -> Path:
    """Path of the captions file of a share of noise, such as `captions_noise-30.json`."""
    return folder / f"captions_noise-{check_share('noise', noise) * 100:g}.json"


def check_share(name: str, share: float) -> float:
    """The share itself.

    Raises:
        NoiseError: it is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise NoiseError(f"{name} is {share}, expected a share from 0 to 1 (0.3 for 30 %)")
    return share


def write_noise(folder: Path, noise: float) -> ScenesFiles:
    """Write the captions file of another share of noise for prepared scenes; no picture is drawn.

    Pairs that are bad at a smaller share are bad at a larger one too, with the same caption.

    Args:
        folder: a folder made by `prepare_scenes`.
        noise: share of bad captions, 0 to 1; exact up to rounding.

    Returns:
        The files with that share: its `captions` is `captions_noise-30.json` in `folder` for a share of 0.3.

    Raises:
        NoiseError: the share is invalid.
        ScenesError: `folder` contains no prepared scenes, or cannot be written.
    """
    files = ScenesFiles(folder, noise)
    path = files.captions
    try:
        lines = files.both_captions.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        records = [_captions_record(row, len(rows), noise) for row in rows]
    except (OSError, ValueError, KeyError) as error:
        raise ScenesError(
            f"{files.both_captions} cannot be read ({error}); prepare the scenes in {folder} first"
        ) from error
    text = as_json(records)
    try:
        # An unchanged file keeps its time: jobs that were interrupted see that their input is the same.
        if not (path.is_file() and path.read_text(encoding="utf-8") == text):
            with atomic_write(path) as file:
                file.write(text)
    except OSError as error:
        raise ScenesError(f"{path} cannot be written ({error.strerror}); make room or give another folder") from error
    return files


def caption_record(name: str, image: str, caption: str, noise: str, clean: str, hand: str) -> dict[str, Any]:
    """A LLaVA record of a picture and its caption."""
    return {
        "id": name,
        "image": image,
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption}],
        "noise": noise,
        "oracle_quality": ORACLE_QUALITY[noise],
        "caption_clean": clean,
        "hand": hand,
    }


def as_json(records: Iterable[Mapping[str, Any]]) -> str:
    """A JSON array with one record per line, so that it is easy to page through and diff."""
    return "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"


def _captions_record(row: dict[str, Any], count: int, share: float) -> dict[str, Any]:
    noisy = row["place"] < round(share * count)
    clean = row["caption_clean"]
    caption, noise = (row["caption_noisy"], row["noise"]) if noisy else (clean, "clean")
    return caption_record(row["id"], row["image"], caption, noise, clean, row["hand"])
