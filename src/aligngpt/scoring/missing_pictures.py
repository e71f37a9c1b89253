"""A wrong image root is noticed at the first pictures, rather than after every record was tried."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from aligngpt.data.records.pairs import Pair, PairSource
from aligngpt.data.rejects import TooManyRejects
from aligngpt.data.sources.base import Shard
from aligngpt.scoring.picture_marks import has_file
from aligngpt.scoring.picture_workers import Prepared, Refused

PICTURES_TO_JUDGE = 300

SHARDS_ASKED, RECORDS_ASKED = 20, 200
"""How many other shards are asked for a picture that is there, and the first records of each."""


class MissingPictures:
    """Watches what becomes of the first pictures of a shard.

    Args:
        source: what is scored.
        shard: the shard that is read.
    """

    def __init__(self, source: PairSource, shard: Shard) -> None:
        self._source = source
        self._shard = shard
        self._missing = 0
        self._is_judged = False

    def see(self, result: Prepared | Refused) -> None:
        """Take what became of the next picture.

        Raises:
            TooManyRejects: the first `PICTURES_TO_JUDGE` are all missing, and so are all others of this shard and
                those of other shards that are looked for.
        """
        if self._is_judged:
            return
        self._missing += 1
        if not isinstance(result, Refused) or result.reason != "missing":
            self._is_judged = True
        elif self._missing == PICTURES_TO_JUDGE:
            self._is_judged = True
            if not any(path is None or path.exists() for path in self._looked_for()):
                raise TooManyRejects(self._story())

    def _story(self) -> str:
        first = next((path for path in self._paths(self._shard) if path is not None), None)
        root = self._source.settings().get("image_root_absolute")
        where = "" if root is None else f" (the image root is {root})"
        return (
            f"none of the first {PICTURES_TO_JUDGE} pictures of {self._source.place} was found, nor any of the others "
            f"that were looked for; the first should be {first}{where}. Name the folder that the paths in the records "
            "start from with --image-root; --max-reject-share 1 scores what there is"
        )

    def _looked_for(self) -> Iterator[Path | None]:
        yield from self._paths(self._shard)
        shards = self._source.shards()
        for shard in shards[:: max(1, len(shards) // SHARDS_ASKED)]:
            yield from islice(self._paths(shard), RECORDS_ASKED)

    def _paths(self, shard: Shard) -> Iterator[Path | None]:
        """Where the pictures of a shard are; None for one that is not a file of its own."""
        for item in self._source.read(shard):
            if isinstance(item, Pair):
                yield item.picture.path if has_file(item.picture) else None
