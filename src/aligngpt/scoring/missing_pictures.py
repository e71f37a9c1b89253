"""Detects a wrong image root at the first images, instead of after trying every record."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from aligngpt.data.records.pairs import Pair, PairSource
from aligngpt.data.rejects import TooManyRejects
from aligngpt.data.sources.base import Shard
from aligngpt.scoring.picture_marks import has_file
from aligngpt.scoring.preparation import Prepared, Refused

PICTURES_TO_JUDGE = 300

SHARDS_ASKED, RECORDS_ASKED = 20, 200
"""The number of other shards that are searched for an existing image, and of records at the start of each."""


class MissingPictures:
    """Checks whether the first images of a shard are all missing.

    Args:
        source: the source being scored.
        shard: the shard being read.
    """

    def __init__(self, source: PairSource, shard: Shard) -> None:
        self._source = source
        self._shard = shard
        self._missing = 0
        self._is_judged = False

    def see(self, result: Prepared | Refused) -> None:
        """Take the result for the next image.

        Raises:
            TooManyRejects: the first `PICTURES_TO_JUDGE` images are all missing, and so are all others of this shard
                and those sampled from other shards.
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
            f"none of the first {PICTURES_TO_JUDGE} images of {self._source.place} was found, nor any of the others "
            f"that were checked; the first should be {first}{where}. Use --image-root to give the folder that the "
            "paths in the records are relative to; --max-reject-share 1 scores the images that do exist"
        )

    def _looked_for(self) -> Iterator[Path | None]:
        yield from self._paths(self._shard)
        shards = self._source.shards()
        for shard in shards[:: max(1, len(shards) // SHARDS_ASKED)]:
            yield from islice(self._paths(shard), RECORDS_ASKED)

    def _paths(self, shard: Shard) -> Iterator[Path | None]:
        """The image paths of a shard; None for an image that is not a separate file."""
        for item in self._source.read(shard):
            if isinstance(item, Pair):
                yield item.picture.path if has_file(item.picture) else None
