"""Four freely licensed photographs with questions and answers, to try an assistant on natural images."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from aligngpt.quickstart.packages import Package
from aligngpt.quickstart.prepared_folder import Facts, Plain, prepare_folder

# Both releases in this range contain the same photographs.
SCIKIT_IMAGE = Package("scikit-image>=0.25.2,<0.27", "skimage", "CC0 or public domain, as named for each photograph")

FORMAT = 1
"""Increment when the output below changes, so that folders made by an older version are rebuilt."""


@dataclass(frozen=True)
class Photograph:
    """A photograph in the scikit-image package, with questions about it.

    Attributes:
        name: file name.
        sha256: SHA-256 of the file.
        credit: author and licence, as stated in scikit-image's documentation.
        questions: questions with short answers.
    """

    name: str
    sha256: str
    credit: str
    questions: tuple[tuple[str, str], ...]


PHOTOGRAPHS = (
    Photograph(
        "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "NASA, Eileen Collins; public domain",
        (
            ("What is the job of this person?", "astronaut"),
            ("What color is the suit?", "orange"),
            ("Is there a flag in the picture?", "yes"),
        ),
    ),
    Photograph(
        "chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "Stefan van der Walt; CC0",
        (
            ("What animal is this?", "a cat"),
            ("What color are its eyes?", "green"),
            ("Is there a dog in the picture?", "no"),
        ),
    ),
    Photograph(
        "coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0",
        (
            ("What is in the cup?", "coffee"),
            ("What color is the saucer?", "red"),
            ("What lies beside the cup?", "a spoon"),
        ),
    ),
    Photograph(
        "rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "SpaceX, DSCOVR on Falcon 9; public domain",
        (
            ("What stands in the middle?", "a rocket"),
            ("What color is the sky?", "blue"),
            ("Is there a person in the picture?", "no"),
        ),
    ),
)


@dataclass(frozen=True)
class PhotographFiles:
    """Paths of the prepared photographs; image paths in the file are relative to `folder`.

    Attributes:
        folder: contains `images/`, the questions and a `manifest.json` with the credits.
        questions: LLaVA records, one per question.
    """

    folder: Path

    @property
    def questions(self) -> Path:
        return self.folder / "questions.json"


def prepare_photographs(out: Path) -> PhotographFiles:
    """Copy the photographs and write the questions about them, or reuse those of an earlier call.

    Args:
        out: output folder.

    Raises:
        PackageError: `scikit-image` is not installed, or a photograph is not the expected one.
        PreparedFolderError: `out` contains something else.
    """
    made_from: dict[str, Plain] = {
        "package": SCIKIT_IMAGE.requirement,
        "licence": SCIKIT_IMAGE.licence,
        "sha256": {photograph.name: photograph.sha256 for photograph in PHOTOGRAPHS},
        "format": FORMAT,
    }
    prepare_folder(out, made_from, lambda folder: _write(PhotographFiles(folder)))
    return PhotographFiles(out)


def _write(files: PhotographFiles) -> Facts:
    (files.folder / "images").mkdir()
    for photograph in PHOTOGRAPHS:
        source = SCIKIT_IMAGE.file(f"data/{photograph.name}", photograph.sha256)
        shutil.copyfile(source, files.folder / "images" / photograph.name)
    records = [
        {
            "id": f"{Path(photograph.name).stem}-{number}",
            "image": f"images/{photograph.name}",
            "conversations": [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": answer},
            ],
        }
        for photograph in PHOTOGRAPHS
        for number, (question, answer) in enumerate(photograph.questions)
    ]
    files.questions.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return {"credits": {photograph.name: photograph.credit for photograph in PHOTOGRAPHS}}
