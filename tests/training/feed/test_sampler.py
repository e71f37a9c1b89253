"""The order of rows: random, and balanced within each optimiser step."""

from collections import Counter

import numpy as np
import pytest

from aligngpt.data.batches.rows import rows_of
from aligngpt.data.records.sample import Sample, Turn
from aligngpt.data.samples.mixtures import Mixture
from aligngpt.training.feed.sampler import BalancedSampler, Share, balanced_parts, rows_of_epoch, shares_of

LENGTHS = [100, 90, 10, 12, 50, 55, 8, 70, 20, 30, 61, 44]


def test_parts_have_equally_many_rows_and_about_as_many_tokens() -> None:
    parts = balanced_parts(range(12), LENGTHS, 3)
    assert sorted(row for part in parts for row in part) == list(range(12))
    assert [len(part) for part in parts] == [4, 4, 4]
    tokens = [sum(LENGTHS[row] for row in part) for part in parts]
    assert max(tokens) - min(tokens) <= 20


def test_rows_that_cannot_be_dealt_equally_go_to_the_first_parts() -> None:
    assert sorted(len(part) for part in balanced_parts(range(7), LENGTHS, 3)) == [2, 2, 3]
    assert balanced_parts([4], LENGTHS, 1) == [[4]]


@pytest.mark.parametrize("rows", [12, 11, 9, 8, 1])
def test_every_row_comes_once_an_epoch(rows: int) -> None:
    sampler = BalancedSampler(LENGTHS[:rows], micro_batch=2, parts=2, seed=0)
    assert len(sampler) == rows
    assert sorted(sampler) == list(range(rows))


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("rows", range(1, 13))
def test_several_processes_take_the_steps_of_one(rows: int, processes: int) -> None:
    """Each process has the same number of full micro-batches; filler rows do not count."""
    alone = list(BalancedSampler(LENGTHS[:rows], micro_batch=4, parts=1, seed=0))
    sampler = BalancedSampler(LENGTHS[:rows], micro_batch=1, parts=4, seed=0, processes=processes)
    together = list(sampler)
    assert len(together) == len(sampler) and len(together) % processes == 0
    for start in range(0, len(together), 4):
        counted = [row for row in together[start : start + 4] if row >= 0]
        assert sorted(counted) == sorted(alone[start : start + 4])
    assert all(LENGTHS[-1 - row] == min(LENGTHS[:rows]) for row in together if row < 0)


def test_grouped_steps_have_rows_of_about_equal_length() -> None:
    lengths = [10 * (row % 97) for row in range(1001)]
    sampler = BalancedSampler(lengths, micro_batch=5, parts=2, seed=0, grouped=True)
    order = list(sampler)
    assert sorted(order) == list(range(1001))
    steps = [[lengths[row] for row in order[start : start + 10]] for start in range(0, 1000, 10)]
    assert max(max(step) - min(step) for step in steps) <= 60
    assert steps[0] and max(steps[0]) == max(lengths), "the longest comes first"
    assert [max(step) for step in steps[1:]] != sorted((max(step) for step in steps[1:]), reverse=True)
    sampler.set_epoch(1)
    assert list(sampler) != order


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_has_rows_of_one_modality_drawn_at_random(processes: int) -> None:
    lengths = np.arange(1003)
    with_images = lengths >= 103
    sampler = BalancedSampler(lengths.tolist(), 5, 2, seed=0, with_images=with_images, processes=processes)
    order = [row for row in sampler if row >= 0]
    assert sorted(order) == list(range(1003)) and len(sampler) % processes == 0
    steps = [order[start : start + 10] for start in range(0, 1003, 10)]
    kinds = ["".join(sorted({"ti"[int(with_images[row])] for row in step})) for step in steps]
    # 90 steps with images and 10 of text, in random order; the three rows of text left over come last.
    assert Counter(kinds) == {"i": 90, "t": 11} and kinds[-1] == "t" and len(steps[-1]) == 3
    assert kinds[:10] != ["t"] * 10 and kinds[90:-1] != ["t"] * 10
    within = np.mean([np.var(step) for step, kind in zip(steps, kinds, strict=True) if kind == "i"])
    assert within > 0.8 * np.var(lengths[with_images]), "steps are not of similar length"
    sampler.set_epoch(1)
    assert [row for row in sampler if row >= 0] != order


def test_rows_that_fill_no_step_of_their_modality_come_last() -> None:
    with_images = np.arange(37) < 18
    sampler = BalancedSampler([1] * 37, 5, 2, seed=0, with_images=with_images)
    order = list(sampler)
    assert sorted(order) == list(range(37))
    counts = [with_images[order[start : start + 10]].sum() for start in range(0, 37, 10)]
    assert sorted(counts[:2]) == [0, 10] and sum(counts[2:]) == 8


def test_a_step_sees_the_rows_that_plain_shuffling_gives_it() -> None:
    even, plain = BalancedSampler(LENGTHS, 2, 2, seed=3), BalancedSampler(LENGTHS, 4, 1, seed=3)
    first, second = list(even), list(plain)
    for start in range(0, 12, 4):
        assert set(first[start : start + 4]) == set(second[start : start + 4])
    halves = [sum(LENGTHS[row] for row in first[start : start + 2]) for start in (0, 2)]
    pairs = sorted(LENGTHS[row] for row in first[:4])
    assert abs(halves[0] - halves[1]) <= pairs[3] - pairs[0]


def test_the_last_micro_batch_is_the_short_one() -> None:
    order = list(BalancedSampler(LENGTHS[:11], micro_batch=4, parts=2, seed=1))
    # Eight rows in two full micro-batches, then the remaining three.
    assert len(order) == 11 and len(set(order[8:])) == 3


def test_each_epoch_has_its_own_order_and_each_seed_too() -> None:
    sampler = BalancedSampler(LENGTHS, 2, 2, seed=0)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(BalancedSampler(LENGTHS, 2, 2, seed=7)) != first


def test_the_longest_row_is_in_the_first_step_of_the_first_epoch() -> None:
    for seed in range(5):
        sampler = BalancedSampler(LENGTHS, 2, 1, seed=seed)
        assert 0 in list(sampler)[:2]
    sampler.set_epoch(1)
    orders = [list(BalancedSampler(LENGTHS, 2, 1, seed=seed)) for seed in range(8)]
    assert len({tuple(order[2:4]) for order in orders}) > 1


def test_a_weight_says_how_often_an_epoch_has_a_sources_rows() -> None:
    shares = [Share(np.arange(5), 0.5), Share(np.arange(5, 9), 2.0), Share(np.arange(9, 12), 1.5)]
    sampler = BalancedSampler(LENGTHS, 2, 2, seed=4, shares=shares)
    totals: Counter[int] = Counter()
    for epoch in range(10):
        sampler.set_epoch(epoch)
        rows = Counter(sampler)
        assert rows == Counter(list(sampler)) and rows.total() == len(sampler) == 2 + 8 + 4
        # The fractional part of a weight is drawn without repeats.
        assert max(rows[row] for row in range(5)) == 1
        assert all(rows[row] == 2 for row in range(5, 9))
        assert sorted(rows[row] for row in range(9, 12)) == [1, 1, 2]
        totals += rows
    assert all(totals[row] == 4 for row in range(5))
    assert {totals[row] for row in range(9, 12)} == {13, 14}


def test_a_half_is_another_one_in_each_epoch_and_for_each_seed() -> None:
    def half(seed: int, epoch: int) -> set[int]:
        return set(rows_of_epoch([Share(np.arange(100), 0.5)], seed, epoch).tolist())

    assert half(0, 0) | half(0, 1) == set(range(100))
    assert half(0, 0) not in (set(range(50)), half(1, 0))


def test_rows_belong_to_the_source_of_their_samples() -> None:
    def sample(image: str) -> Sample:
        return Sample("", (Turn("user", "q"), Turn("assistant", "a")), (image,))

    mixture = Mixture([[sample("a"), sample("b"), sample("a")], [sample("a"), sample("a")]])
    rows = rows_of(mixture, 2)
    # An image with the same name in the other source is a different one.
    assert rows == [(0, 2), (1,), (3, 4)]
    shares = shares_of(mixture, rows, [1.0, 3.0])
    assert [(share.rows.tolist(), share.drawn) for share in shares] == [([0, 1], 2), ([2], 3)]
    assert shares_of(mixture, rows, [1.0, 1.0]) == []


def test_rows_come_in_the_order_of_the_data_if_they_are_not_shuffled() -> None:
    sampler = BalancedSampler(LENGTHS, micro_batch=2, parts=2, seed=0, shuffled=False)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        # Within a step, rows are dealt to micro-batches.
        assert [sorted(order[start : start + 4]) for start in (0, 4, 8)] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9, 10, 11],
        ]


def test_weighted_sources_keep_their_order_if_they_are_not_shuffled() -> None:
    shares = [Share(np.arange(6), 0.5), Share(np.arange(6, 12), 2)]
    order = list(BalancedSampler(LENGTHS, 1, 1, 0, shares, shuffled=False))
    assert order == sorted(order) and len(order) == 15
    assert Counter(order[3:]) == Counter({row: 2 for row in range(6, 12)})
