"""How well a model answers questions that do not train, looked at while it trains."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import ConversationDataset
from aligngpt.data.batches.examples import Row
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.columns import columns_of
from aligngpt.errors import AlignGPTError
from aligngpt.model.modeling import IGNORE_INDEX, AlignGPTForConditionalGeneration

ALL = ""


class ValidationResult(NamedTuple):
    """Mean loss over the tokens that count, and the share of answers that are right to the last token.

    `losses` has the loss of each level (`level_1`…) and, of several sources, that of each, by name.
    """

    loss: float
    accuracy: float
    losses: dict[str, float]


@dataclass(frozen=True)
class Validation:
    """A data set that does not train.

    Each answer is right where the likeliest token is the expected one at every place: then greedy generation would
    give exactly this answer. So one forward pass tells what generating would, and rows may share their images.

    Attributes:
        dataset: what is asked.
        collator: makes batches of its rows.
        batch_size: rows per forward pass.
        sources: what the sources of the samples are called.
        max_reject_share: share of the samples, 0…1, that may turn out to be of no use; they are left out.
    """

    dataset: ConversationDataset
    collator: Collator
    batch_size: int
    sources: tuple[str, ...] = ()
    max_reject_share: float = 0.05

    def measure(self, model: AlignGPTForConditionalGeneration, *, in_bfloat16: bool = False) -> ValidationResult:
        """Ask everything once, computing as training does; the model's mode and gradients are left as they were.

        Raises:
            TooManyRejects: of the validation data.
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
                    # Not the next good row in the place of a bad one, as in training: it would be asked twice.
                    read = {place: self.dataset.row(place) for place in range(start, stop)}
                    for one in (one for _, rejected in read.values() for one in rejected):
                        rejects.add(one.record, one.id, one.reason, one.detail)
                    places = [place for place, (row, _) in read.items() if row]
                    rows = [read[place][0] for place in places]
                    if not rows:
                        continue
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
            raise AlignGPTError("not one sample of the validation data can be used; `aligngpt check` says why")
        means = {name: loss[name] / tokens[name] for name in sorted(tokens)}
        return ValidationResult(means.pop(ALL), torch.cat(right).float().mean().item(), means)

    def _groups(self, place: int, row: Row) -> list[str]:
        """What the loss of a row is part of."""
        groups = [ALL]
        if row[0].level is not None:
            groups.append(f"level_{row[0].level}")
        if len(self.sources) > 1:
            groups.append(self.sources[columns_of(self.dataset.samples).sources[self.dataset.rows.first[place]]])
        return groups


def _counted(rows: Sequence[Row], labels: Tensor) -> list[int]:
    """How many tokens of each row count.

    Args:
        rows: those of the batch.
        labels: what the collator made of them, a line each or all in one, `(batch, length)`.
    """
    if len(labels) == len(rows):
        counts: list[int] = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
        return counts
    counts = [sum(label != IGNORE_INDEX for example in row for label in example.labels) for row in rows]
    # Nothing predicts the first token of a line.
    counts[0] -= int(labels[0, 0].item() != IGNORE_INDEX)
    return counts


def right_answers(right_tokens: Tensor, labels: Tensor) -> Tensor:
    """Which answers are right as a whole.

    Args:
        right_tokens: whether each token that counts is right, `(counted,)`, row by row.
        labels: `(batch, length)`; an answer is a run of labels that count.

    Returns:
        `(answers,)`, boolean.
    """
    counted = labels[:, 1:] != IGNORE_INDEX
    begins = counted & ~F.pad(counted[:, :-1], (1, 0))
    answer_of = (begins.flatten().cumsum(dim=0) - 1)[counted.flatten()]
    wrong = torch.zeros(int(begins.sum()), dtype=torch.long, device=labels.device)
    return wrong.index_add(0, answer_of, (~right_tokens).long()) == 0
