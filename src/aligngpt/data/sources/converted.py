"""Files that are converted once, into a cached file of another format, and then read like one of that format."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from aligngpt.cache import CacheError, cache_entry, entry_path
from aligngpt.data.sources.base import BrokenRecord, ReadColumns, Record, RecordSource, Shard, SourceError
from aligngpt.data.sources.fingerprints import file_content

FORMAT = 2
"""Format version of a cache entry; changing it rebuilds all entries."""

BROKEN_FILE = "broken.json"

Convert = Callable[[Path, Path], str | None]
"""Converts the first file into the second; returns what is wrong if only its beginning could be converted."""


class _Made(NamedTuple):
    """A converted file, and what is wrong if it lacks the rest of the original."""

    path: Path
    broken: str | None


class ConvertedSource(RecordSource):
    """A file that is read in another format. The converted file is cached under the content of the original.

    If the original is cut short, the last record of the source is a broken one that says so.

    Args:
        path: the original file.
        name: name of the converted file; its suffix may determine its format.
        convert: see `Convert`. A function of a module, so that it can be pickled.
        open_as: opens the converted file.

    Raises:
        SourceError: the original cannot be read, or changes while it is converted.
        CacheError: there is no room for the converted file.
    """

    def __init__(self, path: Path, name: str, convert: Convert, open_as: Callable[[Path], RecordSource]) -> None:
        self.path, self.base = path, path.parent
        self._name, self._convert, self._open_as = name, convert, open_as
        self._opened: tuple[RecordSource, _Made] | None = None
        self._shards: tuple[Shard, ...] = ()
        self.kind = self._open()[0].kind

    def __getstate__(self) -> dict[str, Any]:
        # Another machine converts the file into its own cache.
        return {**self.__dict__, "_opened": None}

    def shards(self) -> Sequence[Shard]:
        if not self._shards:
            source, made = self._open()
            with self._speaking_of_original(made):
                found = [replace(shard, path=self.path) for shard in source.shards()]
            if made.broken is not None and found[-1].records is not None:
                found[-1] = replace(found[-1], records=found[-1].records + 1)
            self._shards = tuple(found)
        return self._shards

    def read(self, shard: Shard) -> Iterator[Record | BrokenRecord]:
        source, made = self._open()
        number = -1
        with self._speaking_of_original(made):
            for record in source.read(shard):
                number = record.number
                if isinstance(record, BrokenRecord):
                    record = record._replace(detail=record.detail.replace(str(made.path), str(self.path)))
                yield record
        if made.broken is not None and shard.index == len(self.shards()) - 1:
            yield BrokenRecord(number + 1, "broken_compression", made.broken)

    def fingerprint(self) -> str:
        source, made = self._open()
        with self._speaking_of_original(made):
            return source.fingerprint()

    def columns(self) -> set[ReadColumns]:
        return self._open()[0].columns()

    def _open(self) -> tuple[RecordSource, _Made]:
        if self._opened is None:
            made = _made(self.path, self._name, self._convert)
            with self._speaking_of_original(made):
                self._opened = self._open_as(made.path), made
        return self._opened

    @contextmanager
    def _speaking_of_original(self, made: _Made) -> Iterator[None]:
        """Name the original file in errors, and say if it is cut short."""
        try:
            yield
        except SourceError as error:
            said = str(error).replace(str(made.path), str(self.path))
            raise SourceError(said if made.broken is None else f"{made.broken} ({said})") from error


def _made(path: Path, name: str, convert: Convert) -> _Made:
    """The converted file, from the cache if it is there."""
    content = file_content(path)
    key = json.dumps([FORMAT, f"{convert.__module__}.{convert.__qualname__}", name, content])
    folder = entry_path("converted", hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest())
    if (found := _entry(folder, name, path)) is not None:
        return found
    try:
        with cache_entry(folder, is_made=lambda: _entry(folder, name, path) is not None) as made:
            broken = convert(path, made / name)
            if file_content(path) != content:
                raise SourceError(
                    f"{path} changed while it was being read; run the command again once it is fully written"
                )
            # The file may later be read under another path.
            kept = None if broken is None else broken.replace(str(path), "")
            (made / BROKEN_FILE).write_text(json.dumps(kept), encoding="utf-8")
    except CacheError:
        # Another process may have converted it in the meantime.
        if (found := _entry(folder, name, path)) is None:
            raise
        return found
    return _Made(folder / name, broken)


def _entry(folder: Path, name: str, path: Path) -> _Made | None:
    try:
        broken = json.loads((folder / BROKEN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _Made(folder / name, None if broken is None else f"{path}{broken}")
