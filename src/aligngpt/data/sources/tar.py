"""Tar files in the WebDataset layout."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from aligngpt.data.sources.base import BrokenRecord, Record, RecordSource, Shard
from aligngpt.data.sources.fingerprints import files_fingerprint
from aligngpt.data.sources.tar_members import BrokenTar
from aligngpt.data.sources.tar_samples import tar_samples


class TarSource(RecordSource):
    """Tar files, each of them a shard; a record's value is a `TarSample`.

    Args:
        folder: the folder that the files' names are relative to.
        files: the files, in order.
    """

    kind = "webdataset"

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.folder = self.base = folder
        self.files = tuple(files)

    def shards(self) -> Sequence[Shard]:
        return [
            Shard(index, path.relative_to(self.folder).as_posix(), None, path=path)
            for index, path in enumerate(self.files)
        ]

    def read(self, shard: Shard) -> Iterator[Record | BrokenRecord]:
        assert shard.path is not None
        for number, sample in enumerate(tar_samples(shard.path)):
            if isinstance(sample, BrokenTar):
                yield BrokenRecord(number, "broken_tar", sample.reason)
            else:
                yield Record(number, sample, f"{sample.key!r} in {shard.path}")

    def fingerprint(self) -> str:
        return files_fingerprint(self.files, self.folder)
