"""Micro-batches that are limited by tokens rather than by rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aligngpt.data.batches.collate import Collator, common_prefix
from aligngpt.data.batches.examples import Row
from aligngpt.model.modeling import IGNORE_INDEX

MICRO_BATCHES = "micro_batches"
"""The key under which the micro-batches of an optimiser step stand in a batch of `StepCollator`."""


def row_tokens(row: Row) -> int:
    """Number of tokens of a row as it is collated: what its samples share counts once."""
    shared = common_prefix(row) if len(row) > 1 else 0
    return shared + sum(len(example.input_ids) - shared for example in row)


def within_budget(lengths: Sequence[int], budget: int, *, packed: bool) -> list[list[int]]:
    """Divide rows into micro-batches of at most `budget` tokens, padding included.

    A row that is longer gets a micro-batch of its own. Longest rows come first: packed, each row goes into the fullest
    micro-batch that still has room; padded, rows of similar length come together.

    Args:
        lengths: tokens of each row.
        budget: tokens per micro-batch.
        packed: rows are concatenated; otherwise all of a micro-batch are padded to its longest.

    Returns:
        Places in `lengths`, a list per micro-batch. The first micro-batch has the longest row.
    """
    longest_first = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    parts: list[list[int]] = []
    if not packed:
        for place in longest_first:
            if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= budget:
                parts[-1].append(place)
            else:
                parts.append([place])
        return parts
    room: list[int] = []
    for place in longest_first:
        fitting = [part for part, left in enumerate(room) if left >= lengths[place]]
        if fitting:
            part = min(fitting, key=room.__getitem__)
            parts[part].append(place)
            room[part] -= lengths[place]
        else:
            parts.append([place])
            room.append(budget - lengths[place])
    return parts


@dataclass(frozen=True)
class TokenBudget:
    """How rows are divided into micro-batches by their tokens.

    Args:
        tokens: the most tokens of a micro-batch, padding included.
        collator: of the rows.
    """

    tokens: int
    collator: Collator

    def divide(self, rows: Sequence[Row]) -> list[list[int]]:
        """The micro-batches of some rows, as places in `rows`."""
        # What a packed row is filled up with has to fit in as well.
        multiple = self.collator.multiple
        budget = max(self.tokens // multiple, 1) * multiple
        return within_budget([row_tokens(row) for row in rows], budget, packed=self.collator.packed)


@dataclass(frozen=True)
class StepCollator:
    """Collates all rows that a process has of an optimiser step, into as many micro-batches as a budget asks for.

    Args:
        collate: collates a micro-batch.
        budget: limits its tokens.
    """

    collate: Callable[[Sequence[Row]], dict[str, Any]]
    budget: TokenBudget

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`{"micro_batches": [batch, …]}`, each a batch of `collate`."""
        parts = self.budget.divide(rows)
        return {MICRO_BATCHES: [self.collate([rows[place] for place in part]) for part in parts]}


def fill_up(micro_batches: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Repeat the lightest micro-batch without target tokens until there are `number`.

    Processes that train a sharded model must all do the same number of forward passes.
    """
    missing = number - len(micro_batches)
    if missing <= 0:
        return micro_batches
    lightest = min(micro_batches, key=lambda batch: int(batch["input_ids"].numel()))
    filler = {name: value for name, value in lightest.items() if name != "rejected"} | {
        "labels": torch.full_like(lightest["labels"], IGNORE_INDEX),
        "layout": lightest["layout"].without_targets(),
        "sample_ids": [],
    }
    return [*micro_batches, *(dict(filler) for _ in range(missing))]
