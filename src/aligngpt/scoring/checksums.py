"""Parquet files that carry checksums of their own bytes: one of each column, and one of the footer.

They are in the footer's key-value metadata, so any Parquet reader reads such a file, nothing lies beside it that could
get lost, and a reader of a few columns need not read the others to know that what it reads is whole. A file without
them, of an older version, is read as it is.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
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
    """A file does not hold the bytes that were written."""


def with_checksums(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """A Parquet file of a table, with checksums; the same table gives the same bytes.

    Args:
        table: what is in the file.
        metadata: more of the footer's key-value metadata, which the footer's checksum covers.
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
    # The footer's own checksum is that of the footer with zeros in its place.
    content[place + _DIGITS : place + len(empty) - len(_MARK)] = b"".join(b"-" + digest for digest in columns)
    content[place : place + _DIGITS] = _digest([content[footer:]])
    return bytes(content)


@contextmanager
def open_checked(path: Path, columns: Sequence[str] | None = None) -> Iterator[pq.ParquetFile]:
    """A Parquet file of which the footer and some columns are what was written, as far as it has checksums.

    Args:
        path: the file.
        columns: those that will be read; all when None. One that is not there is passed over.

    Raises:
        DamagedError: a checksum is not that of the bytes.
        OSError: the file cannot be read.
        pa.ArrowException: it is no Parquet file.
    """
    with path.open("rb") as file:
        checksums = _checked_footer(file)
        with pq.ParquetFile(file) as parquet:
            if checksums is not None:
                names = parquet.schema_arrow.names
                spans = _column_spans(parquet.metadata)
                for name, expected in zip(names, checksums, strict=True):
                    if columns is None or name in columns:
                        _check(f"column {name}", _digest(_pieces(file, spans.get(name, ()))), expected)
            yield parquet


def _checked_footer(file: BinaryIO) -> list[bytes] | None:
    """The checksums of the columns; None where the file has none.

    Nothing of the footer is parsed before its checksum is known to be right.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise DamagedError(f"it does not begin with {MAGIC.decode()}, as a Parquet file does")
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
        raise DamagedError(f"it does not end as a Parquet file does, with {MAGIC.decode()}")
    return size - 8 - length


def _column_spans(metadata: pq.FileMetaData) -> dict[str, list[tuple[int, int]]]:
    """First byte, and the byte after the last, of all that there is of each column."""
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
