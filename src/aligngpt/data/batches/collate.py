"""Collate rows of training examples into a batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor

from aligngpt.data.batches.examples import Example, Row
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.packing.pieces import Piece, Pieces

PREFIX, PADDING = 0, -1


@dataclass(frozen=True)
class Collator:
    """Collates rows into a batch, either padded on the right or packed into a single row.

    A row of one example is that example. A row of several examples, which share the same images, starts with their
    common prefix (BOS, `<align>`, the image tokens), stored once; the remainder of each example follows as a *branch*.
    A branch attends to the prefix and to itself, and its positions continue from the end of the prefix, so each example
    gets the logits it would get alone, while the image is processed once. Only the alignment embedding is shared: the
    gate reads the instructions of all branches together.

    Args:
        pad_token_id: token id that pads `input_ids`.
        packed: concatenate all rows without padding, for a model whose attention is `aligngpt_packed`.
        multiple: fill up the end of a packed row to a multiple of that many tokens, with a piece of its own. Kernels
            compiled for one length then serve many batches.
    """

    pad_token_id: int
    packed: bool = False
    multiple: int = 1

    def with_ids(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The batch of `__call__`, plus entries that are not model inputs.

        `sample_ids` has the ids of all examples. `rejected`, present if there are any, has the samples that were
        rejected while the rows were read, each as the values of `Rejected`. `feature_keys`, present if vision features
        are cached, has for each image, in reading order, the key of the features to compute, or "" if
        `vision_features` already has them. `pixel_values` then has each image to compute once, in the order in which
        the keys first appear.
        """
        batch: dict[str, Any] = self(rows)
        keys = list(chain.from_iterable(_feature_keys(row[0]) for row in rows))
        if any(keys):
            batch["feature_keys"] = keys
            computed = [key for key in keys if key]
            assert len(computed) == len(batch["pixel_values"])
            batch["pixel_values"] = batch["pixel_values"][[computed.index(key) for key in dict.fromkeys(computed)]]
        if rejected := [tuple(one) for row in rows for one in row[0].rejected]:
            batch["rejected"] = rejected
        return batch | {"sample_ids": [example.id for row in rows for example in row]}

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The model inputs for these rows.

        `input_ids`, `labels` `(batch, length)`; `pixel_values (images, channels, height, width)` if there are images,
        and `vision_features (images, P, scales · tower hidden)` of those whose features are cached;
        `alignment_level (batch,)` if the examples have levels.

        `attention_mask` is `(batch, length)`. If any row has branches, it is `(batch, 1, length, length)`, true where
        the query position (dimension 2) attends to the key position (dimension 3), and `position_ids` and
        `instruction_mask` `(batch, length)` are included.

        `instruction_mask` is also included if a first answer does not count in the loss.

        If `packed`, all rows form one row `(1, length)`, with `position_ids`, `instruction_mask` and its `pieces` in
        place of an `attention_mask`.

        Raises:
            ValueError: some examples with images have a level and others have none.
        """
        lines = [_Line.of(row) for row in rows]
        of_images = _of_images(rows)
        if self.packed:
            filling = -sum(len(line.input_ids) for line in lines) % self.multiple
            if filling:
                lines.append(_Line.padding(filling, self.pad_token_id))
                if (levels := of_images.get("alignment_level")) is not None:
                    # A sample without an image, like any other.
                    of_images["alignment_level"] = torch.nn.functional.pad(levels, (0, 1), value=1)
            batch = _packed(lines, padded=filling > 0)
        else:
            batch = self._padded(lines)
        if any(example.response is not None for row in rows for example in row):
            # Without the mask, all text before the first counted token would be the instruction.
            batch["instruction_mask"] = self._instruction_mask(lines)
        return batch | of_images

    def _instruction_mask(self, lines: Sequence["_Line"]) -> Tensor:
        if self.packed:
            return torch.tensor([list(chain.from_iterable(line.instruction for line in lines))])
        length = max(len(line.input_ids) for line in lines)
        return torch.tensor([[*line.instruction, *[0] * (length - len(line.instruction))] for line in lines])

    def _padded(self, lines: Sequence["_Line"]) -> dict[str, Tensor]:
        length = max(len(line.input_ids) for line in lines)

        def padded(values: list[list[int]], value: int) -> Tensor:
            return torch.tensor([[*row, *[value] * (length - len(row))] for row in values])

        batch = {
            "input_ids": padded([line.input_ids for line in lines], self.pad_token_id),
            "labels": padded([line.labels for line in lines], IGNORE_INDEX),
        }
        branches = padded([line.branches for line in lines], PADDING)
        if (branches > 1).any():
            batch["attention_mask"] = branch_mask(branches)
            batch["position_ids"] = padded([line.positions for line in lines], 0)
            batch["instruction_mask"] = self._instruction_mask(lines)
        else:
            batch["attention_mask"] = (branches != PADDING).long()
        return batch


def _packed(lines: Sequence["_Line"], *, padded: bool) -> dict[str, Any]:
    def joined(values: Iterable[list[int]]) -> Tensor:
        return torch.tensor([list(chain.from_iterable(values))])

    pieces: list[Piece] = []
    start = 0
    for line in lines:
        prefix = Piece(start, start, start, start)
        for branch, run in groupby(line.branches):
            own = Piece(start, start + len(list(run)), prefix.start, prefix.stop)
            pieces.append(own)
            prefix = own if branch == PREFIX else prefix
            start = own.stop
    return {
        "input_ids": joined(line.input_ids for line in lines),
        "labels": joined(line.labels for line in lines),
        "position_ids": joined(line.positions for line in lines),
        "instruction_mask": joined(line.instruction for line in lines),
        "pieces": Pieces(pieces, padded=padded),
    }


def _of_images(rows: Sequence[Row]) -> dict[str, Tensor]:
    with_images = [row[0] for row in rows if row[0].has_images]
    if not with_images:
        return {}
    batch = {}
    if pixels := [one.pixel_values for one in with_images if one.pixel_values is not None]:
        batch["pixel_values"] = torch.cat(pixels)
    if features := [one.features for one in with_images if one.features is not None]:
        batch["vision_features"] = torch.cat(features)
    levels = [one.level for one in with_images]
    if any(level is not None for level in levels):
        if None in levels:
            raise ValueError("some samples have an alignment level and others have none")
        # Rows without an image have no <align> token, so their level is never read.
        batch["alignment_level"] = torch.tensor([row[0].level or 1 for row in rows])
    return batch


def _feature_keys(example: Example) -> tuple[str, ...]:
    return example.feature_keys if example.features is None else ("",) * len(example.features)


@dataclass(frozen=True)
class _Line:
    """A flattened row: per token its id, label, branch, position id and whether it belongs to an instruction."""

    input_ids: list[int]
    labels: list[int]
    branches: list[int]
    positions: list[int]
    instruction: list[int]

    @classmethod
    def padding(cls, length: int, pad_token_id: int) -> "_Line":
        return cls(
            [pad_token_id] * length, [IGNORE_INDEX] * length, [PADDING] * length, list(range(length)), [0] * length
        )

    @classmethod
    def of(cls, row: Row) -> "_Line":
        shared = common_prefix(row) if len(row) > 1 else 0
        line = cls(
            row[0].input_ids[:shared],
            [IGNORE_INDEX] * shared,
            [PREFIX] * shared,
            list(range(shared)),
            [1] * shared,
        )
        for branch, example in enumerate(row, start=1):
            rest = example.labels[shared:]
            answered = _response(example) - shared
            line.input_ids.extend(example.input_ids[shared:])
            line.labels.extend(rest)
            line.branches.extend([branch] * len(rest))
            line.positions.extend(range(shared, shared + len(rest)))
            line.instruction.extend(int(place < answered) for place in range(len(rest)))
        return line


def common_prefix(row: Row) -> int:
    """The number of leading tokens that all examples of a row share.

    The token before the first answer stays in each branch, since it predicts the answer's first token.
    """
    longest = min(_response(example) for example in row) - 1
    first = row[0].input_ids
    for place in range(longest):
        if any(example.input_ids[place] != first[place] for example in row[1:]):
            return place
    return max(longest, 0)


def branch_mask(branches: Tensor) -> Tensor:
    """The attention mask, boolean `(batch, 1, length, length)`, of branch numbers `(batch, length)`.

    Branch numbers are 0 for the prefix, 1… for the branches and -1 for padding. Padding attends to itself only: the
    softmax of a fully masked position is undefined.
    """
    length = branches.shape[1]
    seer, seen = branches.unsqueeze(2), branches.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    within = causal & ((seen == PREFIX) | (seen == seer)) & (seer != PADDING)
    return (within | torch.eye(length, dtype=torch.bool)).unsqueeze(1)


def _response(example: Example) -> int:
    """Index of the first token of the first answer; the example's length if no token counts in the loss."""
    if example.response is not None:
        return example.response
    return next((place for place, label in enumerate(example.labels) if label != IGNORE_INDEX), len(example.labels))
