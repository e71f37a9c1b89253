"""The records of any source that is not an archive, as the values that JSON records have."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aligngpt.data.sources.base import BrokenRecord, Record
from aligngpt.data.sources.byte_ranges import BrokenLine
from aligngpt.data.sources.coco import is_coco
from aligngpt.data.sources.compressed import can_decompress
from aligngpt.data.sources.fields import CAPTION_COLUMNS, NUMBERS, ColumnNames, is_given, is_row
from aligngpt.data.sources.finding import TABLE_SUFFIXES, find_records
from aligngpt.data.sources.given_level import set_level
from aligngpt.data.sources.json import first_object, is_array, read_records
from aligngpt.data.sources.json_keys import REPEATED_KEY, RepeatedKeys
from aligngpt.data.sources.remote import as_read, located

SHARD = 10_000


def read_values(
    path: Path, names: ColumnNames | None = None, *, with_numbers: bool = True
) -> Iterator[tuple[int, object]]:
    """Yield the records of a source, numbered from 0, with one in memory at a time.

    Rows of tables (CSV, TSV, COCO, folders of images, JSON records with `file_name` and a caption) become records with
    `image`, `caption` and `id`, and with `level`, `similarity` and `score` as numbers.

    Args:
        path: a JSON array, JSON lines, CSV or TSV file, compressed or not; COCO captions; or a folder of images with
            their captions.
        names: the columns to read; with any of them, JSON records are rows of a table too.
        with_numbers: whether to read `level`, `similarity` and `score` of rows; scoring, too, reads rows without them.

    Raises:
        SourceError: it cannot be read, or is none of these; see `read_records` and `find_records`.
    """
    path, names = as_read(path), names or ColumnNames()
    if is_plain_json(path) and not names.given and not _is_table(path):
        yield from read_records(path)
        return
    source = find_records(path, shard_size=SHARD, names=names)
    why = "" if names.given or path.is_dir() else ", and the file is read as a table because its first record has one"
    for shard in source.shards():
        for record in source.read(shard):
            index = shard.first + record.number
            if isinstance(record, BrokenRecord):
                yield index, BrokenLine(record.detail, record.kind)
            else:
                yield index, _as_record(record, why, with_numbers)


def is_plain_json(path: Path) -> bool:
    """Whether `read_records` reads a file, or says why it cannot be read."""
    path = located(path)
    if path.is_dir() or path.suffix.lower() in TABLE_SUFFIXES:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return True
    return not can_decompress(head) and not (b"{" in head and is_coco(path))


def _is_table(path: Path) -> bool:
    """Whether the first object of a JSON file is a row with a caption."""
    try:
        first = first_object(path, is_array=is_array(path))
    except OSError:
        return False
    return first is not None and is_row(first) and any(name in first for name in CAPTION_COLUMNS)


def _as_record(row: Record, why_table: str, with_numbers: bool) -> object:
    value, columns = row.value, row.columns
    if not isinstance(value, Mapping):
        return value
    if isinstance(value, RepeatedKeys):
        return BrokenLine(f"{row.place}: {REPEATED_KEY}", "repeated_key")
    if columns is None:
        is_question = value.get("question", "") != ""
        # The level of a question may be its difficulty.
        left_out = () if with_numbers else ("similarity", "score") if is_question else NUMBERS
        given = {name: cell for name, cell in value.items() if cell != "" and name not in left_out}
        return _with_numbers(given, row.place, is_question=is_question)
    # A record without an image would be text only, and a table of pairs has no such rows.
    for column, kind in ((columns.image, "no_picture"), (columns.caption, "empty_text")):
        if not is_given(value.get(column)):
            own = None if columns.id is None else value.get(columns.id)
            lacking = f"`{column}` is empty" if column in value else f"there is no `{column}`{why_table}"
            return BrokenLine(f"{row.place}: {lacking}", kind, str(own) if is_given(own) else None)
    names = {"image": columns.image, "caption": columns.caption, "id": columns.id}
    record = {name: value[column] for name, column in names.items() if column is not None and is_given(value[column])}
    numbers = {name: value[name] for name in NUMBERS if with_numbers and is_given(value.get(name))}
    return _with_numbers(record | numbers, row.place)


def _with_numbers(record: dict[str, Any], place: str, *, is_question: bool = False) -> dict[str, Any] | BrokenLine:
    """The record with numbers in `NUMBERS` and its level as `similarity`.

    The `level` of a question may be its difficulty: one that is no alignment level is left as it is.
    """
    for name in NUMBERS:
        if isinstance(cell := record.get(name), str):
            with suppress(ValueError):
                number = float(cell)
                # Tables with missing levels hold the others as 2.0; in `similarity` that is a score, as in JSON.
                is_level = name == "level" or (name == "similarity" and cell.strip().lstrip("+-").isdecimal())
                record[name] = int(number) if is_level and number.is_integer() else number
    level = record.get("level")
    if level is not None and (not is_question or _is_level(level)):
        del record["level"]
        try:
            set_level(record, level)
        except ValueError as error:
            own = record.get("id")
            return BrokenLine(f"{place}: {error}", "level", None if own is None else str(own))
    return record


def _is_level(found: object) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and found >= 1 and float(found).is_integer()
