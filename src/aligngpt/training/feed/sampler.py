"""The order of training rows: random, with micro-batches balanced by number of tokens."""

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
"""As in transformers: large enough for steps of similar length, small enough to keep the order random."""


def balanced_parts(members: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Split the rows of an optimiser step into micro-batches with equal numbers of rows and about equally many tokens.

    Greedy: longest row first, each to the part with the fewest tokens that is not full.

    Args:
        members: the rows.
        lengths: of all rows, by row.
        parts: number of micro-batches.

    Returns:
        The rows of each part; the first parts have one more if the rows cannot be split evenly.
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
    """The rows of a source, `(rows,)`, and how often each occurs per epoch: 0.5 uses half of them, 2 each twice."""

    rows: NDArray[np.int64]
    weight: float

    @property
    def drawn(self) -> int:
        """Number of rows of the source per epoch, the same in every epoch."""
        return max(1, round(self.weight * len(self.rows)))


def shares_of(samples: Sequence[Sample], rows: Rows, weights: Sequence[float]) -> list[Share]:
    """The share of each source, with sources in the order of the `weights`; empty if every row occurs once."""
    if all(weight == 1 for weight in weights):
        return []
    sources = columns_of(samples).sources[rows.first]
    shares = [Share(np.flatnonzero(sources == number), weight) for number, weight in enumerate(weights)]
    return [share for share in shares if len(share.rows)]


def rows_of_epoch(shares: Sequence[Share], seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows of an epoch, not yet shuffled.

    The fractional part of a weight is drawn without repeats, continuing across epochs, so that over all epochs the
    counts of two rows of a source differ by at most one.
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
    """Random row order, arranged within each optimiser step so that its micro-batches have about equally many tokens.

    Unless rows are grouped, an optimiser step gets the same rows as with plain shuffling; only memory and time are more
    even. In the first epoch the step with the longest row comes first, so that a lack of memory shows in the first
    minute.

    The last step of an epoch may have fewer rows. With several processes, each needs the same number of full
    micro-batches, so they are filled with rows without target tokens, numbered `-1 - row` (see `ConversationDataset`).
    The step is then the same as with a single process.

    Args:
        lengths: an estimate of the tokens of each row.
        micro_batch: rows per micro-batch.
        parts: micro-batches per optimiser step, over all devices.
        seed: of the order, which differs in each epoch.
        shares: how often the rows of each source occur; if empty, every row occurs once.
        grouped: build steps from rows of similar length.
        with_images: whether each row has images, `(rows,)`: builds steps from rows that all have images or all have
            none; not with `grouped`. None does not look at images.
        shuffled: False keeps the order of the rows: that of the data, epoch after epoch.
        processes: number of processes, which take the micro-batches in turn.
        blocks: the blocks that hold the images of the rows, if images cannot be read one by one; not for `grouped` or
            `with_images`.
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
        with_images: NDArray[np.bool_] | None = None,
        shuffled: bool = True,
        processes: int = 1,
        blocks: Blocks | None = None,
    ) -> None:
        self.lengths, self.shares = lengths, shares
        self.micro_batch, self.parts, self.seed = micro_batch, parts, seed
        self.grouped, self.with_images = grouped, with_images
        self.shuffled, self.processes, self.blocks = shuffled, processes, blocks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch, which determines its order."""
        self.epoch = epoch

    @property
    def rows(self) -> int:
        """Number of rows per epoch, without filler rows."""
        return sum(share.drawn for share in self.shares) if self.shares else len(self.lengths)

    def __len__(self) -> int:
        together = self.micro_batch * self.processes
        return self.rows if self.processes == 1 else -(-self.rows // together) * together

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist() if self.shuffled else list(range(self.rows))
        if self.shares:
            chosen = rows_of_epoch(self.shares, self.seed, self.epoch)
            order = chosen[order].tolist() if self.shuffled else sorted(chosen.tolist())
        if self.blocks is not None and self.shuffled:
            order = self.blocks.arrange(np.array(order), generator).tolist()
        size = self.micro_batch * self.parts
        whole, rest = divmod(len(order), size)
        if self.grouped:
            # The rows of the incomplete last step stay in random order.
            order = [*grouped_by_length(order[: whole * size], self.lengths, size), *order[whole * size :]]
        elif self.with_images is not None:
            order = grouped_by_modality(order, self.with_images, size, generator)
        steps = [order[start : start + size] for start in range(0, len(order), size)]
        if self.grouped:
            among = torch.randperm(whole, generator=generator).tolist()
            steps = [steps[place] for place in among] + steps[whole:]
        if self.epoch == 0 and self.shuffled:
            # Only full steps are candidates: an incomplete last step stays last.
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
    """Sort rows by length within stretches of many steps, so that consecutive rows have similar lengths.

    Args:
        order: the rows, in random order.
        lengths: of all rows, by row.
        step: rows per optimiser step.
    """
    stretch = STEPS_SORTED_TOGETHER * step
    grouped: list[int] = []
    for start in range(0, len(order), stretch):
        grouped += sorted(order[start : start + stretch], key=lambda row: -lengths[row])
    return grouped


def grouped_by_modality(
    order: Sequence[int], with_images: NDArray[np.bool_], step: int, generator: torch.Generator
) -> list[int]:
    """Steps of rows that all have images or all have none, in random order.

    The rows that fill no step of their own kind come last, together.

    Args:
        order: the rows, in random order.
        with_images: whether each row has images, by row.
        step: rows per optimiser step.
        generator: draws the order of the steps.
    """
    steps: list[Sequence[int]] = []
    rests: list[int] = []
    for kind in (True, False):
        rows = [row for row in order if with_images[row] == kind]
        full = len(rows) - len(rows) % step
        steps += [rows[start : start + step] for start in range(0, full, step)]
        rests += rows[full:]
    among = torch.randperm(len(steps), generator=generator).tolist()
    return [row for place in among for row in steps[place]] + rests
