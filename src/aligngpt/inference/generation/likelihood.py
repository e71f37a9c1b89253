"""How likely given answers are: the conversation is read once, then all answers in one pass."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aligngpt.inference.generation.cache import PooledCache, can_be_pooled
from aligngpt.inference.generation.loop import NOT_A_NUMBER, Loop
from aligngpt.inference.generation.pictures import Seen, encoder_outputs
from aligngpt.inference.generation.prompts import Prompt, PromptWriter, as_row
from aligngpt.inference.generation.rotation import changes_rotation, forget_lengths
from aligngpt.inference.requests import EngineError, Likelihood, Request


def likelihoods(
    loop: Loop, writer: PromptWriter, request: Request, answers: Sequence[str], levels: Sequence[int | None]
) -> list[list[Likelihood]]:
    """How likely each answer is at each level; see `Engine.likelihood`.

    Raises:
        EngineError: the request, a level or an answer cannot be used, or the model's output is not a number.
    """
    parts = [writer.answer_ids(request, answer) for answer in answers]
    longest = max((len(answer) for _, answer in parts), default=1)
    prompts = [writer.write(Request(request.messages, request.images, level), longest) for level in levels]
    if not parts:
        return [[] for _ in prompts]
    found = []
    for prompt in prompts:
        found.append(loop.run(lambda prompt=prompt: _of_prompt(loop, prompt, parts)))  # type: ignore[misc]
    return found


def _of_prompt(loop: Loop, prompt: Prompt, parts: Sequence[tuple[list[int], list[int]]]) -> list[Likelihood]:
    (seen,) = loop.pictures.look([prompt])
    # Tokenized together with an answer, the end of the conversation may become other tokens.
    joint = [answer for before, answer in parts if before == prompt.ids]
    alone = len(joint) != len(parts) or not can_be_pooled(loop.model.config.get_text_config(decoder=True))
    if not alone:
        return _together(loop, prompt, seen, joint)
    return [_one(loop, seen, before, answer) for before, answer in parts]


def _together(loop: Loop, prompt: Prompt, seen: Seen | None, answers: Sequence[list[int]]) -> list[Likelihood]:
    model = loop.model
    cache = PooledCache()
    first = model(
        input_ids=as_row(prompt.ids, model.device),
        mm_encoder_outputs=encoder_outputs([seen]),
        cache=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    copies = PooledCache()
    copies.join(
        [
            None
            if state is None
            else (state[0].expand(len(answers), -1, -1, -1), state[1].expand(len(answers), -1, -1, -1))
            for state in cache.states()
        ],
        [0] * len(answers),
    )
    longest = max(map(len, answers))
    padding = model.config.text_config.pad_token_id or 0
    # Padding on the right is read by nothing before it.
    rows = torch.tensor([answer + [padding] * (longest - len(answer)) for answer in answers], device=model.device)
    logits = first.expand(len(answers), 1, -1)
    if longest > 1:
        places = torch.arange(len(prompt.ids), len(prompt.ids) + longest - 1, device=model.device)
        later = model(
            input_ids=rows[:, :-1],
            position_ids=places.expand(len(answers), -1),
            cache=copies,
            use_cache=True,
        ).logits
        logits = torch.cat([first.unsqueeze(1).expand(len(answers), 1, -1), later], dim=1)
    return [_likelihood(logits[row, : len(answer)], answer) for row, answer in enumerate(answers)]


def _one(loop: Loop, seen: Seen | None, before: list[int], answer: list[int]) -> Likelihood:
    if changes_rotation(loop.model.config.get_text_config(decoder=True)):
        forget_lengths(loop.model)
    logits = loop.model(
        input_ids=as_row(before + answer, loop.model.device),
        mm_encoder_outputs=encoder_outputs([seen]),
        use_cache=False,
        logits_to_keep=len(answer) + 1,
    ).logits[0, :-1]
    return _likelihood(logits, answer)


def _likelihood(logits: Tensor, answer: Sequence[int]) -> Likelihood:
    """Of an answer whose tokens these logits `(tokens, vocabulary)` predict."""
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    ids: Any = torch.tensor(answer, device=logits.device)
    of_tokens = log_probabilities.gather(1, ids.unsqueeze(1)).squeeze(1).tolist()
    if any(map(math.isnan, of_tokens)):
        raise EngineError(NOT_A_NUMBER)
    return Likelihood(sum(of_tokens), tuple(of_tokens), bool((logits.argmax(dim=-1) == ids).all()))
