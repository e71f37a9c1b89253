"""A source of pairs that are listed in memory, and pictures for it."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_scorers import CAPTION_WORDS

from aligngpt.data.images.reference import Picture
from aligngpt.data.records.pairs import Pair, PairSource, Unusable
from aligngpt.data.sources.base import Record, Shard


class ListedPairs(PairSource):
    """Captions and the names of their pictures in a folder, cut into shards; a caption of None is no pair.

    `fails_at` is a shard whose reading ends in `error`, by default as Ctrl-C would end it.
    """

    kind = "listed"  # type: ignore[assignment]
    place = "the listed pairs"

    def __init__(self, rows: Sequence[tuple[str | None, str]], root: Path, shard_size: int) -> None:
        self.rows, self.root, self.shard_size = rows, root, shard_size
        self.fails_at: int | None = None
        self.error: type[BaseException] = KeyboardInterrupt
        self.was_read: list[int] = []

    def shards(self) -> list[Shard]:
        starts = range(0, len(self.rows), self.shard_size)
        sizes = [min(self.shard_size, len(self.rows) - start) for start in starts]
        return [Shard(index, f"rows[{start}:]", sizes[index]) for index, start in enumerate(starts)]

    def read(self, shard: Shard) -> Iterator[Pair | Unusable]:
        self.was_read.append(shard.index)
        start = shard.index * self.shard_size
        for record, (caption, name) in enumerate(self.rows[start : start + self.shard_size]):
            if shard.index == self.fails_at and record == 1:
                raise self.error
            if caption is None:
                yield Unusable(record, f"pair-{start + record}", "turns", "there is no caption")
            else:
                yield Pair(record, f"pair-{start + record}", caption, Picture(name, self.root / name))

    def settings(self) -> dict[str, str | None]:
        return {}

    def _pair(self, record: Record, number: int) -> Pair | Unusable:
        raise NotImplementedError("`read` makes the pairs")

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.rows).encode()).hexdigest()


def draw_pictures(folder: Path, count: int) -> list[str]:
    """Pictures of many sizes, no two alike, as `0.png`…; returns their names."""
    generator = np.random.default_rng(8)
    for index in range(count):
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40 + index, 36 + 2 * index)).save(folder / f"{index}.png")
    return [f"{index}.png" for index in range(count)]


def random_captions(count: int) -> list[str]:
    """Captions of 1 to 7 words, each followed by its number, which the tiny tokenizers do not know."""
    generator = np.random.default_rng(9)
    return [
        " ".join(generator.choice(CAPTION_WORDS, size=generator.integers(1, 8))) + f" {index}" for index in range(count)
    ]
