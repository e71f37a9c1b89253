"""What the prepared folder knows about each picture: one line of JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aligngpt.quickstart.clipart.wording import content_words

AGREES, SERIES, OTHER_WORDS = "agrees", "series-title", "other-words"
"""Kinds of titles: one that agrees with the description, one shared by many pictures, and any other."""

SERIES_TITLE = 5
"""A title that does not agree, of as many drawings or more, is of the kind `series-title`."""


@dataclass(frozen=True)
class Entry:
    """A picture with its title and its independent description.

    Attributes:
        id: unique in the folder.
        image: path of the picture below the folder.
        source: path of the drawing in the library, without suffix.
        title: the title as it is, used as the caption.
        name: the words of the file name.
        description: file name and keywords.
        kind: of the title: `agrees`, `series-title` or `other-words`.
        series: drawings of one series are in one split.
        keywords: as plain words.
    """

    id: str
    image: str
    source: str
    title: str
    name: str
    description: str
    kind: str
    series: str
    keywords: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether the title agrees with the description; see `aligngpt.quickstart.clipart.wording`."""
        return self.kind == AGREES

    @property
    def folder(self) -> str:
        return self.source.rpartition("/")[0]

    @property
    def words(self) -> frozenset[str]:
        """The content words of everything that is said about the picture."""
        return content_words([self.name, self.title, *self.keywords])

    @property
    def is_named(self) -> bool:
        """Whether the file name says what is drawn, so that questions can be asked about it."""
        return bool(content_words([self.name]))

    def caption_record(self, caption: str | None = None) -> dict[str, Any]:
        """A LLaVA record of the picture and a caption, the title if none is given."""
        told = self.title if caption is None else caption
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": told}]
        return {"id": self.id, "image": self.image, "conversations": turns}


def write_entries(path: Path, entries: Iterable[Entry]) -> None:
    """Write one line for each entry."""
    text = "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)
    path.write_text(text, encoding="utf-8")


def read_entries(path: Path) -> list[Entry]:
    """Read what `write_entries` wrote."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [Entry(**row | {"keywords": tuple(row["keywords"])}) for row in rows]
