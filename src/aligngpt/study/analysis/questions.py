"""What is known about the questions and probe captions of a study: the same for all of its runs, kept in one file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aligngpt.files import atomic_write
from aligngpt.study.pairs import StudyError

QUESTIONS_FILE = "questions.json"


@dataclass(frozen=True)
class Split:
    """The questions of one test, one entry per question.

    Attributes:
        kind: kind of question.
        scope: whether it is about the whole picture or a part of it: `whole` or `part`; empty if it is not known.
        image: number of the picture, the same for questions about the same picture.
    """

    kind: tuple[str, ...]
    scope: tuple[str, ...]
    image: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.kind) == len(self.scope) == len(self.image) > 0:
            sizes = f"{len(self.kind)}, {len(self.scope)} and {len(self.image)}"
            raise ValueError(f"kind, scope and image must have one entry per question; they have {sizes}")


@dataclass(frozen=True)
class ProbeCaptions:
    """The captions that are compared after pre-training, one entry per picture.

    Attributes:
        kind: what is wrong with the wrong caption.
        right_score, wrong_score: scores of the dual encoder; empty if they are not known.
    """

    kind: tuple[str, ...]
    right_score: tuple[float, ...] = ()
    wrong_score: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        sizes = {len(self.right_score), len(self.wrong_score)}
        if not self.kind or sizes not in ({0}, {len(self.kind)}):
            raise ValueError(f"expected no scores, or {len(self.kind)} scores of right and as many of wrong captions")


@dataclass(frozen=True)
class Questions:
    """What is known about the questions of a study.

    Attributes:
        splits: by name of the test; arms are compared on the first.
        probe: captions compared after pre-training; None without.
    """

    splits: dict[str, Split] = field(default_factory=dict)
    probe: ProbeCaptions | None = None

    def __post_init__(self) -> None:
        if not self.splits:
            raise ValueError("there must be at least one test")

    @property
    def first(self) -> str:
        """The name of the test that arms are compared on."""
        return next(iter(self.splits))

    def save(self, results: Path) -> Path:
        """Write the file that belongs to a folder (or a file) of results; returns its path."""
        path = questions_path(results)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            # Not sorted: the first test is the one that arms are compared on.
            json.dump(asdict(self), file, ensure_ascii=False)
        return path

    @classmethod
    def load(cls, results: Path) -> "Questions":
        """Read the file that belongs to a folder (or a file) of results; it may also lie beside the folder.

        Raises:
            StudyError: there is no such file, or it is not what `save` writes.
        """
        path = questions_path(results)
        # `aligngpt study` keeps the results of its runs in a folder, and this file beside that folder.
        if not path.exists() and (beside := results.parent / QUESTIONS_FILE).exists():
            path = beside
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise StudyError(f"{path}: {place}: {first['msg']}; run the study again, which writes it") from error
        except (OSError, ValueError) as error:
            raise StudyError(f"{path} cannot be read ({error}); `aligngpt study` writes it beside results") from error


def questions_path(results: Path) -> Path:
    """Where the questions' file of some results is: in their folder, or beside the one file that they are in."""
    return (results if results.is_dir() or not results.suffix else results.parent) / QUESTIONS_FILE
