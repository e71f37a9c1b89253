"""Open the source of records at a path; its kind is detected from the files there, not from the folder's name."""

import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Union, cast

from aligngpt.data.sources.base import RecordSource, SourceError
from aligngpt.data.sources.byte_ranges import BOM
from aligngpt.data.sources.coco import CocoSource, is_coco
from aligngpt.data.sources.companions import folders_in, is_hidden
from aligngpt.data.sources.compressed import can_decompress, decompress, name_within
from aligngpt.data.sources.converted import ConvertedSource
from aligngpt.data.sources.csv import CsvSource
from aligngpt.data.sources.fields import IMAGE_COLUMNS, ColumnNames, is_row
from aligngpt.data.sources.fingerprints import file_content
from aligngpt.data.sources.json import JsonSource, first_object
from aligngpt.data.sources.picture_files import PictureFiles, has_picture_files
from aligngpt.data.sources.remote import RemotePath, located
from aligngpt.data.sources.saved import is_saved, saved_files
from aligngpt.data.sources.tar import TarSource
from aligngpt.data.sources.text_files import check_kind
from aligngpt.hub_names import near_paths

if TYPE_CHECKING:
    from aligngpt.data.sources.parquet import ParquetSource

Archive = Union["ParquetSource", TarSource]
"""A source that holds images together with their texts."""

ACCEPTED = (
    "a JSON array or JSON lines of LLaVA records, a CSV or TSV file, any of these compressed (.gz, .zst, .bz2, .xz), "
    "COCO captions, Parquet or tar files or a folder of them, a pattern such as {00000..00041}.tar or *.parquet, a "
    "folder of images with captions.csv, metadata.csv or metadata.jsonl or with a .txt beside each image, a data set "
    "saved by `save_to_disk`, or the owner/name of one on the Hugging Face hub"
)
TABLES = ("captions.csv", "metadata.csv", "metadata.jsonl")

ARCHIVES = (".parquet", ".tar")

TABLE_SUFFIXES = (".csv", ".tsv")

SPLITS = ("train", "validation", "valid", "val", "dev", "test")

_OF_SPLIT = re.compile(f"({'|'.join(SPLITS)})[-_.]")
"""How the name of a split's file begins."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WILD = re.compile(r"[*?\[]")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILE_SUFFIXES = {".json", ".jsonl", ".csv", ".tsv", ".gz", ".zst", ".bz2", ".xz", ".parquet", ".tar"}


def find_records(source: str | Path, *, shard_size: int, names: ColumnNames) -> RecordSource:
    """Open the records at `source`.

    Args:
        source: see `open_pairs`.
        shard_size: maximum number of records per shard, for sources that can be split (a tar file cannot).
        names: the fields of rows to read; if any are named, JSON records are read as rows too.

    Raises:
        SourceError: there is nothing at `source`, or nothing that is accepted.
    """
    # A worker that gets the source may have a different working directory.
    path = located(source).absolute()
    try:
        if isinstance(path, RemotePath):
            return _at_address(path, shard_size, names)
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
    """The Parquet or tar files at `path`, a file, a folder or a pattern, or the Arrow files of a saved data set; None
    for any other file or a missing one, and for a folder of images with a table or with their captions beside them.

    Raises:
        SourceError: a saved data set is incomplete, a folder has nothing to read, a pattern has no archives, or a file
            of a pattern does not exist.
    """
    path = located(path)
    if path.is_file():
        try:
            with path.open("rb") as file:
                kind = _archive_kind(path, file.read(4))
        except OSError:
            return None  # The reader for other formats reports why it cannot be read.
        if kind is None:
            return None
    elif not path.is_dir() and not is_pattern(path):
        return None
    if path.is_dir() and not isinstance(path, RemotePath) and is_saved(path):
        from aligngpt.data.sources.parquet import ParquetSource

        return ParquetSource(path.absolute(), saved_files(path.absolute()), 1, ColumnNames())
    found = find_records(path, shard_size=1, names=ColumnNames())
    if found.kind not in ("parquet", "webdataset"):
        return None
    return cast("Archive", found)


def is_pattern(path: Path) -> bool:
    """Whether a name stands for several files, as `{00000..00041}.tar` and `*.parquet` do."""
    is_named_so = (_RANGE.search(path.name) or _WILD.search(path.name)) is not None
    return is_named_so and not located(path).exists()


def _at_address(path: RemotePath, shard_size: int, names: ColumnNames) -> RecordSource:
    """The records at an address, each file of which is read as it is now."""
    if _RANGE.search(path.name) or _WILD.search(path.name):
        files = tuple(_expanded(path)) if _RANGE.search(path.name) else _matching(path)
        if not files:
            raise SourceError(f"{path} matches no .parquet or .tar file; correct the address")
        return _of_files(path.parent, files, shard_size, names)
    if path.is_file():
        return _in_file(path.pinned(), shard_size, names)
    if not path.is_dir():
        raise SourceError(f"{path} does not exist: there is no such object or folder; correct the address")
    every = [one for one in path.rglob("*") if not is_hidden(one.name)]
    for name in TABLES:
        if found := [one for one in every if one == path / name]:
            return _in_file(found[0], shard_size, names, is_table=True)
    return _archives_in(path, every, names, shard_size)


def _archives_in(folder: RemotePath, every: Sequence[RemotePath], names: ColumnNames, shard_size: int) -> RecordSource:
    """The Parquet or tar files of an address, by the same rules as in a folder."""
    if (source := _of_archives(folder, every, names, shard_size)) is not None:
        return source
    found = ", ".join(path.name for path in every[:5]) or "nothing"
    raise SourceError(
        f"{folder} has neither .tar nor .parquet files nor {', '.join(TABLES)}, as an address must; found {found}. "
        "Pack a folder of images into tar files, or download it"
    )


def _in_folder(folder: Path, shard_size: int, names: ColumnNames) -> RecordSource:
    if is_saved(folder):
        from aligngpt.data.sources.hub import DatasetSource

        return DatasetSource(folder, shard_size, names)
    for name in TABLES:
        if (folder / name).is_file():
            return _in_file(folder / name, shard_size, names, is_table=True)
    every = sorted(_archives_below(folder))
    # img2dataset writes a table of its downloads beside folders of images too, and levels may lie below the folder.
    has_tars = any(path.suffix == ".tar" for path in every)
    if not has_tars and not any(_names_images(path, names) for path in every) and has_picture_files(folder):
        return PictureFiles(folder, shard_size, names)
    if (source := _of_archives(folder, every, names, shard_size)) is not None:
        return source
    found = ", ".join(sorted(path.name for path in islice(folder.iterdir(), 5))) or "nothing"
    raise SourceError(f"{folder} is not a source of pairs: expected {ACCEPTED}; found {found}")


def _of_archives(folder: Path, every: Sequence[Path], names: ColumnNames, shard_size: int) -> RecordSource | None:
    """The source of the tar or Parquet files among those found below a folder; None if there are none."""
    tars = [path for path in every if path.suffix == ".tar"]
    tables = [path for path in every if path.suffix == ".parquet"]
    beside_tars = {path.parent for path in tars}
    # Before Parquet: img2dataset writes a Parquet table of its downloads beside each tar file.
    if tars and (folder in beside_tars or all(path.parent in beside_tars for path in tables)):
        return TarSource(folder, _of_one_split(folder, tars))
    if tables:
        from aligngpt.data.sources.parquet import ParquetSource

        return ParquetSource(folder, _of_one_split(folder, tables), shard_size, names)
    return None


def _archives_below(folder: Path) -> Iterator[Path]:
    """Yield the Parquet and tar files at any depth, except those that `aligngpt score` wrote."""
    for below in folders_in(folder, hidden=True):
        files = (path for path in below.iterdir() if path.suffix in ARCHIVES and path.is_file())
        found = [path for path in files if not is_hidden(path.name)]
        if found and not _has_scores(below):
            yield from found


def _has_scores(folder: Path) -> bool:
    """Whether a folder has the manifest of `aligngpt score`; other folders have files of its name too."""
    try:
        return b'"model_fingerprint"' in (folder / "manifest.json").read_bytes()
    except OSError:
        return False


def _of_one_split(folder: Path, files: Sequence[Path]) -> Sequence[Path]:
    """The files, if their names or folders do not tell of several splits, as those of data sets on the hub do.

    Raises:
        SourceError: they do.
    """
    splits: dict[str, Path] = {}
    for path in files:
        split = _split_of(path.relative_to(folder))
        if split is not None:
            splits.setdefault(split, path)
    if len(splits) > 1:
        split, path = next(iter(splits.items()))
        one = path.with_name(f"{split}*{path.suffix}") if path.name.startswith(split) else path.parent
        raise SourceError(f"{folder} has the splits {' and '.join(splits)}; name the files of one, such as {one}")
    return files


def _split_of(path: Path) -> str | None:
    """The split that a file's name begins with, or that one of its folders is called; None if there is none."""
    if named := _OF_SPLIT.match(path.name):
        return named[1]
    return next((part for part in reversed(path.parts[:-1]) if part in SPLITS), None)


def _names_images(table: Path, names: ColumnNames) -> bool:
    """Whether a Parquet file has a column of images."""
    from aligngpt.data.sources.parquet_rows import open_parquet

    with open_parquet(table) as file:
        return any(name in (names.image, *IMAGE_COLUMNS) for name in file.schema_arrow.names)


def _in_file(path: Path, shard_size: int, names: ColumnNames, *, is_table: bool = False) -> RecordSource:
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise SourceError(f"{path} is empty")
    if can_decompress(head):
        opened = partial(_in_file, shard_size=shard_size, names=names, is_table=is_table)
        return ConvertedSource(path, name_within(path), decompress, opened)
    check_kind(path, head)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return CsvSource(path, shard_size, names)
    if kind := _archive_kind(path, head):
        return _of_files(path.parent, (path,), shard_size, names, kind)
    start = head.removeprefix(BOM).lstrip()[:1]
    if start == b"{" and is_coco(path):
        return CocoSource(path, shard_size, names)
    if start in (b"[", b"{"):
        return _json(path, shard_size, names, is_array=start == b"[", is_table=is_table)
    raise SourceError(
        f"{path} is not a source of pairs: expected {ACCEPTED}; found a file that begins with {head[:20]!r}"
    )


def _archive_kind(path: Path, head: bytes) -> str | None:
    """The suffix for a file's kind of archive; None if it is not an archive."""
    if path.suffix == ".parquet" or head.startswith(b"PAR1"):
        return ".parquet"
    return ".tar" if path.suffix == ".tar" or _is_tar(path) else None


def _is_tar(path: Path) -> bool:
    if not isinstance(path, RemotePath):
        return tarfile.is_tarfile(path)
    with path.open("rb") as file:
        return tarfile.is_tarfile(file)


def _of_files(folder: Path, files: Sequence[Path], shard_size: int, names: ColumnNames, kind: str = "") -> "Archive":
    """The archive that the files of a pattern form; the first file determines its kind."""
    if (kind or "".join(path.suffix for path in files[:1])) == ".parquet":
        from aligngpt.data.sources.parquet import ParquetSource

        return ParquetSource(folder, files, shard_size, names)
    return TarSource(folder, files)


def _matching(pattern: Path) -> tuple[Path, ...]:
    """The Parquet or tar files, all of one kind, that match a pattern with `*`, `?` or `[…]` in its name."""
    if not _WILD.search(pattern.name) or not pattern.parent.is_dir():
        return ()
    found = [path for path in pattern.parent.glob(pattern.name) if path.suffix in ARCHIVES]
    if not is_hidden(pattern.name):
        found = [path for path in found if not is_hidden(path.name)]
    # A listing of an address has only files.
    files = sorted(path for path in found if isinstance(path, RemotePath) or path.is_file())
    if len(kinds := {path.suffix for path in files}) > 1:
        raise SourceError(f"{pattern} matches {' and '.join(sorted(kinds))} files; choose one kind")
    return tuple(files)


def _json(path: Path, shard_size: int, names: ColumnNames, *, is_array: bool, is_table: bool) -> JsonSource:
    """Open a JSON file, as a table if it is known to be one, fields are named, or its first record is a row."""
    first = first_object(path, is_array=is_array)
    columns = None
    if first is not None and (is_table or names.given or is_row(first)):
        columns = names.found_in(first, f"the first record of {path}")
    return JsonSource(path, shard_size, is_array=is_array, columns=columns)


def _expanded(pattern: Path) -> Iterator[Path]:
    """Yield the files of a numeric range pattern, each of which must exist."""
    parts = _RANGE.split(pattern.name)
    for first, last in zip(parts[1::3], parts[2::3], strict=True):
        if int(last) < int(first):
            raise SourceError(f"{pattern} has a range that ends before it begins; write {{{last}..{first}}}")
    # One listing of an address costs less than a question for each file.
    there = {path.name: path for path in pattern.parent.iterdir()} if isinstance(pattern, RemotePath) else None
    ranges = [
        [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        for first, last in zip(parts[1::3], parts[2::3], strict=True)
    ]
    for numbers in product(*ranges):
        texts = [*(text for pair in zip(parts[::3], numbers, strict=False) for text in pair), parts[-1]]
        path = pattern.with_name("".join(texts))
        if there is not None:
            path = there.get(path.name, path)
        if not (path.is_file() if there is None else path.name in there):
            raise SourceError(f"{pattern}: expected the file {path.name}, which does not exist; name existing files")
        yield path


def root_of(path: Path, image_root: Path | None) -> Path:
    """The folder that the image paths in a file are relative to; the source's own if `image_root` is None.

    Raises:
        SourceError: it is not a folder.
    """
    path, root = located(path), root_of_data(path, image_root)
    # If the file's own folder does not exist, the error should be about the file, so it is not raised here.
    if root != path.parent and not root.is_dir():
        raise SourceError(f"the image root {root} is not a folder")
    return root


def root_of_data(data: Path, image_root: Path | None) -> Path:
    """The folder that the image paths of a source are relative to; the source's own if `image_root` is None.

    For a folder, that is the folder itself.
    """
    if image_root is not None:
        return located(image_root)
    data = located(data)
    return data if data.is_dir() else data.parent


def name_of_data(data: Path) -> str:
    """The display name of a source: its name without extension, or for a pattern, the name of its folder."""
    return located(data).absolute().parent.name if is_pattern(data) else data.stem


def content_of(path: Path) -> str:
    """The content of a file, see `file_content`; for an archive, a hash of the names, sizes and
    part of the content of its files (see `files_fingerprint`), and for a folder, the fingerprint of its records.

    Raises:
        SourceError: a file cannot be read.
    """
    path = located(path)
    if (archive := archive_at(path)) is not None:
        return archive.fingerprint()
    if path.is_dir():
        return find_records(path, shard_size=1, names=ColumnNames()).fingerprint()
    return file_content(path)
