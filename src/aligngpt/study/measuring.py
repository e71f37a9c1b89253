"""What a model is measured by: the likelihood of right answers, and of captions at every level.

All of it comes from forward passes over given texts; nothing is generated.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import ConversationDataset
from aligngpt.data.batches.examples import Row
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.model.modeling import IGNORE_INDEX, AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.templates import NAMED_TEMPLATES
from aligngpt.study.pairs import StudyError
from aligngpt.training.feed.feature_cache import features_kept_for

ROWS_AT_ONCE = 32
HALF = np.float16


class Answers(NamedTuple):
    """How a model answers questions whose right answers are known, one entry per question.

    Attributes:
        log_probability: natural logarithm of the probability of the right answer with its end, `(questions,)`.
        right: whether greedy decoding gives exactly this answer, `(questions,)`.
        confidence: probability of the most likely first token, `(questions,)`.
        first_right: whether this token is the first of the right answer, `(questions,)`.
        weights: the gate's weights for levels 1…N-1, `(questions, N - 1)`; None without a gate.
    """

    log_probability: NDArray[np.float16]
    right: NDArray[np.bool_]
    confidence: NDArray[np.float16]
    first_right: NDArray[np.bool_]
    weights: NDArray[np.float16] | None


class Measure:
    """Measures one model on files of samples.

    Args:
        model: in evaluation mode, with a frozen tower.
        processor: its processor.
        image_root: folder that image paths are relative to.
    """

    def __init__(self, model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor, image_root: Path) -> None:
        self.model, self.processor, self.image_root = model, processor, image_root
        self._collator = Collator(processor.tokenizer.pad_token_id)

    def answers(self, questions: Path) -> Answers:
        """Measure all questions of a LLaVA-format file, with the model's own chat template.

        Raises:
            TooManyRejects, StudyError: a question cannot be used.
        """
        parts = [self._answers_of(batch) for batch in self._batches(self._dataset(questions, None))]
        weights = [part.weights for part in parts if part.weights is not None]
        return Answers(
            np.concatenate([part.log_probability for part in parts]),
            np.concatenate([part.right for part in parts]),
            np.concatenate([part.confidence for part in parts]),
            np.concatenate([part.first_right for part in parts]),
            np.concatenate(weights) if weights else None,
        )

    def captions(self, captions: Path, level: int | None = None, *, blank: bool = False) -> NDArray[np.float32]:
        """The log-probability of each caption of a LLaVA-format file given its picture, `(captions,)`, in nats.

        Args:
            captions: pairs of a picture and a caption.
            level: the level 1…N that is forced; None for a model without levels.
            blank: show a blank picture instead of each picture.

        Raises:
            TooManyRejects, StudyError: a caption cannot be used.
        """
        found = []
        features = self._blank_features() if blank else None
        for batch in self._batches(self._dataset(captions, NAMED_TEMPLATES["plain"])):
            if features is not None:
                batch["vision_features"] = features.expand(len(batch["input_ids"]), -1, -1)
            if level is not None:
                batch["alignment_level"] = torch.full((len(batch["input_ids"]),), level, device=self.model.device)
            log_probabilities, counted, _ = self._forward(batch)
            found.append(_sums(log_probabilities.gather(-1, _expected(batch)).squeeze(-1), counted))
        return np.concatenate(found).astype(np.float32)

    def _dataset(self, path: Path, template: str | None) -> ConversationDataset:
        # A test that is not the same for all models compares nothing.
        with Rejects(None, max_share=0.0) as rejects:
            samples = load_samples(path, image_root=self.image_root, rejects=rejects)
        dataset = ConversationDataset(
            samples, self.processor, self.image_root, chat_template=template, with_levels=False
        )
        dataset.known_features = features_kept_for(dataset, self.model, self.model.device, in_bfloat16=False)
        return dataset

    def _batches(self, dataset: ConversationDataset) -> Iterator[dict[str, Any]]:
        cache = dataset.known_features
        for start in range(0, len(dataset), ROWS_AT_ONCE):
            rows: list[Row] = []
            for place in range(start, min(start + ROWS_AT_ONCE, len(dataset))):
                row, rejected = dataset.row(place)
                if rejected:
                    raise StudyError(f"sample {rejected[0].id} cannot be used: {rejected[0].detail}")
                rows.append(row)
            batch = {
                name: value.to(self.model.device) if isinstance(value, Tensor) else value
                for name, value in self._collator.with_ids(rows).items()
                if name != "sample_ids"
            }
            with torch.no_grad():
                yield cache.complete(self.model, batch, in_bfloat16=False)  # type: ignore[union-attr]

    def _answers_of(self, batch: dict[str, Any]) -> Answers:
        log_probabilities, counted, weights = self._forward(batch)
        expected = _expected(batch)
        of_right = log_probabilities.gather(-1, expected).squeeze(-1)
        best, chosen = log_probabilities.max(dim=-1)
        hit = chosen == expected.squeeze(-1)
        wrong_tokens = _sums((~hit).float(), counted)
        firsts = torch.cat([torch.zeros(1, dtype=torch.long), counted.sum(dim=1).cumsum(dim=0)[:-1].cpu()])
        return Answers(
            _sums(of_right, counted).astype(HALF),
            wrong_tokens == 0,
            best.cpu()[firsts].exp().numpy().astype(HALF),
            hit.cpu()[firsts].numpy(),
            None if weights is None else weights.float().cpu().numpy().astype(HALF),
        )

    def _forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """log p over the vocabulary at each counted token `(counted, vocabulary)`, where they are, and gate weights."""
        labels = batch["labels"]
        counted = labels[:, 1:] != IGNORE_INDEX
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        # The gate reads the text before the first counted token, as in training.
        inputs["instruction_mask"] = (labels != IGNORE_INDEX).cumsum(dim=-1) == 0
        with torch.no_grad():
            output = self.model(**inputs, use_cache=False)
        logits = output.logits[:, :-1][counted].float()
        return torch.log_softmax(logits, dim=-1), counted, output.alignment_weights

    def _blank_features(self) -> Tensor:
        with torch.no_grad():
            features: Tensor = self.model.model.tower_features(self.model.model.blank_picture())
        return features


def _expected(batch: dict[str, Any]) -> Tensor:
    labels: Tensor = batch["labels"][:, 1:]
    return labels[labels != IGNORE_INDEX].unsqueeze(-1)


def _sums(values: Tensor, counted: Tensor) -> NDArray[np.float32]:
    """Sums over the counted tokens of each row: `(counted,)`, `(rows, length)` → `(rows,)`."""
    sums = torch.zeros(counted.shape, dtype=torch.float32, device=values.device)
    sums[counted] = values.float()
    found: NDArray[np.float32] = sums.sum(dim=1).cpu().numpy()
    return found


def mean_weights(weights: NDArray[np.float16], kinds: Sequence[str]) -> dict[str, list[float]]:
    """The mean gate weights of the questions of each kind: `(questions, N - 1)` → `(N - 1,)` per kind."""
    names = np.array(kinds)
    return {name: weights[names == name].astype(np.float64).mean(axis=0).tolist() for name in sorted(set(kinds))}
