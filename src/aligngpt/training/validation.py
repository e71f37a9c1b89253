"""How well a model answers questions that do not train, looked at while it trains."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aligngpt.data.collate import Collator
from aligngpt.data.dataset import ConversationDataset
from aligngpt.model.modeling import IGNORED, AlignGPTForConditionalGeneration


class ValidationResult(NamedTuple):
    """Mean loss over the tokens that count, and the share of answers that are right to the last token."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Validation:
    """A data set that does not train.

    Each answer is right where the likeliest token is the expected one at every place: then greedy generation would
    give exactly this answer. So one forward pass tells what generating would, and rows may share their images.

    Attributes:
        dataset: what is asked.
        collator: makes batches of its rows.
        batch_size: rows per forward pass.
    """

    dataset: ConversationDataset
    collator: Collator
    batch_size: int

    def measure(self, model: AlignGPTForConditionalGeneration, *, in_bfloat16: bool = False) -> ValidationResult:
        """Ask everything once, computing as training does; the model's mode and gradients are left as they were."""
        trains = model.training
        model.eval()
        loss, tokens = 0.0, 0
        right: list[Tensor] = []
        try:
            with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=in_bfloat16):
                for start in range(0, len(self.dataset), self.batch_size):
                    stop = min(start + self.batch_size, len(self.dataset))
                    rows = [self.dataset[place] for place in range(start, stop)]
                    batch = {name: tensor.to(model.device) for name, tensor in self.collator(rows).items()}
                    labels = batch["labels"]
                    logits = model(**batch).logits.float()
                    expected = labels[:, 1:][labels[:, 1:] != IGNORED]
                    loss += F.cross_entropy(logits, expected, reduction="sum").item()
                    tokens += len(expected)
                    right.append(right_answers(logits.argmax(dim=-1) == expected, labels).cpu())
        finally:
            model.train(trains)
        return ValidationResult(loss / tokens, torch.cat(right).float().mean().item())


def right_answers(right_tokens: Tensor, labels: Tensor) -> Tensor:
    """Which answers are right as a whole.

    Args:
        right_tokens: whether each token that counts is right, `(counted,)`, row by row.
        labels: `(batch, length)`; an answer is a run of labels that count.

    Returns:
        `(answers,)`, boolean.
    """
    counted = labels[:, 1:] != IGNORED
    begins = counted & ~F.pad(counted[:, :-1], (1, 0))
    answer_of = (begins.flatten().cumsum(dim=0) - 1)[counted.flatten()]
    wrong = torch.zeros(int(begins.sum()), dtype=torch.long, device=labels.device)
    return wrong.index_add(0, answer_of, (~right_tokens).long()) == 0
