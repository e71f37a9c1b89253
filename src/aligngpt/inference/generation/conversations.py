"""What every pool of conversations offers, however it computes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from aligngpt.inference.generation.cache import LayerState, PooledCache
from aligngpt.inference.generation.kept import KeptConversation
from aligngpt.inference.generation.pictures import Seen
from aligngpt.inference.generation.prompts import Prompt


@dataclass(eq=False)
class Beginning:
    """A prompt that is read in pieces before it joins.

    Attributes:
        prompt: all of it.
        seen: what the model takes from its images; None if they were read in an earlier request.
        cache: keys and values of the tokens read so far.
        read: number of these tokens.
        logits: of the token after them, `(1, vocabulary)`; None before the first piece.
    """

    prompt: Prompt
    seen: Seen | None
    cache: PooledCache
    read: int = 0
    logits: Tensor | None = None

    @property
    def is_read(self) -> bool:
        """Whether nothing is left to read."""
        return self.read == len(self.prompt.ids)


class Pool(Protocol):
    """Conversations that get their next tokens together; rows are numbered from 0 in the order they joined.

    When a row leaves, the last row takes its number.
    """

    can_keep: bool
    """Whether what was computed for a row can be kept for a later request, and a prompt read in pieces."""

    @property
    def is_damaged(self) -> bool:
        """Whether reading or joining failed on the way, so that the rows cannot go on."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def read(self, prompts: Sequence[Prompt], seen: Sequence[Seen | None], copies: Sequence[int]) -> Tensor:
        """Read prompts, each of which joins as many times as `copies` says.

        Returns:
            Logits of the first token of each prompt, `(prompts, vocabulary)`.
        """
        ...

    def begin(self, prompt: Prompt, seen: Seen | None) -> Beginning:
        """Begin to read a prompt in pieces; no row joins yet."""
        ...

    def begin_kept(self, prompt: Prompt, kept: KeptConversation, shared: int) -> Beginning:
        """As `begin`, for a prompt whose first `shared` tokens were read in an earlier request."""
        ...

    def read_piece(self, beginning: Beginning, tokens: int) -> None:
        """Read up to so many more tokens of a prompt; the first piece goes to the last image token at least."""
        ...

    def join(self, beginning: Beginning, copies: int) -> Tensor:
        """Add a prompt that was read to its end, so many times; logits of its first token `(1, vocabulary)`."""
        ...

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to every row; logits of the next one, `(rows, vocabulary)`."""
        ...

    def leave(self, row: int) -> None:
        """Remove a row."""
        ...

    def copied(self, row: int) -> list[LayerState]:
        """Keys and values of a row, to be kept."""
        ...
