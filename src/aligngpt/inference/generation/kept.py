"""What was computed for earlier conversations, kept for requests that continue them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aligngpt.inference.generation.cache import LayerState
from aligngpt.inference.generation.prompts import Prompt

DEFAULT_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class KeptConversation:
    """Keys and values of a conversation that was read.

    Attributes:
        ids: its tokens.
        alignment_key: of the prompt it began with, see `Prompt.alignment_key`.
        weights: the gate's weights for levels 1…N-1; None if no gate ran.
        states: keys and values per layer, of one row.
    """

    ids: tuple[int, ...]
    alignment_key: tuple[Any, ...]
    weights: tuple[float, ...] | None
    states: Sequence[LayerState]

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for state in self.states if state is not None for part in state)

    def beginning(self, tokens: int) -> list[LayerState]:
        """The keys and values of the first tokens."""
        return [None if state is None else (state[0][:, :, :tokens], state[1][:, :, :tokens]) for state in self.states]


class KeptConversations:
    """The conversations used last, up to a number of bytes.

    Args:
        limit: bytes that are kept at most.
    """

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self.limit = limit
        self._kept: list[KeptConversation] = []

    def add(self, conversation: KeptConversation) -> None:
        """Keep a conversation, in place of those that are its beginning."""
        self._kept = [
            one
            for one in self._kept
            if one.alignment_key != conversation.alignment_key or one.ids != conversation.ids[: len(one.ids)]
        ]
        self._kept.append(conversation)
        while self._kept and sum(one.bytes for one in self._kept) > self.limit:
            del self._kept[0]

    def find(self, prompt: Prompt) -> tuple[KeptConversation, int] | None:
        """The kept conversation that shares the longest beginning with a prompt, and the length of this beginning.

        None if there is none; if it does not reach beyond the images; or if the alignment embedding, which all later
        keys and values depend on, would be another one.
        """
        best: tuple[KeptConversation, int] | None = None
        for one in self._kept:
            if one.alignment_key != prompt.alignment_key:
                continue
            # The last token has to be read in any case: the answer begins with what follows it.
            shared = min(_shared(one.ids, prompt.ids), len(prompt.ids) - 1)
            if shared > 0 and shared >= prompt.image_end and (best is None or shared > best[1]):
                best = one, shared
        if best is not None:
            self._kept.remove(best[0])
            self._kept.append(best[0])
        return best


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of equal tokens at the beginning."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(np.asarray(one[:length]) != np.asarray(other[:length]))
    return int(differ[0]) if len(differ) else length
