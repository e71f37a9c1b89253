"""Which kind of source is somewhere: told by what is there, not by what a folder is called."""

import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Union, cast

from aligngpt.data.sources.base import RecordSource, SourceError
from aligngpt.data.sources.byte_ranges import BOM
from aligngpt.data.sources.csv import CsvSource
from aligngpt.data.sources.fields import ColumnNames
from aligngpt.data.sources.json import JsonSource, first_object
from aligngpt.data.sources.tar import TarSource
from aligngpt.data.sources.text_files import check_kind
from aligngpt.files import sha256_of
from aligngpt.hub_names import near_paths

if TYPE_CHECKING:
    from aligngpt.data.sources.parquet import ParquetSource

Archive = Union["ParquetSource", TarSource]
"""What holds the pictures beside what is said of them."""

ACCEPTED = (
    "a JSON array or JSON lines of LLaVA records, a CSV file, Parquet or tar files or a folder of them, a pattern such "
    "as {00000..00041}.tar or *.parquet, a folder of pictures with captions.csv, metadata.csv or metadata.jsonl, a "
    "data set saved by `save_to_disk`, or the name owner/name of one on the Hugging Face hub"
)
TABLES = ("captions.csv", "metadata.csv", "metadata.jsonl")

ARCHIVES = (".parquet", ".tar")

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WILD = re.compile(r"[*?\[]")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILE_SUFFIXES = {".json", ".jsonl", ".csv", ".parquet", ".tar"}


def find_records(source: str | Path, *, shard_size: int, names: ColumnNames) -> RecordSource:
    """The records at `source`.

    Args:
        source: see `open_pairs`.
        shard_size: at most so many records a shard, where a source can be cut (a tar cannot).
        names: the fields to read of rows; JSON records whose fields are named are rows too.

    Raises:
        SourceError: nothing is there, or nothing that is accepted.
    """
    # A worker that gets the source may run in another folder.
    path = Path(source).absolute()
    try:
        if path.is_dir():
            return _in_folder(path, shard_size, names)
        if path.exists():
            return _in_file(path, shard_size, names)
        if _RANGE.search(path.name):
            return _of_files(path.parent, tuple(_expanded(path)), shard_size, names)
        if files := _matching(path):
            return _of_files(path.parent, files, shard_size, names)
    except (OSError, ValueError) as error:
        raise SourceError(f"{str(source)!r} cannot be read: {error}") from error
    if _HUB_NAME.fullmatch(str(source)) and path.suffix not in _FILE_SUFFIXES and not path.parent.exists():
        from aligngpt.data.sources.hub import DatasetSource

        return DatasetSource(str(source), shard_size, names)
    near = near_paths(Path(source))
    raise SourceError(
        f"{source} does not exist; " + (f"did you mean {' or '.join(near)}? " if near else "") + f"expected {ACCEPTED}"
    )


def archive_at(path: Path) -> "Archive | None":
    """The Parquet or tar files at `path`: a file, a folder or a pattern; None where there is another file or nothing.

    Raises:
        SourceError: a folder or a pattern has none, or a file of a pattern is not there.
    """
    if path.is_file():
        try:
            with path.open("rb") as file:
                kind = _archive_kind(path, file.read(4))
        except OSError:
            return None  # Whoever reads it as something else says why it cannot be read.
        if kind is None:
            return None
    elif not path.is_dir() and not is_pattern(path):
        return None
    found = find_records(path, shard_size=1, names=ColumnNames())
    if found.kind not in ("parquet", "webdataset"):
        raise SourceError(f"{path} is a source of the kind {found.kind}; name a JSON file, or Parquet or tar files")
    return cast("Archive", found)


def is_pattern(path: Path) -> bool:
    """Whether a name stands for several files, as `{00000..00041}.tar` and `*.parquet` do."""
    return not path.exists() and (_RANGE.search(path.name) or _WILD.search(path.name)) is not None


def _in_folder(folder: Path, shard_size: int, names: ColumnNames) -> RecordSource:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        from aligngpt.data.sources.hub import DatasetSource

        return DatasetSource(folder, shard_size, names)
    for name in TABLES:
        if (folder / name).is_file():
            return _in_file(folder / name, shard_size, names, is_table=True)
    # Before Parquet: img2dataset writes a table of what it fetched beside each tar file.
    tars = sorted(path for path in folder.rglob("*.tar") if path.is_file())
    tables = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    beside_tars = {path.parent for path in tars}
    if tars and (folder in beside_tars or all(path.parent in beside_tars for path in tables)):
        return TarSource(folder, tars)
    if tables:
        from aligngpt.data.sources.parquet import ParquetSource

        return ParquetSource(folder, tables, shard_size, names)
    found = ", ".join(sorted(path.name for path in islice(folder.iterdir(), 5))) or "nothing"
    raise SourceError(f"{folder} is no source of pairs: expected {ACCEPTED}; found {found}")


def _in_file(path: Path, shard_size: int, names: ColumnNames, *, is_table: bool = False) -> RecordSource:
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise SourceError(f"{path} is empty")
    check_kind(path, head)
    if path.suffix == ".csv":
        return CsvSource(path, shard_size, names)
    if kind := _archive_kind(path, head):
        return _of_files(path.parent, (path,), shard_size, names, kind)
    start = head.removeprefix(BOM).lstrip()[:1]
    if start in (b"[", b"{"):
        return _json(path, shard_size, names, is_array=start == b"[", is_table=is_table)
    raise SourceError(f"{path} is no source of pairs: expected {ACCEPTED}; found a file that begins {head[:20]!r}")


def _archive_kind(path: Path, head: bytes) -> str | None:
    """The suffix of the kind of archive that a file is; None where it is none."""
    if path.suffix == ".parquet" or head.startswith(b"PAR1"):
        return ".parquet"
    return ".tar" if path.suffix == ".tar" or tarfile.is_tarfile(path) else None


def _of_files(folder: Path, files: Sequence[Path], shard_size: int, names: ColumnNames, kind: str = "") -> "Archive":
    """The archive that files of a pattern are together; its first file says of which kind."""
    if (kind or "".join(path.suffix for path in files[:1])) == ".parquet":
        from aligngpt.data.sources.parquet import ParquetSource

        return ParquetSource(folder, files, shard_size, names)
    return TarSource(folder, files)


def _matching(pattern: Path) -> tuple[Path, ...]:
    """The Parquet and tar files that a pattern with `*`, `?` or `[…]` in its name fits, all of one kind."""
    if not _WILD.search(pattern.name) or not pattern.parent.is_dir():
        return ()
    files = sorted(path for path in pattern.parent.glob(pattern.name) if path.suffix in ARCHIVES and path.is_file())
    if len(kinds := {path.suffix for path in files}) > 1:
        raise SourceError(f"{pattern} fits {' and '.join(sorted(kinds))} files; name those of one kind")
    return tuple(files)


def _json(path: Path, shard_size: int, names: ColumnNames, *, is_array: bool, is_table: bool) -> JsonSource:
    """A table when it is known to be one, when fields are named, or when its first record says `file_name`."""
    first = first_object(path, is_array=is_array)
    columns = None
    if first is not None and (is_table or names.given or "file_name" in first):
        columns = names.found_in(first, f"the first record of {path}")
    return JsonSource(path, shard_size, is_array=is_array, columns=columns)


def _expanded(pattern: Path) -> Iterator[Path]:
    """The files of a pattern, each of which must be there."""
    parts = _RANGE.split(pattern.name)
    ranges = [
        [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        for first, last in zip(parts[1::3], parts[2::3], strict=True)
    ]
    for numbers in product(*ranges):
        texts = [*(text for pair in zip(parts[::3], numbers, strict=False) for text in pair), parts[-1]]
        path = pattern.with_name("".join(texts))
        if not path.is_file():
            raise SourceError(f"{pattern}: expected the file {path.name}, which is not there; name those that are")
        yield path


def root_of(path: Path, image_root: Path | None) -> Path:
    """The folder that the image paths of a file start from; the file's own when `image_root` is None.

    Raises:
        SourceError: it is not a folder.
    """
    root = path.parent if image_root is None else image_root
    # A folder that the file is not in either is an error about the file.
    if root != path.parent and not root.is_dir():
        raise SourceError(f"the image root {root} is not a folder")
    return root


def root_of_data(data: Path, image_root: Path | None) -> Path:
    """The folder that the image paths of a source start from: its own when `image_root` is None.

    A folder of archives is one itself.
    """
    if image_root is not None:
        return image_root
    return data if data.is_dir() else data.parent


def name_of_data(data: Path) -> str:
    """What people call a source: its name without extension, of a pattern that of its folder."""
    return data.absolute().parent.name if is_pattern(data) else data.stem


def content_of(path: Path) -> str:
    """The SHA-256 of a file, worked out once in a process while the file stays as it is; of an archive one of its
    names, sizes and a part of its content (see `files_fingerprint`).

    Raises:
        SourceError: a file cannot be read.
    """
    if (archive := archive_at(path)) is not None:
        return archive.fingerprint()
    try:
        state = path.stat()
        return _content(path.absolute(), state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=64)
def _content(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return sha256_of(file)
