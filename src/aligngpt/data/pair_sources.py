"""Which kind of source of pairs is somewhere: told by what is there, not by what a folder is called."""

import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, cast

from aligngpt.data.pair_columns import ColumnNames
from aligngpt.data.pair_csv import CsvPairs
from aligngpt.data.pair_json import JsonPairs, JsonTablePairs, LlavaPairs
from aligngpt.data.pair_json_array import read_array
from aligngpt.data.pair_ranges import BOM, BrokenLine, json_of, read_lines, text_start
from aligngpt.data.pair_tars import TarPairs
from aligngpt.data.pairs import PairSource
from aligngpt.data.sources import SourceError
from aligngpt.data.text_files import check_kind, check_lines
from aligngpt.hub_names import near_paths

if TYPE_CHECKING:
    from aligngpt.data.pair_parquet import ParquetPairs

ACCEPTED = (
    "a JSON array or JSON lines of LLaVA records, a CSV file, Parquet or tar files or a folder of them, a pattern such "
    "as {00000..00041}.tar or *.parquet, a folder of pictures with captions.csv, metadata.csv or metadata.jsonl, a "
    "data set saved by `save_to_disk`, or the name owner/name of one on the Hugging Face hub"
)
TABLES = ("captions.csv", "metadata.csv", "metadata.jsonl")

ARCHIVES = (".parquet", ".tar")

LOOK_AT = 100
"""Records among which the first JSON object of a file is looked for."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WILD = re.compile(r"[*?\[]")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILE_SUFFIXES = {".json", ".jsonl", ".csv", ".parquet", ".tar"}


def choose_source(source: str | Path, *, image_root: Path | None, shard_size: int, names: ColumnNames) -> PairSource:
    """The source of pairs that is at `source`; see `open_pairs`.

    Raises:
        SourceError: nothing is there, or nothing that is accepted.
    """
    if image_root is not None and not image_root.is_dir():
        raise SourceError(f"the image root {image_root} is not a folder")
    # A worker that gets the source may run in another folder.
    path = Path(source).absolute()
    image_root = image_root and image_root.absolute()
    try:
        if path.is_dir():
            return _in_folder(path, image_root or path, shard_size, names)
        if path.exists():
            return _in_file(path, image_root or path.parent, shard_size, names)
        if _RANGE.search(path.name):
            return _of_files(path.parent, tuple(_expanded(path)), image_root or path.parent, shard_size, names)
        if files := _matching(path):
            return _of_files(path.parent, files, image_root or path.parent, shard_size, names)
    except (OSError, ValueError) as error:
        raise SourceError(f"{str(source)!r} cannot be read: {error}") from error
    if _HUB_NAME.fullmatch(str(source)) and path.suffix not in _FILE_SUFFIXES and not path.parent.exists():
        from aligngpt.data.pair_datasets import DatasetPairs

        return DatasetPairs(str(source), image_root or Path.cwd(), shard_size, names)
    near = near_paths(Path(source))
    raise SourceError(
        f"{source} does not exist; " + (f"did you mean {' or '.join(near)}? " if near else "") + f"expected {ACCEPTED}"
    )


def find_archive(path: Path, *, image_root: Path | None) -> "ParquetPairs | TarPairs | None":
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
    found = choose_source(path, image_root=image_root, shard_size=1, names=ColumnNames())
    if found.kind not in ("parquet", "webdataset"):
        raise SourceError(f"{path} is a source of the kind {found.kind}; name a JSON file, or Parquet or tar files")
    return cast("ParquetPairs | TarPairs", found)


def is_pattern(path: Path) -> bool:
    """Whether a name stands for several files, as `{00000..00041}.tar` and `*.parquet` do."""
    return not path.exists() and (_RANGE.search(path.name) or _WILD.search(path.name)) is not None


def _in_folder(folder: Path, root: Path, shard_size: int, names: ColumnNames) -> PairSource:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        from aligngpt.data.pair_datasets import DatasetPairs

        return DatasetPairs(folder, root, shard_size, names)
    for name in TABLES:
        if (folder / name).is_file():
            return _in_file(folder / name, root, shard_size, names, is_table=True)
    # Before Parquet: img2dataset writes a table of what it fetched beside each tar file.
    tars = sorted(path for path in folder.rglob("*.tar") if path.is_file())
    tables = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    beside_tars = {path.parent for path in tars}
    if tars and (folder in beside_tars or all(path.parent in beside_tars for path in tables)):
        return TarPairs(folder, tars, names)
    if tables:
        from aligngpt.data.pair_parquet import ParquetPairs

        return ParquetPairs(folder, tables, root, shard_size, names)
    found = ", ".join(sorted(path.name for path in islice(folder.iterdir(), 5))) or "nothing"
    raise SourceError(f"{folder} is no source of pairs: expected {ACCEPTED}; found {found}")


def _in_file(path: Path, root: Path, shard_size: int, names: ColumnNames, *, is_table: bool = False) -> PairSource:
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise SourceError(f"{path} is empty")
    check_kind(path, head)
    if path.suffix == ".csv":
        return CsvPairs(path, root, shard_size, names)
    if kind := _archive_kind(path, head):
        return _of_files(path.parent, (path,), root, shard_size, names, kind)
    start = head.removeprefix(BOM).lstrip()[:1]
    if start in (b"[", b"{"):
        return _json(path, root, shard_size, names, is_array=start == b"[", is_table=is_table)
    raise SourceError(f"{path} is no source of pairs: expected {ACCEPTED}; found a file that begins {head[:20]!r}")


def _archive_kind(path: Path, head: bytes) -> str | None:
    """The suffix of the kind of archive that a file is; None where it is none."""
    if path.suffix == ".parquet" or head.startswith(b"PAR1"):
        return ".parquet"
    return ".tar" if path.suffix == ".tar" or tarfile.is_tarfile(path) else None


def _of_files(
    folder: Path, files: Sequence[Path], root: Path, shard_size: int, names: ColumnNames, kind: str = ""
) -> "ParquetPairs | TarPairs":
    """The archive that files of a pattern are together; its first file says of which kind."""
    if (kind or "".join(path.suffix for path in files[:1])) == ".parquet":
        from aligngpt.data.pair_parquet import ParquetPairs

        return ParquetPairs(folder, files, root, shard_size, names)
    return TarPairs(folder, files, names)


def _matching(pattern: Path) -> tuple[Path, ...]:
    """The Parquet and tar files that a pattern with `*`, `?` or `[…]` in its name fits, all of one kind."""
    if not _WILD.search(pattern.name) or not pattern.parent.is_dir():
        return ()
    files = sorted(path for path in pattern.parent.glob(pattern.name) if path.suffix in ARCHIVES and path.is_file())
    if len(kinds := {path.suffix for path in files}) > 1:
        raise SourceError(f"{pattern} fits {' and '.join(sorted(kinds))} files; name those of one kind")
    return tuple(files)


def _json(path: Path, root: Path, shard_size: int, names: ColumnNames, *, is_array: bool, is_table: bool) -> JsonPairs:
    """A table when it is known to be one, when fields are named, or when its first record says `file_name`."""
    first = next((value for value in islice(_values(path, is_array), LOOK_AT) if isinstance(value, dict)), None)
    if first is not None and (is_table or names.given or "file_name" in first):
        return JsonTablePairs(path, root, shard_size, is_array, names.found_in(first, f"the first record of {path}"))
    return LlavaPairs(path, root, shard_size, is_array)


def _values(path: Path, is_array: bool) -> Iterator[object]:
    if is_array:
        yield from (element.value for element in read_array(path))
        return
    check_lines(path)
    for line in read_lines(path, text_start(path)):
        if line.content.strip() and not isinstance(value := json_of(line), BrokenLine):
            yield value


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
