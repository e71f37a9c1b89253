"""The conversations that are being answered: they are read, join, get one token after another, and leave."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aligngpt.inference.generation.cache import LayerState, PooledCache, can_be_pooled
from aligngpt.inference.generation.conversations import Beginning, Pool
from aligngpt.inference.generation.fast_step import FastStep
from aligngpt.inference.generation.kept import KeptConversation
from aligngpt.inference.generation.pictures import Seen, encoder_outputs
from aligngpt.inference.generation.prompts import Prompt, as_row
from aligngpt.inference.generation.separate import SeparatePool
from aligngpt.model.modeling import AlignGPTForConditionalGeneration


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

    @property
    def is_damaged(self) -> bool:
        return self.cache.is_damaged

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


def _chosen(states: Sequence[LayerState], rows: Sequence[int]) -> list[LayerState]:
    """The states of these rows, some of which may come several times."""
    if rows == list(range(len(rows))) and all(state is None or len(state[0]) == len(rows) for state in states):
        return list(states)
    return [None if state is None else (state[0][rows], state[1][rows]) for state in states]
