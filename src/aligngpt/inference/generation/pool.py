"""The conversations that are being answered: they are read, join, get one token after another, and leave."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from aligngpt.inference.generation.cache import LayerState, PooledCache, can_be_pooled
from aligngpt.inference.generation.fast_step import FastStep
from aligngpt.inference.generation.kept import KeptConversation
from aligngpt.inference.generation.pictures import Seen
from aligngpt.inference.generation.prompts import Prompt, as_row
from aligngpt.model.modeling import AlignGPTForConditionalGeneration


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


def pool_for(model: AlignGPTForConditionalGeneration) -> Pool:
    """An empty pool of the kind that the language model allows."""
    return JointPool(model) if can_be_pooled(model.config.get_text_config(decoder=True)) else SeparatePool(model)


class JointPool:
    """All rows in one batch, padded on the left.

    Args:
        model: whose language model caches nothing but keys and values.
    """

    can_keep = True

    def __init__(self, model: AlignGPTForConditionalGeneration) -> None:
        self.model = model
        self.cache = PooledCache()
        self._fast = FastStep.of(model)

    def __len__(self) -> int:
        return len(self.cache.starts)

    def read(self, prompts: Sequence[Prompt], seen: Sequence[Seen | None], copies: Sequence[int]) -> Tensor:
        device = self.model.device
        length = max(len(prompt.ids) for prompt in prompts)
        starts = [length - len(prompt.ids) for prompt in prompts]
        padding = self.model.config.text_config.pad_token_id or 0
        ids = torch.tensor(
            [[padding] * start + prompt.ids for start, prompt in zip(starts, prompts, strict=True)], device=device
        )
        places = torch.arange(length, device=device)
        first = torch.tensor(starts, device=device).unsqueeze(1)
        cache = PooledCache()
        logits = self.model(
            input_ids=ids,
            attention_mask=(places >= first).long() if any(starts) else None,
            position_ids=(places - first).clamp(min=0),
            mm_encoder_outputs=encoder_outputs(seen),
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        rows = [row for row, count in enumerate(copies) for _ in range(count)]
        self.cache.join(_chosen(cache.states(), rows), [starts[row] for row in rows])
        return logits

    def begin(self, prompt: Prompt, seen: Seen | None) -> Beginning:
        return Beginning(prompt, seen, PooledCache())

    def begin_kept(self, prompt: Prompt, kept: KeptConversation, shared: int) -> Beginning:
        cache = PooledCache()
        cache.join(kept.beginning(shared), [0])
        return Beginning(prompt, None, cache, shared)

    def read_piece(self, beginning: Beginning, tokens: int) -> None:
        device, prompt, start = self.model.device, beginning.prompt, beginning.read
        stop = min(len(prompt.ids), max(start + tokens, prompt.image_end))
        beginning.logits = self.model(
            input_ids=as_row(prompt.ids[start:stop], device),
            position_ids=torch.arange(start, stop, device=device).unsqueeze(0),
            mm_encoder_outputs=encoder_outputs([beginning.seen]) if start == 0 else None,
            cache=beginning.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        beginning.read = stop

    def join(self, beginning: Beginning, copies: int) -> Tensor:
        assert beginning.is_read and beginning.logits is not None
        self.cache.join(_chosen(beginning.cache.states(), [0] * copies), [0] * copies)
        return beginning.logits

    def step(self, tokens: Sequence[int]) -> Tensor:
        device = self.model.device
        ids = torch.tensor(tokens, device=device).unsqueeze(1)
        mask, positions = self.cache.mask(device), self.cache.positions(device)
        if self._fast is not None and self._fast.applies(self.cache.length + 1):
            self._fast.order_weights()
            return self._fast(ids, positions, mask, self.cache)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def leave(self, row: int) -> None:
        self.cache.leave(row)

    def copied(self, row: int) -> list[LayerState]:
        return self.cache.copied(row)


class SeparatePool:
    """Each row by itself, for language models with other states than keys and values.

    Args:
        model: any model.
    """

    can_keep = False

    def __init__(self, model: AlignGPTForConditionalGeneration) -> None:
        self.model = model
        self._rows: list[tuple[Any, int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, prompts: Sequence[Prompt], seen: Sequence[Seen | None], copies: Sequence[int]) -> Tensor:
        logits, rows = [], []
        for prompt, one, count in zip(prompts, seen, copies, strict=True):
            # A state of its own for each copy: not every kind of state can be copied.
            for _ in range(count):
                output = self.model(
                    input_ids=as_row(prompt.ids, self.model.device),
                    mm_encoder_outputs=encoder_outputs([one]),
                    use_cache=True,
                    logits_to_keep=1,
                )
                rows.append((output.cache, len(prompt.ids)))
            logits.append(output.logits[:, -1])
        self._rows += rows
        return torch.cat(logits)

    def begin(self, prompt: Prompt, seen: Seen | None) -> Beginning:
        raise NotImplementedError("prompts are read whole")

    def begin_kept(self, prompt: Prompt, kept: KeptConversation, shared: int) -> Beginning:
        raise NotImplementedError("nothing is kept")

    def read_piece(self, beginning: Beginning, tokens: int) -> None:
        raise NotImplementedError("prompts are read whole")

    def join(self, beginning: Beginning, copies: int) -> Tensor:
        raise NotImplementedError("prompts are read whole")

    def step(self, tokens: Sequence[int]) -> Tensor:
        logits = []
        for row, ((cache, length), token) in enumerate(zip(self._rows, tokens, strict=True)):
            output = self.model(
                input_ids=as_row([token], self.model.device),
                position_ids=torch.tensor([[length]], device=self.model.device),
                cache=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            self._rows[row] = (output.cache, length + 1)
            logits.append(output.logits[:, -1])
        return torch.cat(logits)

    def leave(self, row: int) -> None:
        self._rows[row] = self._rows[-1]
        del self._rows[-1]

    def copied(self, row: int) -> list[LayerState]:
        raise NotImplementedError("nothing is kept")


def encoder_outputs(seen: Sequence[Seen | None]) -> dict[str, BaseModelOutputWithPooling] | None:
    """What `forward` takes in place of pixels: image features and alignment embeddings in the order of their tokens."""
    found = [one for one in seen if one is not None]
    if not found:
        return None
    outputs = {"image": BaseModelOutputWithPooling(pooler_output=[image for one in found for image in one.features])}
    embeddings = [one.embedding for one in found if one.embedding is not None]
    if embeddings:
        outputs["align"] = BaseModelOutputWithPooling(pooler_output=embeddings)
    return outputs


def _chosen(states: Sequence[LayerState], rows: Sequence[int]) -> list[LayerState]:
    """The states of these rows, some of which may come several times."""
    if rows == list(range(len(rows))) and all(state is None or len(state[0]) == len(rows) for state in states):
        return list(states)
    return [None if state is None else (state[0][rows], state[1][rows]) for state in states]
