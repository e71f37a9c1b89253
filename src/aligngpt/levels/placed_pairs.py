"""Pairs by their place in a source: their captions and images, and their ids and scores in the parts."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aligngpt.data.images.opening import ImageError
from aligngpt.data.images.reference import Picture
from aligngpt.data.records.pairs import Pair, PairSource
from aligngpt.data.sources.base import Shard
from aligngpt.levels.repeats import HashCounter
from aligngpt.levels.scored_pairs import ScoredPairs
from aligngpt.progress import Meter
from aligngpt.reports.thumbnails import Thumbnail, shrunk
from aligngpt.scoring.score_files import read_part

RECORD_BITS = 32


class PlacedPair(NamedTuple):
    """A scored pair: its place (see `_place`), id and score."""

    place: int
    id: str
    score: float


class SeenPair(NamedTuple):
    """The content of a pair in the source."""

    caption: str | None
    picture: Thumbnail
    picture_name: str


def count_captions(table: ScoredPairs, source: PairSource, shards: set[int] | None) -> HashCounter:
    """Count the captions of the scored pairs of some shards; of all shards if None."""
    counter = HashCounter()
    chosen = [shard for shard in source.shards() if shards is None or shard.index in shards]
    with Meter("comparing captions", len(chosen), unit="shards") as meter:
        for shard in chosen:
            scored = set(_part(table.folder, shard.index, "record")["record"])
            places, hashes = [], []
            for pair in source.read(shard):
                if isinstance(pair, Pair) and pair.record in scored:
                    text = pair.caption.encode("utf-8", "surrogatepass")
                    hashes.append(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big"))
                    places.append(place_of(shard, pair.record))
            counter.add(np.array(hashes, dtype=np.uint64), np.array(places, dtype=np.int64))
            meter.advance()
    return counter


def pick_pairs(source: PairSource, places: Iterable[int]) -> dict[int, SeenPair]:
    """The pairs at some places; only shards that contain one of them are read."""
    found = {}
    wanted = _by_shard(places)
    with Meter("opening images", sum(map(len, wanted.values())), unit="images") as meter:
        for shard in source.shards():
            left = set(wanted.get(shard.index, ()))
            records = source.read(shard) if left else iter(())
            for pair in records:
                if pair.record in left:
                    left.discard(pair.record)
                    found[place_of(shard, pair.record)] = (
                        SeenPair(pair.caption, _thumbnail(pair.picture), pair.picture.name)
                        if isinstance(pair, Pair)
                        else SeenPair(None, Thumbnail(problem=_words(pair.reason)), "")
                    )
                    meter.advance()
                if not left:
                    break
    return found


def _thumbnail(picture: Picture) -> Thumbnail:
    try:
        return shrunk(picture.open())
    except ImageError as error:
        return Thumbnail(problem=_words(error.reason))


def pairs_at(table: ScoredPairs, places: Iterable[int]) -> dict[int, PlacedPair]:
    """The ids and scores of the pairs at some places."""
    found = {}
    for shard, records in _by_shard(places).items():
        part = _part(table.folder, shard, "record", "id", table.column)
        for record, id, score in zip(part["record"], part["id"], part[table.column], strict=True):
            if record in records:
                place = (shard << RECORD_BITS) | record
                found[place] = PlacedPair(place, id, score)
    return found


def _part(folder: Path, shard: int, *columns: str) -> dict[str, list]:
    return read_part(folder, shard, columns).to_pydict()


def _by_shard(places: Iterable[int]) -> dict[int, set[int]]:
    """Record numbers by shard number."""
    records: dict[int, set[int]] = defaultdict(set)
    for place in places:
        records[place >> RECORD_BITS].add(place & ((1 << RECORD_BITS) - 1))
    return records


def place_of(shard: Shard, record: int) -> int:
    """Encode a shard and a record number in it as one integer."""
    return (shard.index << RECORD_BITS) | record


def _words(reason: str) -> str:
    return reason.replace("_", " ")
