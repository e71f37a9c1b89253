"""Rows of examples to compare packed with padded training: with an image, without, sharing one, with two."""

from typing import Any

import torch

from aligngpt.data.batches.examples import Example, Row
from aligngpt.model.modeling import IGNORE_INDEX

PATCHES = 16


def example(model: Any, words: list[int], answer: list[int], pixels: torch.Tensor | None, level: int | None) -> Example:
    """BOS, `<align>`, image tokens, words and an answer that counts."""
    config = model.config
    image = [] if pixels is None else [config.align_token_index, *[config.image_token_index] * PATCHES * len(pixels)]
    opening = [1, *image, *words]
    return Example([*opening, *answer], [IGNORE_INDEX] * len(opening) + answer, pixels, level)


def rows_for(model: Any, *, levels: bool = False) -> list[Row]:
    generator = torch.Generator().manual_seed(0)

    def picture(count: int = 1) -> torch.Tensor:
        return torch.randn(count, 3, 32, 32, generator=generator)

    shared = picture()
    level = (lambda number: number) if levels else (lambda number: None)
    return [
        (example(model, [5, 6, 7], [8, 9], picture(), level(2)),),
        (example(model, [6], [7, 7, 7, 4], None, None),),
        tuple(
            example(model, words, answer, shared, level(5))
            for words, answer in (([5, 9, 11], [8, 3]), ([5, 9], [4, 9, 10, 2]), ([12, 5], [6]))
        ),
        (example(model, [9, 10, 11, 12, 13], [5], picture(2), level(8)),),
    ]


def gradients(model: Any, batches: list[dict[str, torch.Tensor]], counted: int) -> tuple[float, dict[str, Any]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=counted).loss
        loss.backward()
        total += loss.item()
    # A text-only batch gives the image parts gradients of zero, where others give them none.
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return total, {name: grad for name, grad in grads.items() if grad.any()}
