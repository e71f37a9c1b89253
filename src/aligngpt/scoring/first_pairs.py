"""The first pairs of a source, to try a model and the settings before scoring all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice

from aligngpt.data.records.pairs import Pair, PairSource, Unusable
from aligngpt.data.sources.base import Record, Shard


class FirstPairs(PairSource):
    """The first records of a source. Its fingerprint is that of the whole source.

    Args:
        source: the whole source.
        limit: number of records, at least 1; all of them if the source has fewer.

    Raises:
        ValueError: `limit` is not positive.
    """

    def __init__(self, source: PairSource, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, found {limit}")
        super().__init__(source.records, source.root, source.place)
        self.source, self.limit = source, limit

    @property
    def kind(self) -> str:
        """The kind of the whole source."""
        return self.source.kind

    def shards(self) -> Sequence[Shard]:
        """The first shards, the last one shortened; each states its number of records."""
        return self._shards

    def read(self, shard: Shard) -> Iterator[Pair | Unusable]:
        """See `PairSource.read`."""
        return islice(self.source.read(self.source.shards()[shard.index]), shard.records)

    def fingerprint(self) -> str:
        """See `PairSource.fingerprint`."""
        return self.source.fingerprint()

    def settings(self) -> dict[str, str | None]:
        """See `PairSource.settings`."""
        return self.source.settings()

    def remark(self) -> str | None:
        """See `PairSource.remark`."""
        return self.source.remark()

    @cached_property
    def _shards(self) -> list[Shard]:
        found: list[Shard] = []
        left = self.limit
        for shard in self.source.shards():
            # A tar file does not state its number of records.
            known = shard.records
            count = sum(1 for _ in islice(self.source.read(shard), left)) if known is None else min(known, left)
            found.append(replace(shard, records=count))
            left -= count
            if not left:
                break
        return found

    def _pair(self, record: Record, number: int) -> Pair | Unusable:
        return self.source._pair(record, number)
