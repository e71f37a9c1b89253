"""Reads the shards of a job one after the other, ahead of the results for their images."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from aligngpt.data.images.reference import Picture
from aligngpt.data.records.pairs import Pair, PairSource, Unusable
from aligngpt.data.sources.base import Shard
from aligngpt.scoring.picture_workers import PICTURES_PER_TASK
from aligngpt.scoring.score_files import Reject


class Row(NamedTuple):
    """A pair without its image's content; `picture` is the number of the image in its shard."""

    record: int
    id: str
    caption: str
    picture: int


class ShardReading:
    """A shard being read.

    Attributes:
        shard: the shard.
        pairs: the pairs read so far.
        unusable: the records read so far that are not valid pairs.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.pairs: list[Row] = []
        self.unusable: list[Reject] = []

    @property
    def records(self) -> int:
        """Number of records read so far."""
        return len(self.pairs) + len(self.unusable)

    def pictures(self, items: Iterable[Pair | Unusable]) -> Iterator[Picture]:
        """Read the shard and yield its images; an image file named by several records is yielded once."""
        numbers: dict[Picture, int] = {}
        count = 0
        for item in items:
            if isinstance(item, Unusable):
                self.unusable.append(Reject(item.record, item.id, item.reason, item.detail))
                continue
            number = numbers.get(item.picture, count)
            # A lone surrogate, which no tokenizer accepts, becomes a question mark.
            caption = item.caption.encode("utf-8", "replace").decode("utf-8")
            self.pairs.append(Row(item.record, item.id, caption, number))
            if number == count:
                count += 1
                # Embedded content would stay in memory until the end of the shard; duplicates are found later, by hash.
                if item.picture.content is None:
                    numbers[item.picture] = number
                yield item.picture


class ShardsAhead:
    """The shards of a job, read as far ahead as the workers that open their images are.

    Args:
        source: the source of the pairs.
        shards: shards of the source.

    Attributes:
        begun: the shards that have been begun and not yet removed by the reader of the results, oldest first.
        failure: the error that ended the reading; to be raised when the shards before it are done.
    """

    def __init__(self, source: PairSource, shards: Iterable[Shard]) -> None:
        self.begun: deque[ShardReading] = deque()
        self.failure: Exception | None = None
        self._source = source
        self._shards = shards

    def tasks(self) -> Iterator[Sequence[Picture]]:
        """Yield the images of all shards, some of one shard at a time; an empty sequence ends each shard.

        Ends early if reading fails, see `failure`.
        """
        for shard in self._shards:
            reading = ShardReading(shard)
            self.begun.append(reading)
            try:
                pictures = reading.pictures(self._source.read(shard))
                task = list(islice(pictures, PICTURES_PER_TASK))
            except Exception as error:
                self.failure = error
                return
            while task:
                yield task
                try:
                    task = list(islice(pictures, PICTURES_PER_TASK))
                except Exception as error:
                    self.failure = error
                    return
            yield ()
