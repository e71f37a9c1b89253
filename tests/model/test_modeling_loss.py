"""The loss of the network and its gradients in each part."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from aligngpt.model.modeling import IGNORE_INDEX

ONE = "USER : <image> what colour is the circle ? ASSISTANT :"
LONG = "USER : <image> how many big red shape are there on the left of this picture please ? ASSISTANT :"
TWO = "USER : <image> <image> is it the red one ? ASSISTANT :"
NONE = "USER : describe a yellow triangle please ASSISTANT :"
TEXTS = [ONE, LONG, TWO, NONE]


def answered(batch: dict[str, Tensor]) -> Tensor:
    """Labels that count the last three tokens of each (left-padded) sample."""
    labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
    labels[:, -3:] = batch["input_ids"][:, -3:]
    return labels


def test_loss_is_that_of_full_logits(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled("gemma2", chat_template="plain")  # which caps its logits
    batch = batch_of(processor, TEXTS)
    labels = answered(batch)
    labels[1, -1] = IGNORE_INDEX
    labels[3] = IGNORE_INDEX
    instruction = ((labels != IGNORE_INDEX).cumsum(dim=-1) == 0).long()
    out = model(**batch, labels=labels)
    full = model(**batch, instruction_mask=instruction).logits
    expected = cross_entropy(full[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(out.loss, expected, rtol=1e-6, atol=1e-6)
    assert out.logits.shape == full.shape
    torch.testing.assert_close(out.logits, full)


@pytest.mark.parametrize("language", ["llama", "gemma2"])
def test_logits_keep_their_shape_outside_training_and_are_left_out_in_it(
    assembled: Callable, batch_of: Callable, language: str
) -> None:
    """Callers that slice `logits[:, :-1]` to match the labels would otherwise slice the vocabulary."""
    model, processor = assembled(language, chat_template="plain")
    batch = batch_of(processor, TEXTS)
    labels = answered(batch)
    out = model(**batch, labels=labels)
    assert out.logits.shape == (*batch["input_ids"].shape, len(processor.tokenizer))
    assert model(**batch, labels=labels, logits_to_keep=1).logits.shape[:2] == (len(TEXTS), 1)
    expected = cross_entropy(
        out.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    with torch.no_grad():
        without = model(**batch, labels=labels, skip_logits=True)
    assert without.logits is None
    counted = labels[:, 1:] != IGNORE_INDEX
    torch.testing.assert_close(without.token_losses, expected[counted.flatten()], rtol=1e-5, atol=1e-5)
    assert torch.equal(without.token_predictions, out.logits[:, :-1][counted].argmax(dim=-1))
    torch.testing.assert_close(without.loss, out.loss)
    trained = model.train()(**batch, labels=labels)
    assert trained.logits is None
    torch.testing.assert_close(trained.loss, out.loss)


def test_a_head_that_accelerate_moves_is_called_for_the_loss(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, TEXTS)
    expected = model.train()(**batch, labels=answered(batch)).loss
    weight = model.lm_head.weight.data
    # The hook brings the weight back at each call.
    add_hook_to_module(model.lm_head, AlignDevicesHook(execution_device="cpu", offload=True))
    assert model.lm_head.weight.is_meta and not weight.is_meta
    torch.testing.assert_close(model(**batch, labels=answered(batch)).loss, expected)


def test_an_evaluation_loop_gets_the_logits_alone(assembled: Callable, batch_of: Callable, tmp_path: Path) -> None:
    model, processor = assembled()

    def collate(texts: list[str]) -> dict[str, Tensor]:
        batch = batch_of(processor, texts)
        return {**batch, "labels": answered(batch)}

    seen = []
    arguments = TrainingArguments(str(tmp_path), per_device_eval_batch_size=1, remove_unused_columns=False)
    trainer = Trainer(model, arguments, collate, compute_metrics=lambda found: seen.append(found.predictions) or {})
    trainer.evaluate([ONE, NONE, LONG])  # of which one has no gate weights
    assert isinstance(seen[0], np.ndarray) and seen[0].shape[::2] == (3, len(processor.tokenizer))


def test_placeholders_are_never_targets(assembled: Callable, batch_of: Callable) -> None:
    """Labels copied from the ids, as in many examples, would give an infinite loss."""
    model, processor = assembled("qwen2")
    batch = batch_of(processor, [ONE, TWO], side="right")
    copied = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)
    clean = copied.clone()
    for placeholder in model.config.placeholder_ids:
        clean[clean == placeholder] = IGNORE_INDEX
    assert (clean != copied).any()
    mask = batch["attention_mask"]
    found = model(**batch, labels=copied, instruction_mask=mask).loss
    assert torch.isfinite(found)
    torch.testing.assert_close(found, model(**batch, labels=clean, instruction_mask=mask).loss)
    with pytest.raises(ValueError, match="num_items_in_batch counts them; set labels to -100 at the token ids"):
        model(**batch, labels=copied, num_items_in_batch=(copied != IGNORE_INDEX).sum())


def test_the_first_token_is_never_counted(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE])
    mask = torch.ones_like(batch["input_ids"])
    labels = answered(batch)
    with_first = labels.clone()
    with_first[:, 0] = batch["input_ids"][:, 0]
    out = model(**batch, labels=with_first, instruction_mask=mask)
    torch.testing.assert_close(out.loss, model(**batch, labels=labels, instruction_mask=mask).loss)


def test_parts_of_a_batch_add_up_to_its_loss_and_gradient(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    whole = batch_of(processor, [ONE, LONG])
    labels = answered(whole)
    labels[0, -3] = IGNORE_INDEX
    weight = model.model.multi_modal_projector.linear_1.weight
    model(**whole, labels=labels).loss.backward()
    loss, gradient = model(**whole, labels=labels).loss, weight.grad.clone()
    model.zero_grad()
    total = torch.zeros(())
    for row in range(2):
        part = {name: tensor[row : row + 1] for name, tensor in whole.items()}
        out = model(**part, labels=labels[row : row + 1], num_items_in_batch=torch.tensor(5))
        out.loss.backward()
        total += out.loss.detach()
    torch.testing.assert_close(total, loss.detach(), rtol=1e-6, atol=1e-6)
    # Sums of a few thousand terms in another order; the largest element is about 2.
    torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5)
    nothing = model(**whole, labels=torch.full_like(labels, IGNORE_INDEX), num_items_in_batch=5)
    assert nothing.loss == 0


def test_frozen_parts_get_no_gradient(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    model.requires_grad_(False)
    trained = [model.model.multi_modal_projector, model.model.alignment]
    for part in trained:
        part.requires_grad_(True)
    batch = batch_of(processor, TEXTS)
    model(**batch, labels=answered(batch)).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("model.multi_modal_projector", "model.alignment"))
    }
    assert with_gradient == expected
    assert all(p.grad is None for name, p in model.named_parameters() if name not in expected)


def test_pre_training_leaves_the_gate_alone(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE, LONG])
    out = model(**batch, labels=answered(batch), alignment_level=torch.tensor([2, 5]))
    out.loss.backward()
    touched = model.model.alignment.levels.grad.abs().sum(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == [1, 4]
    assert all(parameter.grad is None for parameter in model.model.alignment.gate.parameters())


def test_gradient_checkpointing_changes_no_gradient(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    model.train()
    batch = batch_of(processor, TEXTS)
    labels = answered(batch)
    model(**batch, labels=labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model(**batch, labels=labels).loss.backward()
    assert expected.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2"])
def test_a_batch_of_text_takes_the_parts_for_images_along(assembled: Callable, tower: str) -> None:
    model, _ = assembled("llama", tower)
    ids = torch.randint(3, 20, (2, 6))
    expected = model.eval()(input_ids=ids, labels=ids).loss
    model.train()
    loss = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for part in (model.model.multi_modal_projector, model.model.alignment):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and not parameter.grad.any(), name
