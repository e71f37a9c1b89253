"""Which kind of source of pairs is somewhere: told by what is there, not by what a folder is called."""

import json
import re
import tarfile
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

from aligngpt.data.pair_columns import ColumnNames
from aligngpt.data.pair_csv import CsvPairs
from aligngpt.data.pair_json import JsonPairs, JsonTablePairs, LlavaPairs
from aligngpt.data.pair_json_array import read_array
from aligngpt.data.pair_ranges import BOM, decoded, read_lines, text_start
from aligngpt.data.pair_tars import TarPairs
from aligngpt.data.pairs import PairSource
from aligngpt.data.sources import SourceError

ACCEPTED = (
    "a JSON array or JSON lines of LLaVA records, a CSV file, Parquet or tar files or a folder of them, a pattern such "
    "as {00000..00041}.tar, a folder of pictures with captions.csv, metadata.csv or metadata.jsonl, a data set saved "
    "by `save_to_disk`, or the name owner/name of one on the Hugging Face hub"
)
TABLES = ("captions.csv", "metadata.csv", "metadata.jsonl")

LOOK_AT = 100
"""Records among which the first JSON object of a file is looked for."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
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
            return TarPairs(path.parent, tuple(_expanded(path)), names)
    except (OSError, ValueError) as error:
        raise SourceError(f"{str(source)!r} cannot be read: {error}") from error
    if _HUB_NAME.fullmatch(str(source)) and path.suffix not in _FILE_SUFFIXES and not path.parent.exists():
        from aligngpt.data.pair_datasets import DatasetPairs

        return DatasetPairs(str(source), image_root or Path.cwd(), shard_size, names)
    raise SourceError(f"{source} does not exist; expected {ACCEPTED}")


def _in_folder(folder: Path, root: Path, shard_size: int, names: ColumnNames) -> PairSource:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        from aligngpt.data.pair_datasets import DatasetPairs

        return DatasetPairs(folder, root, shard_size, names)
    for name in TABLES:
        if (folder / name).is_file():
            return _in_file(folder / name, root, shard_size, names, is_table=True)
    # Before Parquet: img2dataset writes a table of what it fetched beside each tar file.
    if tars := sorted(path for path in folder.glob("*.tar") if path.is_file()):
        return TarPairs(folder, tars, names)
    if tables := sorted(path for path in folder.rglob("*.parquet") if path.is_file()):
        from aligngpt.data.pair_parquet import ParquetPairs

        return ParquetPairs(folder, tables, root, shard_size, names)
    found = ", ".join(sorted(path.name for path in islice(folder.iterdir(), 5))) or "nothing"
    raise SourceError(f"{folder} is no source of pairs: expected {ACCEPTED}; found {found}")


def _in_file(path: Path, root: Path, shard_size: int, names: ColumnNames, *, is_table: bool = False) -> PairSource:
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise SourceError(f"{path} is empty")
    if path.suffix == ".csv":
        return CsvPairs(path, root, shard_size, names)
    if path.suffix == ".parquet" or head.startswith(b"PAR1"):
        from aligngpt.data.pair_parquet import ParquetPairs

        return ParquetPairs(path.parent, (path,), root, shard_size, names)
    if path.suffix == ".tar" or tarfile.is_tarfile(path):
        return TarPairs(path.parent, (path,), names)
    start = head.removeprefix(BOM).lstrip()[:1]
    if start in (b"[", b"{"):
        return _json(path, root, shard_size, names, is_array=start == b"[", is_table=is_table)
    raise SourceError(f"{path} is no source of pairs: expected {ACCEPTED}; found a file that begins {head[:20]!r}")


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
    for line in read_lines(path, text_start(path)):
        try:
            yield json.loads(decoded(line, path))
        except (ValueError, RecursionError):
            continue


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
