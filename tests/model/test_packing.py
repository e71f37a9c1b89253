"""Packed rows: every sample has the same loss and gradients as alone."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from packed_rows import gradients, rows_for

from aligngpt.data.batches.collate import Collator
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.packing.attention import NAME, packed_attention
from aligngpt.model.packing.leaks import can_pack
from aligngpt.model.packing.pieces import Piece, Pieces
from aligngpt.model.segments import Samples

LANGUAGES = ["llama", "qwen2", "qwen3", "gemma", "phi", "phi3", "gpt_neox", "granite", "cohere"]


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    size = torch.stack([tensor.norm() for tensor in expected.values()]).norm()
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= 1e-5 * size, name


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_packed_row_has_the_loss_and_the_gradients_of_its_rows(
    assembled: Callable, language: str, levels: bool
) -> None:
    model, processor = assembled(language)
    model.train()
    rows = rows_for(model, levels=levels)
    counted = sum(label != IGNORE_INDEX for row in rows for one in row for label in one.labels)
    pad = processor.tokenizer.pad_token_id
    expected = gradients(model, [Collator(pad)([row]) for row in rows], counted)
    padded = gradients(model, [Collator(pad)(rows)], counted)
    model.set_attn_implementation({"text_config": NAME})
    found = gradients(model, [Collator(pad, packed=True)(rows)], counted)
    for loss, grads in (found, padded):
        assert loss == pytest.approx(expected[0], rel=1e-5)
        assert_alike(grads, expected[1])


def test_no_sample_sees_another(assembled: Callable) -> None:
    model, processor = assembled("llama")
    model.set_attn_implementation({"text_config": NAME})
    collator = Collator(processor.tokenizer.pad_token_id, packed=True)
    rows = rows_for(model)
    whole, changed = collator(rows), collator(rows)
    begins = whole["pieces"].pieces[1].start
    changed["input_ids"][0, begins + 1] = 11  # a word of the second sample
    with torch.no_grad():
        first, second = (model.model(**{k: v for k, v in batch.items() if k != "labels"}) for batch in (whole, changed))
    differs = (first.last_hidden_state != second.last_hidden_state).any(dim=-1)[0]
    stop = whole["pieces"].pieces[1].stop
    assert differs[begins + 1 : stop].all()
    assert not differs[:begins].any() and not differs[stop:].any()
    assert torch.equal(first.alignment_weights, second.alignment_weights)


def test_pieces_are_the_runs_of_the_rows(assembled: Callable) -> None:
    model, processor = assembled("llama")
    batch = Collator(processor.tokenizer.pad_token_id, packed=True)(rows_for(model))
    pieces = batch["pieces"].pieces
    assert pieces[0].start == 0 and pieces[-1].stop == batch["input_ids"].shape[1]
    assert all(one.stop == after.start for one, after in pairwise(pieces))
    branches = [piece for piece in pieces if piece.prefix_stop > piece.prefix_start]
    assert len(branches) == 3
    prefix = pieces[2]
    assert all((one.prefix_start, one.prefix_stop) == (prefix.start, prefix.stop) for one in branches)
    samples = Samples.of_pieces(batch["pieces"])
    assert samples.number == 4
    assert samples.of_token.shape == batch["input_ids"].shape
    assert torch.equal(samples.of_token[0, prefix.start : branches[-1].stop].unique(), torch.tensor([2]))
    assert batch["position_ids"][0, branches[1].start] == prefix.stop - prefix.start


def test_packed_attention_needs_its_pieces_and_refuses_what_it_does_not_know() -> None:
    query = torch.randn(1, 2, 3, 4)
    pieces = Pieces([Piece(0, 3, 0, 0)])
    with pytest.raises(ValueError, match="pieces"):
        packed_attention(torch.nn.Identity(), query, query, query, None)
    for name in ("position_bias", "s_aux"):
        with pytest.raises(ValueError, match=name):
            packed_attention(torch.nn.Identity(), query, query, query, None, pieces=pieces, **{name: 1})


@pytest.mark.parametrize(
    ("language", "possible"),
    [
        *((language, True) for language in [*LANGUAGES, "mistral", "gemma2"]),
        ("stablelm", False),
        ("mamba2", False),
    ],
)
def test_whether_a_language_model_can_be_packed_is_found_out(
    assembled: Callable, language: str, possible: bool
) -> None:
    language_model = assembled(language)[0].model.language_model
    kind = language_model.config._attn_implementation
    assert can_pack(language_model, 64) is possible
    assert language_model.config._attn_implementation == kind


def test_a_window_that_the_attention_is_not_told_of_cannot_be_packed(assembled: Callable) -> None:
    language_model = assembled("mistral")[0].model.language_model
    window = language_model.config.sliding_window
    assert can_pack(language_model, 4 * window)
    # By its configuration the first layer has no window, but it says that it has.
    language_model.config.layer_types = ["full_attention", "sliding_attention"]
    assert can_pack(language_model, window)
    assert not can_pack(language_model, window + 1)
    language_model.config.sliding_window = language_model.config.layer_types = None
    language_model.config.attention_chunk_size = 32
    assert can_pack(language_model, 32)
    assert not can_pack(language_model, 33)
