"""easy-VQA as training data: 64 x 64 px images of coloured shapes, with questions and captions, some of them bad.

The package contains questions only. The content of each image is deduced from the answers, and captions are generated
from it. A given share of the captions is vague (does not state both colour and shape) or wrong (states another colour
or shape), to check whether scores and levels detect badly aligned pairs.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aligngpt.errors import AlignGPTError
from aligngpt.progress import track
from aligngpt.quickstart.packages import Package, PackageError
from aligngpt.quickstart.prepared_folder import Facts, Plain, prepare_folder
from aligngpt.quickstart.shapes import (
    Content,
    Quality,
    Question,
    assign_qualities,
    picture_contents,
    question_type,
    write_caption,
)

EASY_VQA = Package("easy-vqa==1.0", "easy_vqa", "MIT")
QUESTIONS_SHA256 = {
    "train": "bb67697636aed0e65631d4266824aebeae5c833b0f37ed781e20752e85617ec5",
    "test": "0d4630a51bafec65343e2f6af9cdd20cf8eae214344ef57636202eec409553f7",
}
FORMAT = 2
"""Increment when the output below changes, so that folders made by an older version are rebuilt."""

VALIDATION_PICTURES = 60
"""Number of images, the last of the training split, whose questions are held out to monitor training."""

Split = Literal["train", "test"]


class EasyVQAError(AlignGPTError):
    """easy-VQA cannot be prepared with the given arguments."""


@dataclass(frozen=True)
class EasyVQAFiles:
    """Paths of the prepared data; image paths in the files are relative to `folder`.

    Attributes:
        folder: contains everything, with a `manifest.json` of counts, shares, seed and licence.
        captions: one caption for most training images, with `caption_quality` (right, vague or wrong).
        train_questions: one record per question, with `question_type`.
        validation_questions: the same for a few training images whose questions are excluded from `train_questions`.
        test_questions: the same for the test images.
        test_pairs: a right and a wrong caption for each test image whose colour and shape are known.
    """

    folder: Path

    @property
    def captions(self) -> Path:
        return self.folder / "captions_train.json"

    @property
    def train_questions(self) -> Path:
        return self.folder / "questions_train.json"

    @property
    def validation_questions(self) -> Path:
        return self.folder / "questions_validation.json"

    @property
    def test_questions(self) -> Path:
        return self.folder / "questions_test.json"

    @property
    def test_pairs(self) -> Path:
        return self.folder / "pairs_test.json"


def prepare_easy_vqa(out: Path, seed: int = 0, vague_share: float = 0.15, wrong_share: float = 0.15) -> EasyVQAFiles:
    """Write captions, questions and images of easy-VQA as LLaVA files, or reuse those of an earlier call.

    Wrong captions have a wrong colour or a wrong shape and are written only for images whose colour and shape are both
    known. Images whose colour or shape cannot be deduced from the answers get vague captions and fill that share
    first; if there are more of them than the share allows, the rest get no caption. The shares are thus exact up to
    rounding.

    Args:
        out: output folder; an earlier result there is replaced if the arguments differ.
        seed: random seed for the captions; the same seed gives byte-identical files.
        vague_share: share of all captions, 0 to 1.
        wrong_share: share of all captions, 0 to 1; at most 1 together with `vague_share`.

    Raises:
        EasyVQAError: the shares are invalid.
        PackageError: `easy-vqa` is not installed, or its files are not the expected ones.
        PreparedFolderError: `out` contains something else.
    """
    if not (vague_share >= 0 and wrong_share >= 0 and vague_share + wrong_share <= 1):
        raise EasyVQAError(
            f"vague_share is {vague_share} and wrong_share {wrong_share}, "
            "expected non-negative shares that sum to at most 1"
        )
    made_from: dict[str, Plain] = {
        "package": EASY_VQA.requirement,
        "licence": EASY_VQA.licence,
        "sha256": QUESTIONS_SHA256,
        "seed": seed,
        "vague_share": vague_share,
        "wrong_share": wrong_share,
        "format": FORMAT,
    }
    prepare_folder(out, made_from, lambda folder: _write(EasyVQAFiles(folder), seed, vague_share, wrong_share))
    return EasyVQAFiles(out)


def read_questions(split: Split) -> list[Question]:
    """The package's questions of one split, in the order of its file.

    Raises:
        PackageError: `easy-vqa` is not installed, or its file is not the expected one.
    """
    path = EASY_VQA.file(f"data/{split}/questions.json", QUESTIONS_SHA256[split])
    return [Question(*record) for record in json.loads(path.read_text(encoding="utf-8"))]


def _write(files: EasyVQAFiles, seed: int, vague_share: float, wrong_share: float) -> Facts:
    train, test = read_questions("train"), read_questions("test")
    train_contents, test_contents = picture_contents(train), picture_contents(test)
    rng = random.Random(seed)
    qualities = assign_qualities(train_contents, rng, vague_share, wrong_share)
    captions = [
        _caption_record("train", image, train_contents[image], quality, rng) for image, quality in qualities.items()
    ]
    pairs = [
        _caption_record("test", image, content, quality, rng)
        for image, content in sorted(test_contents.items())
        if content.complete
        for quality in ("right", "wrong")
    ]
    _write_json(files.captions, captions)
    _write_json(files.test_pairs, pairs)
    held_out = set(sorted(train_contents)[-VALIDATION_PICTURES:])
    for path, held in ((files.train_questions, False), (files.validation_questions, True)):
        chosen = [(n, question) for n, question in enumerate(train) if (question.image in held_out) == held]
        _write_json(path, [_question_record("train", n, question) for n, question in chosen])
    _write_json(files.test_questions, [_question_record("test", n, question) for n, question in enumerate(test)])
    _copy_images(files.folder, {"train": sorted(train_contents), "test": sorted(test_contents)})
    return {
        "train_images": len(train_contents),
        "train_images_fully_known": sum(content.complete for content in train_contents.values()),
        "test_images": len(test_contents),
        "test_images_fully_known": len(pairs) // 2,
        "captions": dict(Counter[str](qualities.values())),
        "train_questions": dict(Counter(question_type(question.text) for question in train)),
        "test_questions": dict(Counter(question_type(question.text) for question in test)),
    }


def _caption_record(
    split: Split, image: int, content: Content, quality: Quality, rng: random.Random
) -> dict[str, object]:
    return {
        "id": f"{split}-{image}-{quality}",
        "image": _image_name(split, image),
        "conversations": [
            {"from": "human", "value": "<image>"},
            {"from": "gpt", "value": write_caption(content, quality, rng)},
        ],
        "caption_quality": quality,
    }


def _question_record(split: Split, number: int, question: Question) -> dict[str, object]:
    return {
        "id": f"{split}-question-{number}",
        "image": _image_name(split, question.image),
        "conversations": [
            {"from": "human", "value": f"<image>\n{question.text}"},
            {"from": "gpt", "value": question.answer},
        ],
        "question_type": question_type(question.text),
    }


def _image_name(split: Split, image: int) -> str:
    return f"images/{split}/{image}.png"


def _write_json(path: Path, records: Sequence[dict[str, object]]) -> None:
    """Write a JSON array with one record per line, so that it is easy to page through and diff."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n", encoding="utf-8")


def _copy_images(folder: Path, images: dict[Split, list[int]]) -> None:
    source = EASY_VQA.folder() / "data"
    names = [(split, image) for split, numbers in images.items() for image in numbers]
    for split in images:
        (folder / "images" / split).mkdir(parents=True)
    for split, image in track(names, "Copying easy-VQA images", unit="images"):
        path = source / split / "images" / f"{image}.png"
        try:
            shutil.copyfile(path, folder / _image_name(split, image))
        except FileNotFoundError as error:
            raise PackageError(
                f"{path} of {EASY_VQA.requirement} is missing; run: {EASY_VQA.install_command} --force-reinstall"
            ) from error
