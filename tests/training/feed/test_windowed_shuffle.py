"""Rows whose images are read in blocks: each occurs as often as before, and few blocks are needed at a time."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from aligngpt.training.feed import windowed_shuffle as block_order
from aligngpt.training.feed.sampler import BalancedSampler, Share
from aligngpt.training.feed.windowed_shuffle import Blocks

SIZE, COUNT = 20, 40


@pytest.fixture
def blocks() -> Blocks:
    """Forty blocks of twenty rows from one source, then as many rows from another that can be read alone."""
    rows = SIZE * COUNT
    numbers = np.concatenate([np.arange(rows) // SIZE, np.full(rows, -1)])
    return Blocks(numbers, np.where(numbers < 0, 0, 1000), np.repeat([0, 1], rows))


def reads(order: list[int], blocks: Blocks, kept: int) -> int:
    """Number of block reads if the most recently used blocks are kept in memory."""
    found: OrderedDict[int, None] = OrderedDict()
    count = 0
    for block in blocks.numbers[order][blocks.numbers[order] >= 0].tolist():
        if block not in found:
            count += 1
            if len(found) == kept:
                found.popitem(last=False)
        found[block] = None
        found.move_to_end(block)
    return count


def test_each_row_comes_once_and_each_block_is_read_about_once(blocks: Blocks) -> None:
    lengths = torch.randint(1, 50, (len(blocks.numbers),)).tolist()
    sampler = BalancedSampler(lengths, 4, 4, seed=5, blocks=blocks)
    first = list(sampler)
    assert sorted(first) == list(range(len(lengths))) and list(sampler) == first
    # The step with the longest row comes first, outside its window.
    assert COUNT <= reads(first, blocks, 16) <= COUNT + 8
    assert reads(list(BalancedSampler(lengths, 4, 4, seed=5)), blocks, 16) > 8 * COUNT
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first and reads(second, blocks, 16) == COUNT
    # The other source stays mixed in at random.
    assert 0.3 < np.mean(np.array(second[: len(second) // 4]) >= SIZE * COUNT) < 0.7


def test_rows_of_a_window_are_mixed(blocks: Blocks) -> None:
    order = torch.randperm(SIZE * COUNT).numpy()
    found = blocks.arrange(order, torch.Generator().manual_seed(0))
    windows = blocks.numbers[found].reshape(-1, SIZE * block_order.WINDOW_BLOCKS)
    assert all(len(set(window)) == block_order.WINDOW_BLOCKS for window in windows)
    # Rows are mixed across blocks, and the blocks of a window are not neighbours in the file.
    assert all(len(set(window[:SIZE])) > 4 for window in windows)
    assert not any(np.ptp(np.unique(window)) == block_order.WINDOW_BLOCKS - 1 for window in windows)


def test_large_blocks_are_mixed_with_fewer_others(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_order, "WINDOW_BYTES", 2500)
    order = torch.randperm(SIZE * COUNT).numpy()
    found = blocks.arrange(order, torch.Generator().manual_seed(0))
    assert all(len(set(window)) == 2 for window in blocks.numbers[found].reshape(-1, 2 * SIZE))
    monkeypatch.setattr(block_order, "WINDOW_BYTES", 1)
    found = blocks.arrange(order, torch.Generator().manual_seed(0))
    assert all(len(set(window)) == 1 for window in blocks.numbers[found].reshape(-1, SIZE))


def test_rows_that_come_twice_come_in_two_passes(blocks: Blocks) -> None:
    rows = SIZE * COUNT
    shares = [Share(np.arange(rows), 2.0), Share(np.arange(rows, 2 * rows), 1.0)]
    sampler = BalancedSampler([1] * 2 * rows, 4, 4, seed=5, shares=shares, blocks=blocks)
    sampler.set_epoch(1)
    order = np.array(list(sampler))
    inside = order[order < rows]
    assert np.bincount(order).tolist() == [2] * rows + [1] * rows
    assert reads(order.tolist(), blocks, 16) == 2 * COUNT
    # Micro-batches are arranged within steps, so a few rows cross the middle.
    assert len(set(inside[:rows].tolist())) > rows - 16
