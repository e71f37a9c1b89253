"""Validation during training: loss and accuracy on questions excluded from training."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aligngpt.data.batches.budget import TokenBudget
from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import ConversationDataset
from aligngpt.data.batches.examples import Row
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.columns import columns_of
from aligngpt.errors import AlignGPTError
from aligngpt.model.modeling import IGNORE_INDEX, AlignGPTForConditionalGeneration

ALL = ""


class ValidationResult(NamedTuple):
    """Mean loss over the target tokens, and the fraction of answers of which every token is right.

    `losses` has the loss per level (`level_1`…) and, with several sources, per source name.
    """

    loss: float
    accuracy: float
    losses: dict[str, float]


@dataclass(frozen=True)
class Validation:
    """A validation data set.

    An answer is right if the most likely token is the expected one at every position: greedy generation would then
    give exactly this answer. So one forward pass replaces generation, and the samples of a row may share images.

    Attributes:
        dataset: the questions and answers.
        collator: builds batches from rows.
        batch_size: rows per forward pass, or rows read at a time if `budget` divides them into passes.
        sources: names of the sources of the samples.
        max_reject_share: fraction of the samples, 0…1, that may turn out to be unusable; they are left out.
        budget: limits the tokens of a forward pass; None if only its rows are limited.
    """

    dataset: ConversationDataset
    collator: Collator
    batch_size: int
    sources: tuple[str, ...] = ()
    max_reject_share: float = 0.05
    budget: TokenBudget | None = None

    def measure(self, model: AlignGPTForConditionalGeneration, *, in_bfloat16: bool = False) -> ValidationResult:
        """Evaluate each row once, in the precision of training; the model's mode and gradients do not change.

        Raises:
            TooManyRejects: too many validation samples are unusable.
            AlignGPTError: none of them can be used.
        """
        trains = model.training
        model.eval()
        loss, tokens = Counter[str](), Counter[str]()
        right: list[Tensor] = []
        rejects = Rejects(None, self.max_reject_share)
        try:
            with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=in_bfloat16):
                for start in range(0, len(self.dataset), self.batch_size):
                    stop = min(start + self.batch_size, len(self.dataset))
                    # Unlike in training, a bad row is not replaced by the next good one, which would count twice.
                    read = {place: self.dataset.row(place) for place in range(start, stop)}
                    for one in (one for _, rejected in read.values() for one in rejected):
                        rejects.add(one.record, one.id, one.reason, one.detail)
                    usable = [(place, row) for place, (row, _) in read.items() if row]
                    for part in self._passes([row for _, row in usable]):
                        places, rows = zip(*(usable[one] for one in part), strict=True)
                        batch = {name: tensor.to(model.device) for name, tensor in self.collator(rows).items()}
                        labels = batch["labels"]
                        output = model(**batch, skip_logits=True)
                        expected = labels[:, 1:][labels[:, 1:] != IGNORE_INDEX]
                        losses = output.token_losses.split(_counted(rows, labels))
                        for place, row, of_row in zip(places, rows, losses, strict=True):
                            for name in self._groups(place, row):
                                loss[name] += of_row.sum().item()
                                tokens[name] += len(of_row)
                        right.append(right_answers(output.token_predictions == expected, labels).cpu())
        finally:
            model.train(trains)
        rejects.check(len(self.dataset.samples))
        if not right:
            raise AlignGPTError("no sample of the validation data can be used; `aligngpt check` says why")
        means = {name: loss[name] / tokens[name] for name in sorted(tokens)}
        return ValidationResult(means.pop(ALL), torch.cat(right).float().mean().item(), means)

    def _passes(self, rows: Sequence[Row]) -> list[list[int]]:
        """The rows of each forward pass, as places in `rows`."""
        if self.budget is not None:
            return self.budget.divide(rows)
        return [list(range(len(rows)))] if rows else []

    def _groups(self, place: int, row: Row) -> list[str]:
        """The names of the groups that the loss of a row belongs to."""
        groups = [ALL]
        if row[0].level is not None:
            groups.append(f"level_{row[0].level}")
        if len(self.sources) > 1:
            groups.append(self.sources[columns_of(self.dataset.samples).sources[self.dataset.rows.first[place]]])
        return groups


def _counted(rows: Sequence[Row], labels: Tensor) -> list[int]:
    """Number of target tokens per row.

    Args:
        rows: the rows of the batch.
        labels: the collator's labels, `(batch, length)`: one line per row, or all rows packed into one line.
    """
    if len(labels) == len(rows):
        counts: list[int] = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
        return counts
    counts = [sum(label != IGNORE_INDEX for example in row for label in example.labels) for row in rows]
    # Nothing predicts the first token of a line.
    counts[0] -= int(labels[0, 0].item() != IGNORE_INDEX)
    return counts


def right_answers(right_tokens: Tensor, labels: Tensor) -> Tensor:
    """Which answers have every token right.

    Args:
        right_tokens: whether each target token is right, `(counted,)`, row by row.
        labels: `(batch, length)`; an answer is a contiguous run of labels other than `IGNORE_INDEX`.

    Returns:
        `(answers,)`, boolean.
    """
    counted = labels[:, 1:] != IGNORE_INDEX
    begins = counted & ~F.pad(counted[:, :-1], (1, 0))
    answer_of = (begins.flatten().cumsum(dim=0) - 1)[counted.flatten()]
    wrong = torch.zeros(int(begins.sum()), dtype=torch.long, device=labels.device)
    return wrong.index_add(0, answer_of, (~right_tokens).long()) == 0
