"""Reading a benchmark's files from a local folder laid out like LLaVA's `playground/data/eval`."""

import csv
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from aligngpt.data.images.reference import Picture
from aligngpt.data.sources.mistaken_files import mistaken_for
from aligngpt.errors import AlignGPTError
from aligngpt.files import sha256_of

EVAL_ZIP = "LLaVA's eval.zip (see docs/Evaluation.md of LLaVA), unpacked so that the data folder holds"


class DataError(AlignGPTError):
    """A benchmark's file is missing or damaged, or two files do not belong together."""


class Row(dict[str, Any]):
    """A record of a file, which knows its place for messages; a missing field is a DataError."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where

    def __missing__(self, name: str) -> NoReturn:
        raise DataError(f"{self.where} has no field {name!r}; it is not the file that LLaVA's evaluation uses")


class DataFolder:
    """The data of one benchmark; remembers the content hash of every file that was read.

    Args:
        root: the folder that holds `pope`, `MME`, … as LLaVA's `playground/data/eval` does.
        source: where the files come from, for the message if one is missing.

    Raises:
        DataError: `root` is not a folder.
    """

    def __init__(self, root: Path, source: str) -> None:
        if not root.is_dir():
            raise DataError(f"the data folder {root} does not exist; give the folder that eval.zip was unpacked to")
        self.root, self.source = root, source
        self.hashes: dict[str, str] = {}
        self.notes: list[str] = []

    def find(self, *names: str) -> Path:
        """The first of some paths, relative to the root, that exists.

        Raises:
            DataError: none does.
        """
        for name in names:
            if (path := self.root / name).exists():
                return path
        others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
        raise DataError(f"{self.root / names[0]} does not exist{others}; get it from {self.source}")

    def json(self, *names: str) -> Any:
        """The content of a JSON file.

        Raises:
            DataError: it is missing or damaged.
        """
        path = self.find(*names)
        try:
            return json.loads(self.text(path))
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON: {error}; download it again") from error

    def rows(self, *names: str) -> list[Row]:
        """The records of a file of JSON lines.

        Raises:
            DataError: it is missing, damaged or empty.
        """
        path = self.find(*names)
        return self._some(read_json_lines(path, self.text(path)), path)

    def records(self, *names: str) -> list[Row]:
        """The records of a file with a JSON array.

        Raises:
            DataError: it is missing, damaged or empty, or not an array of objects.
        """
        path, content = self.find(*names), self.json(*names)
        if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
            raise DataError(f"{path} is not a JSON array of objects")
        return self._some([Row(one, f"{path}, record {number}") for number, one in enumerate(content, 1)], path)

    def table(self, *names: str) -> list[Row]:
        """The rows of a tab-separated table with a header.

        Raises:
            DataError: it is missing or empty, or a row has too many or too few fields.
        """
        path = self.find(*names)
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        reader = csv.DictReader(io.StringIO(self.text(path), newline=""), delimiter="\t")
        found = []
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if None in fields or None in fields.values():
                raise DataError(f"{where} does not have the {len(reader.fieldnames or ())} fields of the header")
            found.append(Row(dict(fields), where))
        return self._some(found, path)

    def picture(self, name: str, *folders: str) -> Picture:
        """The picture of this name in the first of some folders that has it; the first folder if none has."""
        places = [self.root / folder / name for folder in folders]
        return Picture(name, next((path for path in places if path.is_file()), places[0]))

    def text(self, path: Path) -> str:
        """The content of a file, whose hash is remembered.

        Raises:
            DataError: it cannot be read, or is a web page or a Git LFS pointer.
        """
        try:
            with path.open("rb") as file:
                self.hashes[str(path.relative_to(self.root))] = sha256_of(file)
            content = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        if what := mistaken_for(content[:200].encode()):
            raise DataError(f"{path} {what}")
        return content

    @staticmethod
    def _some(rows: list[Row], path: Path) -> list[Row]:
        if not rows:
            raise DataError(f"{path} is empty; download it again")
        return rows


def read_json_lines(path: Path, text: str) -> list[Row]:
    """The records of JSON lines; `path` is for messages.

    Raises:
        DataError: a line is not a JSON object.
    """
    found = []
    # Not splitlines: a text may contain other line separators (U+2028), which JSON does not escape.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise DataError(f"{path}, line {number} is not a JSON object")
        found.append(Row(fields, f"{path}, line {number}"))
    return found


def by_unique(rows: Iterable[Row], field: str) -> dict[str, Row]:
    """Rows by the text of a field.

    Raises:
        DataError: two rows have the same value.
    """
    found: dict[str, Row] = {}
    for row in rows:
        if (value := str(row[field])) in found:
            raise DataError(f"{row.where} repeats the {field} {value!r} of {found[value].where}")
        found[value] = row
    return found
