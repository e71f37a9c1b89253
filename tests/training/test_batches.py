"""The order of rows: at random, and even within each optimiser step."""

import pytest

from aligngpt.training.batches import BalancedSampler, balanced_parts

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
    # Eight rows in two whole micro-batches, then three that are left.
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
