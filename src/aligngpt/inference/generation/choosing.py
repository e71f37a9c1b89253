"""The choice of the next token: greedy, or drawn with a random generator of each answer's own."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from aligngpt.inference.requests import Sampling, TokenChoice


class Chooser:
    """Chooses the tokens of one answer.

    Args:
        sampling: how.
        index: which of the request's answers; each is drawn with a seed of its own.
    """

    def __init__(self, sampling: Sampling, index: int = 0) -> None:
        self.sampling = sampling
        self._generator = torch.Generator().manual_seed(_in_32_bits(sampling.seed + index))

    @property
    def is_greedy(self) -> bool:
        return self.sampling.is_greedy

    def draw(self, logits: Tensor) -> int:
        """A token drawn from logits `(vocabulary,)`, on the CPU in float32."""
        sampling = self.sampling
        logits = logits / sampling.temperature
        if 0 < sampling.top_k < len(logits):
            least = logits.topk(sampling.top_k).values[-1]
            logits = logits.masked_fill(logits < least, -torch.inf)
        probabilities = torch.softmax(logits, dim=-1)
        if sampling.top_p < 1:
            ordered, places = probabilities.sort(descending=True)
            # The token that crosses the limit is kept, hence at least one.
            outside = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
            probabilities = probabilities.index_fill(0, places[outside], 0.0)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def choose(logits: Tensor, choosers: Sequence[Chooser]) -> tuple[list[int | None], list[TokenChoice | None]]:
    """The next token of each row, and how likely it was where that is asked for.

    Args:
        logits: `(rows, vocabulary)`.
        choosers: one per row.

    Returns:
        Tokens, None for rows with logits that are not numbers; and their probabilities.
    """
    logits = logits.float()
    # The largest value is not a number if any is.
    largest, best = logits.max(dim=-1)
    usable = torch.isfinite(largest).tolist()
    tokens = [token if good else None for token, good in zip(best.tolist(), usable, strict=True)]
    told: list[TokenChoice | None] = [None] * len(choosers)
    for row, chooser in enumerate(choosers):
        token = tokens[row]
        if token is not None and not chooser.is_greedy:
            token = tokens[row] = chooser.draw(logits[row].cpu())
        if token is not None and (alternatives := chooser.sampling.log_probabilities) is not None:
            told[row] = _told(torch.log_softmax(logits[row], dim=-1), token, alternatives)
    return tokens, told


def _in_32_bits(seed: int) -> int:
    """The seed, or a hash of a longer one: torch's generator on the CPU ignores all higher bits."""
    if 0 <= seed < 2**32:
        return seed
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "big")


def _told(log_probabilities: Tensor, token: int, alternatives: int) -> TokenChoice:
    values, ids = log_probabilities.topk(min(alternatives, len(log_probabilities)))
    return TokenChoice(token, float(log_probabilities[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
