"""Clip art as training data: small pictures, their titles as captions, and questions from file names and keywords.

The titles are as people wrote them for the Open Clip Art Library: many are right, many are the name of a series
("Various Cliparts"), some name something else. Nothing is made wrong on purpose.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from aligngpt.data.images.opening import ImageError
from aligngpt.progress import Meter
from aligngpt.quickstart.clipart.drawings import Drawing, read_drawings
from aligngpt.quickstart.clipart.entries import AGREES, OTHER_WORDS, SERIES, SERIES_TITLE, Entry, write_entries
from aligngpt.quickstart.clipart.packages import ClipartError
from aligngpt.quickstart.clipart.pictures import look_of, small_picture
from aligngpt.quickstart.clipart.questions import Question, write_questions
from aligngpt.quickstart.clipart.series import SHARES, series_of, split_of
from aligngpt.quickstart.clipart.wording import agrees, description_of, keywords_of, name_of
from aligngpt.quickstart.prepared_folder import Facts, Plain, prepare_folder

FORMAT = 1
"""Increment when the output below changes, so that folders made by an older version are rebuilt."""

EncoderTexts = Literal["titles", "descriptions"]
QUESTIONS_PER_KIND = {"train": 2, "test": 1}


@dataclass(frozen=True)
class ClipartFiles:
    """Paths of prepared clip art; image paths in the files are relative to `folder`.

    Attributes:
        folder: contains everything, with a `manifest.json` of counts.
    """

    folder: Path

    def entries(self, split: str) -> Path:
        """Everything about the pictures of a split: `captions`, `encoder`, `train` or `test`."""
        return self.folder / f"pictures_{split}.jsonl"

    def encoder_captions(self, texts: EncoderTexts) -> Path:
        """Pictures with their titles, or with their descriptions, to train the dual encoder on."""
        return self.folder / f"{texts}_encoder.json"

    def questions(self, split: str) -> Path:
        """Questions of a split, `train` or `test`."""
        return self.folder / f"questions_{split}.json"


def prepare_clipart(folder: Path, source: Path, *, seed: int) -> ClipartFiles:
    """Prepare the clip art, or reuse what an earlier call prepared from the same drawings and seed.

    Args:
        folder: output folder.
        source: has the folders `png` and `svg`; see `find_clipart`.
        seed: of the splits and the questions.

    Raises:
        ClipartError: a split would have no pictures or no questions.
        PreparedFolderError: `folder` contains something else.
    """
    made_from: dict[str, Plain] = {"drawings": _fingerprint(source), "seed": seed, "format": FORMAT}
    prepare_folder(folder, made_from, lambda made: _write(made, source, seed))
    return ClipartFiles(folder)


def _fingerprint(source: Path) -> str:
    """A hash of the names and sizes of all drawings."""
    digest = hashlib.sha256()
    for file in sorted(path for kind in ("svg", "png") for path in (source / kind).rglob(f"*.{kind}")):
        digest.update(f"{file.relative_to(source).as_posix()}\0{file.stat().st_size}\n".encode())
    return digest.hexdigest()


def _write(folder: Path, source: Path, seed: int) -> Facts:
    drawings, left_out = read_drawings(source)
    drawings, pictures = _pictures(drawings, source, left_out)
    if not drawings:
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "there are no SVG files"
        raise ClipartError(f"{source} has no usable drawing ({told}); unpack both of Debian's packages of openclipart")
    entries = _entries(drawings, pictures, seed)
    counts: dict[str, Plain] = {"usable": len(drawings), "left_out": dict(left_out)}
    for split in SHARES:
        own = [entry for entry in entries if Path(entry.image).parts[1] == split]
        if not own:
            raise ClipartError(
                f"no drawing is left for the split {split}: {source} has only {len(drawings)} usable drawings; "
                "unpack both packages as a whole, or take another seed"
            )
        write_entries(ClipartFiles(folder).entries(split), own)
        counts[f"titles_{split}"] = dict(Counter(entry.kind for entry in own))
        if split == "encoder":
            files = ClipartFiles(folder)
            _write_json(files.encoder_captions("titles"), (entry.caption_record() for entry in own))
            described = (entry.caption_record(entry.description) for entry in own)
            _write_json(files.encoder_captions("descriptions"), described)
        if split in QUESTIONS_PER_KIND:
            rng = random.Random(f"{seed}/{split}/questions")
            questions = write_questions(own, QUESTIONS_PER_KIND[split], rng)
            if not questions:
                raise ClipartError(f"no question can be asked about the {len(own)} drawings of the split {split}")
            _write_json(ClipartFiles(folder).questions(split), _records(questions))
            counts[f"questions_{split}"] = dict(Counter(question.kind for question in questions))
    for entry, picture in zip(entries, pictures, strict=True):
        path = folder / entry.image
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return counts


def _pictures(
    drawings: Sequence[Drawing], source: Path, left_out: Counter[str]
) -> tuple[list[Drawing], list[Image.Image]]:
    """The drawings that can be shown and described, and their small pictures; the others are counted."""
    kept: list[Drawing] = []
    pictures: list[Image.Image] = []
    with Meter("Reading clip art", len(drawings), unit="drawings") as meter:
        for drawing in drawings:
            meter.advance()
            if not description_of(drawing):
                left_out["without a description"] += 1
                continue
            try:
                picture = small_picture(source / "png" / f"{drawing.path}.png")
            except ImageError as error:
                left_out[f"PNG {error.reason}"] += 1
                continue
            if picture is None:
                left_out["PNG blank"] += 1
                continue
            kept.append(drawing)
            pictures.append(picture)
    return kept, pictures


def _entries(drawings: Sequence[Drawing], pictures: Sequence[Image.Image], seed: int) -> list[Entry]:
    series = series_of(drawings, [look_of(picture) for picture in pictures])
    sizes, titles = Counter(series), Counter(drawing.title for drawing in drawings)
    entries = []
    for number, (drawing, own) in enumerate(zip(drawings, series, strict=True)):
        often = titles[drawing.title] >= SERIES_TITLE
        kind = AGREES if agrees(drawing) else SERIES if often else OTHER_WORDS
        entries.append(
            Entry(
                id=f"clipart-{number}",
                image=f"images/{split_of(own, sizes[own], seed)}/{number}.png",
                source=drawing.path,
                title=drawing.title,
                name=name_of(drawing),
                description=description_of(drawing),
                kind=kind,
                series=own,
                keywords=tuple(keywords_of(drawing)),
            )
        )
    return entries


def _records(questions: Sequence[Question]) -> list[dict[str, object]]:
    return [question.record(number) for number, question in enumerate(questions)]


def _write_json(path: Path, records: Iterable[dict[str, object]]) -> None:
    text = "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"
    path.write_text(text, encoding="utf-8")
