"""Finds the samples of a file that repeat an earlier one, in about 30 bytes per sample and its id."""

import hashlib
from array import array

import numpy as np
from numpy.typing import NDArray

from aligngpt.checking.result import MOST_LISTED, Repeat, Repeats
from aligngpt.data.records.sample import Sample


class Seen:
    """What was seen of all samples: their numbers and ids, and hashes of their ids and contents.

    Of a hundred million different samples, two have the same 64-bit hash in one of some 3,700 files.
    """

    def __init__(self) -> None:
        self._records, self._ids, self._contents = array("q"), array("q"), array("q")
        self._named = array("b")
        self._texts, self._ends = bytearray(), array("q", [0])

    def __len__(self) -> int:
        return len(self._records)

    def add(self, sample: Sample, *, named: bool, picture: object) -> None:
        """Note a sample.

        Args:
            sample: numbered as in its file.
            named: whether it has an id of its own.
            picture: what identifies its images.
        """
        id = sample.id.encode(errors="surrogatepass")
        self._records.append(sample.record)
        self._named.append(named)
        self._ids.append(_hash(id))
        self._contents.append(_hash(repr((picture, sample.system, sample.turns)).encode(errors="surrogatepass")))
        self._texts += id
        self._ends.append(len(self._texts))

    def repeated_ids(self) -> Repeats:
        """The samples with the id of an earlier one."""
        named = np.flatnonzero(np.frombuffer(self._named, dtype=np.int8))
        return self._repeats(np.frombuffer(self._ids, dtype=np.int64)[named], named)

    def identical(self) -> Repeats:
        """The samples with the images, the system prompt and the turns of an earlier one."""
        return self._repeats(np.frombuffer(self._contents, dtype=np.int64), np.arange(len(self)))

    def _repeats(self, hashes: NDArray[np.int64], places: NDArray[np.int64]) -> Repeats:
        """The repeats among the samples at `places`, in order; both `(samples,)`."""
        if not len(hashes):
            return Repeats((), 0)
        order = np.argsort(hashes, kind="stable")
        is_first = np.concatenate([[True], np.diff(hashes[order]) != 0])
        firsts = order[is_first][np.cumsum(is_first) - 1]
        later, earlier = places[order[~is_first]], places[firsts[~is_first]]
        shown = np.argsort(later)[:MOST_LISTED]
        listed = zip(later[shown].tolist(), earlier[shown].tolist(), strict=True)
        return Repeats(
            tuple(Repeat(self._records[one], self._records[first], self._id(one)) for one, first in listed), len(later)
        )

    def _id(self, place: int) -> str:
        return self._texts[self._ends[place] : self._ends[place + 1]].decode(errors="surrogatepass")


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
