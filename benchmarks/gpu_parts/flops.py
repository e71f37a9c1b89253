"""Floating-point operations that training needs, without padding and without what is computed twice.

Per token of the language model 2·P, P being the weights of its layers' matrices; attention 4·h·w per layer and key
seen, h heads of width w; the output layer 2·d·V per token that counts in the loss. A backward pass is twice a forward
pass where weights train. The image tower only runs forward, over the blocks that are used (all but the last).
"""

from typing import Any

from training import Size

from aligngpt.model.modeling import IGNORE_INDEX


def of_batch(size: Size, batch: dict[str, Any]) -> tuple[float, int]:
    """Operations of a micro-batch of stage 2, forward and backward, and its tokens without padding.

    Args:
        size: shape of the model.
        batch: padded or packed; only its ids, labels, mask or pieces, and the number of its images are read.
    """
    text = size.text
    hidden, heads, layers = text["hidden_size"], text["num_attention_heads"], text["num_hidden_layers"]
    width = hidden // heads
    matrices = 2 * hidden * hidden + 2 * hidden * text["num_key_value_heads"] * width
    matrices += 3 * hidden * text["intermediate_size"]
    spans = spans_of(batch)
    tokens = sum(own for own, _ in spans)
    seen = sum(own * before + own * (own + 1) / 2 for own, before in spans)
    counted = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    total = 3 * (layers * (2 * matrices * tokens + 4 * hidden * seen) + 2 * hidden * text["vocab_size"] * counted)
    pictures = len(batch.get("pixel_values", ()))
    return total + pictures * of_picture(size), tokens


def of_picture(size: Size) -> float:
    """Operations of an image: the tower forward, the projector (two layers) forward and backward."""
    vision, hidden = size.vision, size.text["hidden_size"]
    tokens, width = size.image_tokens, vision["hidden_size"]
    block = 4 * width * width + 2 * width * vision["intermediate_size"]
    tower = (vision["num_hidden_layers"] - 1) * (2 * block * (tokens + 1) + 4 * width * (tokens + 1) ** 2)
    return tower + 3 * 2 * tokens * (width * hidden + hidden * hidden)


def spans_of(batch: dict[str, Any]) -> list[tuple[int, int]]:
    """The samples, or pieces, of a batch: their own tokens and those of their prefix."""
    if "pieces" in batch:
        return [(piece.stop - piece.start, piece.prefix) for piece in batch["pieces"].pieces]
    return [(int(length), 0) for length in batch["attention_mask"].sum(dim=1)]
