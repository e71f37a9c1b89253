"""The text that the gate reads and the sample of each image, from the positions of the placeholders."""

import torch

from aligngpt.model.segments import Samples, readable_text, sample_of_image

A, X, P, B = -1, -2, -3, -4  # <align>, <image>, padding, BOS
IDS = torch.tensor(
    [
        [P, P, B, A, 5, X, X, 6, 7],
        [B, A, X, X, 5, 6, X, X, 7],
        [B, 5, 6, 7, 8, 9, P, P, P],
        [B, A, 5, X, X, 6, P, P, P],
    ]
)


def read(attention_mask: object = None, instruction_mask: torch.Tensor | None = None) -> list[list[int]]:
    readable = readable_text(IDS == A, IDS == X, attention_mask, instruction_mask, Samples.of_rows(IDS))
    return [ids[kept].tolist() for ids, kept in zip(IDS, readable, strict=True)]


def test_text_after_align_is_read_without_images_and_padding() -> None:
    assert read((IDS != P).long()) == [[5, 6, 7], [5, 6, 7], [], [5, 6]]


def test_only_the_instruction_is_read() -> None:
    instruction = torch.ones_like(IDS)
    instruction[:, 6:] = 0
    assert read((IDS != P).long(), instruction) == [[5], [5, 6], [], [5, 6]]


def test_masks_of_a_static_cache_are_passed_over() -> None:
    four_dimensional = torch.zeros(4, 1, 9, 9)
    expected = [[5, 6, 7], [5, 6, 7], [], [5, 6, P, P, P]]
    assert read(four_dimensional) == expected
    assert read({"full_attention": four_dimensional, "sliding_attention": None}) == expected


def test_padding_of_rows_with_branches_is_not_read() -> None:
    """Their mask is boolean, `(batch, 1, length, length)`; padding attends to itself only."""
    is_real = IDS != P
    is_real[0, :2] = True  # Such rows are padded on the right only.
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    mask = (causal & is_real[:, None] & is_real[:, :, None]) | torch.eye(9, dtype=torch.bool)
    assert read(mask.unsqueeze(1)) == [[5, 6, 7], [5, 6, 7], [], [5, 6]]


def test_images_belong_to_the_samples_that_hold_their_tokens() -> None:
    assert sample_of_image(IDS == X, 4, Samples.of_rows(IDS)).tolist() == [0, 1, 1, 3]
