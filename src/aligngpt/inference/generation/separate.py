"""The pool of language models whose conversations cannot share a cache: each is computed by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aligngpt.inference.generation.cache import LayerState
from aligngpt.inference.generation.conversations import Beginning
from aligngpt.inference.generation.kept import KeptConversation
from aligngpt.inference.generation.pictures import Seen, encoder_outputs
from aligngpt.inference.generation.prompts import Prompt, as_row
from aligngpt.inference.generation.rotation import changes_rotation, forget_lengths, switching_lengths
from aligngpt.model.modeling import AlignGPTForConditionalGeneration


@dataclass(eq=False)
class _Conversation:
    """One row: what was read, and the model's own state after it."""

    prompt: Prompt
    seen: Seen | None
    state: Any
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt.ids) + len(self.tokens)


class SeparatePool:
    """Each row by itself, for language models with other states than keys and values, or with such that depend on the
    length of the conversation.

    Args:
        model: any model.
    """

    can_keep = False
    is_damaged = False

    def __init__(self, model: AlignGPTForConditionalGeneration) -> None:
        self.model = model
        self._rows: list[_Conversation] = []
        config = model.config.get_text_config(decoder=True)
        self._changes_rotation = changes_rotation(config)
        self._read_again_at = switching_lengths(config)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, prompts: Sequence[Prompt], seen: Sequence[Seen | None], copies: Sequence[int]) -> Tensor:
        logits, rows = [], []
        for prompt, one, count in zip(prompts, seen, copies, strict=True):
            # A state of its own for each copy: not every kind of state can be copied.
            for _ in range(count):
                row = _Conversation(prompt, one, None)
                of_next = self._read_whole(row)
                rows.append(row)
            logits.append(of_next)
        self._rows += rows
        return torch.cat(logits)

    def begin(self, prompt: Prompt, seen: Seen | None) -> "Beginning":
        raise NotImplementedError("prompts are read whole")

    def begin_kept(self, prompt: Prompt, kept: KeptConversation, shared: int) -> "Beginning":
        raise NotImplementedError("nothing is kept")

    def read_piece(self, beginning: "Beginning", tokens: int) -> None:
        raise NotImplementedError("prompts are read whole")

    def join(self, beginning: "Beginning", copies: int) -> Tensor:
        raise NotImplementedError("prompts are read whole")

    def step(self, tokens: Sequence[int]) -> Tensor:
        logits = []
        for row, token in zip(self._rows, tokens, strict=True):
            row.tokens.append(token)
            again = row.length in self._read_again_at
            logits.append(self._read_whole(row) if again else self._read_token(row))
        return torch.cat(logits)

    def leave(self, row: int) -> None:
        self._rows[row] = self._rows[-1]
        del self._rows[-1]

    def copied(self, row: int) -> list[LayerState]:
        raise NotImplementedError("nothing is kept")

    def _read_whole(self, row: _Conversation) -> Tensor:
        """Read a conversation from its beginning; logits of the next token `(1, vocabulary)`."""
        row.state = None
        return self._read(row, [*row.prompt.ids, *row.tokens], mm_encoder_outputs=encoder_outputs([row.seen]))

    def _read_token(self, row: _Conversation) -> Tensor:
        place = torch.tensor([[row.length - 1]], device=self.model.device)
        return self._read(row, row.tokens[-1:], position_ids=place, cache=row.state)

    def _read(self, row: _Conversation, ids: list[int], **what: Any) -> Tensor:
        if self._changes_rotation:
            forget_lengths(self.model)
        output = self.model(input_ids=as_row(ids, self.model.device), use_cache=True, logits_to_keep=1, **what)
        row.state = output.cache
        logits: Tensor = output.logits[:, -1]
        return logits
