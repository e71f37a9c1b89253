"""Counting repeated hashes: exactly, or from a sample whose size is bounded."""

import hashlib

import numpy as np
import pytest

from aligngpt.levels.repeats import HashCounter


def hashes_of(values: range | list[int]) -> np.ndarray:
    digests = [hashlib.blake2b(str(value).encode(), digest_size=8).digest() for value in values]
    return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)


def test_hashes_are_counted_in_full_or_sampled_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aligngpt.levels.repeats.HASHES_AT_ONCE", 1000)
    # Each of 0…3999 once, each of 0…1999 once more, and 7 a hundred times.
    values = [*range(4000), *range(2000), *[7] * 98]
    exact, sampled = HashCounter(), HashCounter(500)
    for start in range(0, len(values), 300):
        part = values[start : start + 300]
        for counter in (exact, sampled):
            counter.add(hashes_of(part), np.arange(start, start + len(part)))
    assert exact.share == 1.0 and exact.repeats() == ((2000,) * 3, (4098,) * 3)
    assert exact.largest(2) == [(100, 7, 100), (2, 0, 2)]
    assert sampled.share in (1 / 8, 1 / 16) and len(sampled._hashes) <= 500
    groups, pairs = sampled.repeats()
    assert groups.low <= 2000 <= groups.high and pairs.low <= 4098 <= pairs.high
    assert HashCounter().repeats() == ((0,) * 3, (0,) * 3) and HashCounter().largest(3) == []


@pytest.mark.parametrize("seed", range(6))
def test_a_placeholder_picture_is_found_however_few_hashes_are_kept(seed: int) -> None:
    generator = np.random.default_rng(seed)
    hashes = generator.integers(0, 2**64, 25_000, dtype=np.uint64)
    hashes[generator.choice(25_000, 5_000, replace=False)] = hashes[0]
    counter = HashCounter(1000)
    for start in range(0, 25_000, 500):
        counter.add(hashes[start : start + 500], np.arange(start, start + 500))
    [group] = counter.largest(1)
    assert group[0] == pytest.approx(5_000, rel=0.35)
    assert hashes[group[1]] == hashes[0]
    groups, pairs = counter.repeats()
    assert groups[1] <= 1 <= groups[2] and pairs[1] <= 5_001 <= pairs[2]
