"""Parquet files with embedded checksums: one per column, and one for the footer.

The checksums are stored in the footer's key-value metadata. So any Parquet reader can read such a file, there is no
separate checksum file to lose, and a reader of a few columns can verify those without reading the others. A file
without checksums, written by an older version, is read without verification.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from aligngpt.errors import AlignGPTError

MAGIC = b"PAR1"
KEY = "aligngpt.checksums"
_MARK = b"blake2b-64:"
_DIGITS = 16
_CHECKSUMS = re.compile(re.escape(_MARK) + rb"([0-9a-f]{%d}(?:-[0-9a-f]{%d})*)" % (_DIGITS, _DIGITS))
_AT_ONCE = 1 << 20


class DamagedError(AlignGPTError):
    """A file does not contain the bytes that were written."""


def with_checksums(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise a table as a Parquet file with checksums; the same table gives the same bytes.

    Args:
        table: the content of the file.
        metadata: additional key-value metadata for the footer, covered by the footer's checksum.
    """
    sink = pa.BufferOutputStream()
    empty = _MARK + b"-".join([b"0" * _DIGITS] * (1 + table.num_columns))
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({**(metadata or {}), KEY: empty.decode()})
    content = bytearray(sink.getvalue().to_pybytes())
    footer = _footer_start(len(content), bytes(content[-8:]))
    place = content.rindex(empty) + len(_MARK)
    spans = _column_spans(pq.read_metadata(pa.BufferReader(content)))
    columns = [_digest(content[start:stop] for start, stop in spans.get(name, ())) for name in table.column_names]
    # The footer's checksum is computed with zeros in its own place.
    content[place + _DIGITS : place + len(empty) - len(_MARK)] = b"".join(b"-" + digest for digest in columns)
    content[place : place + _DIGITS] = _digest([content[footer:]])
    return bytes(content)


def has_checksums(metadata: Mapping[bytes, bytes]) -> bool:
    """Whether a file with this key-value metadata in its footer has checksums."""
    return KEY.encode() in metadata


@contextmanager
def open_checked(path: Path, columns: Sequence[str] | Callable[[str], bool] | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file after verifying the checksums of its footer and the requested columns, if it has checksums.

    Args:
        path: the file.
        columns: the columns that will be read, or tells whether the column with a name will be; all when None. Names
            that are not in the file are ignored.

    Raises:
        DamagedError: a checksum does not match.
        OSError: the file cannot be read.
        pa.ArrowException: it is not a Parquet file.
    """
    with path.open("rb") as file:
        checksums = _checked_footer(file)
        with pq.ParquetFile(file) as parquet:
            if checksums is not None:
                names = parquet.schema_arrow.names
                spans = _column_spans(parquet.metadata)
                for name, expected in zip(names, checksums, strict=True):
                    if columns is None or (columns(name) if callable(columns) else name in columns):
                        _check(f"column {name}", _digest(_pieces(file, spans.get(name, ()))), expected)
            yield parquet


def _checked_footer(file: BinaryIO) -> list[bytes] | None:
    """Verify the footer and return the checksums of the columns; None if the file has no checksums.

    The footer is not parsed before its checksum has been verified.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise DamagedError(f"it does not start with {MAGIC.decode()}, as a Parquet file must")
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    start = _footer_start(size, file.read(8))
    file.seek(start)
    footer = file.read()
    found = _CHECKSUMS.search(footer)
    if found is None:
        return None
    own, *columns = found[1].split(b"-")
    zeroed = footer[: found.start(1)] + b"0" * _DIGITS + footer[found.start(1) + _DIGITS :]
    _check("footer", _digest([zeroed]), own)
    return columns


def _footer_start(size: int, end: bytes) -> int:
    length = int.from_bytes(end[:4], "little")
    if end[4:] != MAGIC or not 0 < length <= size - 12:
        raise DamagedError(f"it does not end with a footer and {MAGIC.decode()}, as a Parquet file must")
    return size - 8 - length


def _column_spans(metadata: pq.FileMetaData) -> dict[str, list[tuple[int, int]]]:
    """Byte ranges `(start, stop)` of all chunks of each column."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            start = chunk.data_page_offset
            if chunk.dictionary_page_offset is not None:
                start = min(start, chunk.dictionary_page_offset)
            name = chunk.path_in_schema.split(".")[0]
            spans.setdefault(name, []).append((start, start + chunk.total_compressed_size))
    return spans


def _pieces(file: BinaryIO, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    for start, stop in spans:
        for at in range(start, stop, _AT_ONCE):
            file.seek(at)
            yield file.read(min(_AT_ONCE, stop - at))


def _digest(pieces: "Iterator[bytes | bytearray] | Sequence[bytes | bytearray]") -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGITS // 2)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest().encode()


def _check(what: str, found: bytes, expected: bytes) -> None:
    if found != expected:
        raise DamagedError(f"its {what} has the checksum {found.decode()}, expected {expected.decode()}: it is damaged")
