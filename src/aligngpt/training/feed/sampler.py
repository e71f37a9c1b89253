"""In which order rows are trained on: at random, with micro-batches of about as many tokens each."""

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from aligngpt.data.batches.rows import Rows
from aligngpt.data.records.sample import Sample
from aligngpt.data.samples.columns import columns_of
from aligngpt.training.feed.windowed_shuffle import Blocks

STEPS_SORTED_TOGETHER = 50
"""As in transformers: long enough for steps of even length, short enough to leave the order to chance."""


def balanced_parts(members: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Deal the rows of an optimiser step to its micro-batches: equally many each, and about as many tokens.

    Longest first, each to the part that has the fewest tokens and is not full.

    Args:
        members: the rows.
        lengths: of all rows, by row.
        parts: how many micro-batches.

    Returns:
        The rows of each part; the first parts have one more where the rows cannot be dealt equally.
    """
    most, over = divmod(len(members), parts)
    room = [most + (part < over) for part in range(parts)]
    dealt: list[list[int]] = [[] for _ in range(parts)]
    fewest = [(0, part) for part in range(parts) if room[part]]
    for member in sorted(members, key=lambda row: -lengths[row]):
        tokens, part = heapq.heappop(fewest)
        dealt[part].append(member)
        if len(dealt[part]) < room[part]:
            heapq.heappush(fewest, (tokens + lengths[member], part))
    return dealt


class Share(NamedTuple):
    """The rows of a source, `(rows,)`, and how often an epoch has them: 0.5 is a half of them, 2 all of them twice."""

    rows: NDArray[np.int64]
    weight: float

    @property
    def drawn(self) -> int:
        """How many rows of the source an epoch has, the same in every epoch."""
        return max(1, round(self.weight * len(self.rows)))


def shares_of(samples: Sequence[Sample], rows: Rows, weights: Sequence[float]) -> list[Share]:
    """The rows of each source, which must be in the order of the `weights`; none where every row comes once."""
    if all(weight == 1 for weight in weights):
        return []
    sources = columns_of(samples).sources[rows.first]
    shares = [Share(np.flatnonzero(sources == number), weight) for number, weight in enumerate(weights)]
    return [share for share in shares if len(share.rows)]


def rows_of_epoch(shares: Sequence[Share], seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows of an epoch, in no order that matters.

    What a weight has beyond a whole number is drawn without repeats, and goes on in the next epoch where it ended: no
    row comes twice more often than another.
    """
    chosen = []
    for number, share in enumerate(shares):
        size = len(share.rows)
        times, rest = divmod(share.drawn, size)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed + number)).numpy()
        places = order[(epoch * rest + np.arange(rest)) % size]
        chosen += [np.tile(share.rows, times), share.rows[places]]
    return np.concatenate(chosen)


class BalancedSampler(Sampler[int]):
    """Rows at random, arranged within each optimiser step so that its micro-batches have about as many tokens each.

    What an optimiser step sees is what plain shuffling gives it; only memory and time are more even. In the first epoch
    the step with the longest row comes first, so that memory that is too small shows in the first minute.

    The last step of an epoch may have fewer rows. Several processes must have equally many micro-batches of it, and
    full ones: they are filled with rows that count for nothing, numbered `-1 - row` (see `ConversationDataset`). So the
    step is the one that a single process takes.

    Args:
        lengths: an estimate of the tokens of each row.
        micro_batch: rows per micro-batch.
        parts: micro-batches per optimiser step, over all devices.
        seed: of the order, which is another one in each epoch.
        shares: how often the rows of each source come; every row once where there are none.
        grouped: steps of rows of about equal length.
        processes: among which the micro-batches go in turn.
        blocks: what the pictures of the rows are read in, where single ones cannot be read alone; not for `grouped`.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        micro_batch: int,
        parts: int,
        seed: int,
        shares: Sequence[Share] = (),
        *,
        grouped: bool = False,
        processes: int = 1,
        blocks: Blocks | None = None,
    ) -> None:
        self.lengths, self.shares = lengths, shares
        self.micro_batch, self.parts, self.seed = micro_batch, parts, seed
        self.grouped, self.processes, self.blocks = grouped, processes, blocks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The number of the epoch whose order comes next."""
        self.epoch = epoch

    @property
    def rows(self) -> int:
        """Rows of an epoch that count."""
        return sum(share.drawn for share in self.shares) if self.shares else len(self.lengths)

    def __len__(self) -> int:
        together = self.micro_batch * self.processes
        return self.rows if self.processes == 1 else -(-self.rows // together) * together

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        if self.shares:
            order = rows_of_epoch(self.shares, self.seed, self.epoch)[order].tolist()
        if self.blocks is not None:
            order = self.blocks.arrange(np.array(order), generator).tolist()
        size = self.micro_batch * self.parts
        whole, rest = divmod(len(order), size)
        if self.grouped:
            # What is left for the last step is left to chance.
            order = [*grouped_by_length(order[: whole * size], self.lengths, size), *order[whole * size :]]
        steps = [order[start : start + size] for start in range(0, len(order), size)]
        if self.grouped:
            among = torch.randperm(whole, generator=generator).tolist()
            steps = [steps[place] for place in among] + steps[whole:]
        if self.epoch == 0:
            # Among the whole steps: the last one may be short, and stays the last.
            heaviest = max(range(max(1, whole)), key=lambda one: max(map(self.lengths.__getitem__, steps[one])))
            steps.insert(0, steps.pop(heaviest))
        for members in steps[:whole]:
            for part in balanced_parts(members, self.lengths, self.parts):
                yield from part
        if rest:
            yield from self._last_step(steps[-1])

    def _last_step(self, members: list[int]) -> Iterator[int]:
        if self.processes > 1:
            together = self.micro_batch * self.processes
            parts = -(-len(members) // together) * self.processes
            light = min(range(len(self.lengths)), key=self.lengths.__getitem__)
            for part in balanced_parts(members, self.lengths, parts):
                yield from part
                yield from [-1 - light] * (self.micro_batch - len(part))
            return
        # Fewer micro-batches, all full but the last.
        full = len(members) // self.micro_batch
        whole, last = members[: full * self.micro_batch], members[full * self.micro_batch :]
        for part in balanced_parts(whole, self.lengths, full) if full else []:
            yield from part
        yield from last


def grouped_by_length(order: Sequence[int], lengths: Sequence[int], step: int) -> list[int]:
    """Rows sorted by length within stretches of many steps: what follows each other is of about equal length.

    Args:
        order: the rows, at random.
        lengths: of all rows, by row.
        step: rows of an optimiser step.
    """
    stretch = STEPS_SORTED_TOGETHER * step
    grouped: list[int] = []
    for start in range(0, len(order), stretch):
        grouped += sorted(order[start : start + stretch], key=lambda row: -lengths[row])
    return grouped
