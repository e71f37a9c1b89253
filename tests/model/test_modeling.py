"""The network: LLaVA with one more token whose embedding the alignment module forms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from aligngpt.alignment.module import AlignmentModule
from aligngpt.model.assembling import assemble
from aligngpt.model.modeling import IGNORE_INDEX

ONE = "USER : <image> what colour is the circle ? ASSISTANT :"
LONG = "USER : <image> how many big red shape are there on the left of this picture please ? ASSISTANT :"
TWO = "USER : <image> <image> is it the red one ? ASSISTANT :"
NONE = "USER : describe a yellow triangle please ASSISTANT :"
TEXTS = [ONE, LONG, TWO, NONE]
FIRST_IMAGE = [0, 1, 2, 4]

Batch = dict[str, Tensor]


def alone(batch_of: Callable[..., Batch], processor: Any) -> list[Batch]:
    """The samples of TEXTS one by one, without padding."""
    return [batch_of(processor, [text], start=start) for text, start in zip(TEXTS, FIRST_IMAGE, strict=True)]


def read_by_language_model(model: Any, batch: Batch, **options: Any) -> Tensor:
    """The sequence of embeddings that the language model gets, `(batch, length, hidden)`."""
    seen: list[Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**batch, **options)
    hook.remove()
    return seen[0]


def image_tokens_of(model: Any, batch: Batch) -> Tensor:
    """The projected tokens of a batch's images, `(images, P, hidden)`."""
    return torch.stack(model.model.get_image_features(batch["pixel_values"]).pooler_output)


def words_of(logits: Tensor, model: Any) -> Tensor:
    """Logits without the placeholders, whose logits are minus infinity."""
    kept = torch.ones(logits.shape[-1], dtype=torch.bool)
    kept[model.config.placeholder_ids] = False
    return logits[..., kept]


def answered(batch: Batch) -> Tensor:
    """Labels that count the last three tokens of each (left-padded) sample."""
    labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
    labels[:, -3:] = batch["input_ids"][:, -3:]
    return labels


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("alignment", ["adaptive", "global", "local", "average", "mean", "none"])
def test_a_sample_does_not_depend_on_its_batch(
    assembled: Callable, batch_of: Callable, side: str, alignment: str
) -> None:
    model, processor = assembled(alignment=alignment)
    batch = batch_of(processor, TEXTS, side=side)
    assert (batch["attention_mask"] == 0).any()
    together = model(**batch)
    for row, sample in enumerate(alone(batch_of, processor)):
        out = model(**sample)
        kept = batch["attention_mask"][row].bool()
        torch.testing.assert_close(together.logits[row, kept], out.logits[0], rtol=1e-5, atol=1e-5)
        if alignment in ("adaptive", "local") and row < 3:
            torch.testing.assert_close(together.alignment_weights[row], out.alignment_weights[0])


@pytest.mark.parametrize("language", ["mistral", "gemma3", "qwen2"])
def test_a_sample_does_not_depend_on_its_batch_in_other_families(
    assembled: Callable, batch_of: Callable, language: str
) -> None:
    model, processor = assembled(language, chat_template="plain")
    batch = batch_of(processor, TEXTS)
    together = model(**batch).logits
    for row, sample in enumerate(alone(batch_of, processor)):
        kept = batch["attention_mask"][row].bool()
        torch.testing.assert_close(together[row, kept], model(**sample).logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_pixels", [False, True])
def test_a_sample_without_an_image_is_the_language_model(
    assembled: Callable, batch_of: Callable, with_pixels: bool
) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE, NONE] if with_pixels else [NONE, NONE])
    assert ("pixel_values" in batch) == with_pixels
    out = model(**batch)
    kept = batch["attention_mask"][1].bool()
    plain = model.model.language_model(input_ids=batch["input_ids"][1:, kept]).last_hidden_state
    torch.testing.assert_close(
        words_of(out.logits[1:, kept], model), words_of(model.lm_head(plain), model), rtol=1e-5, atol=1e-5
    )
    assert (out.alignment_weights is not None) == with_pixels


def test_without_an_alignment_module_it_is_a_llava(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled(alignment="none")
    config = LlavaConfig(
        vision_config=model.config.vision_config,
        text_config=model.config.text_config,
        image_token_index=model.config.image_token_index,
        image_seq_length=model.config.image_seq_length,
        vision_feature_layer=model.config.vision_feature_layer,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        tie_word_embeddings=False,
    )
    llava = LlavaForConditionalGeneration(config).eval()
    llava.load_state_dict(model.state_dict())
    batch = batch_of(processor, TEXTS)
    kept = batch["attention_mask"].bool()
    found, expected = (words_of(one(**batch).logits[kept], model) for one in (model, llava))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert model.config.placeholder_ids == [model.config.image_token_index]
    with torch.no_grad():  # so that LLaVA gives the placeholder zero probability too
        llava.lm_head.register_forward_hook(
            lambda module, inputs, logits: logits.index_fill(-1, torch.tensor(model.config.placeholder_ids), -1e9)
        )
    labels = answered(batch)
    torch.testing.assert_close(model(**batch, labels=labels).loss, llava(**batch, labels=labels).loss)
    assert not any("alignment" in name for name, _ in model.named_parameters())
    assert model(**batch).alignment_weights is None


@pytest.mark.parametrize("alignment", ["adaptive", "global", "local", "average", "mean"])
def test_align_stands_for_what_the_module_forms(assembled: Callable, batch_of: Callable, alignment: str) -> None:
    model, processor = assembled(alignment=alignment)
    batch = batch_of(processor, [ONE])
    sequence, image_tokens = read_by_language_model(model, batch), image_tokens_of(model, batch)
    ids = batch["input_ids"][0]
    table = model.get_input_embeddings().weight
    is_align, is_image = ids == model.config.align_token_index, ids == model.config.image_token_index
    assert is_align.tolist()[:3] == [False, True, False]  # BOS, <align>, the rest
    text = table[ids[2:][~is_image[2:]]].mean(dim=0, keepdim=True)
    module: AlignmentModule = model.model.alignment
    expected = module(image_tokens, text, mode=alignment)
    torch.testing.assert_close(sequence[0, 1], expected.embedding[0])
    assert (model(**batch).alignment_weights is None) == (alignment in ("global", "average", "mean"))
    assert torch.equal(sequence[0, is_image], image_tokens[0])
    assert torch.equal(sequence[0, ~is_image & ~is_align], table[ids[~is_image & ~is_align]])


@pytest.mark.parametrize("given", [{"alignment_level": torch.tensor([3])}, {"alignment_weights": torch.ones(1, 7)}])
def test_levels_of_a_model_without_an_alignment_module_are_an_error(
    assembled: Callable, batch_of: Callable, given: dict
) -> None:
    model, processor = assembled(alignment="none")
    batch = batch_of(processor, [ONE])
    for run in (model, model.generate):
        with pytest.raises(ValueError, match=r"no alignment module .* leave them out"):
            run(**batch, **given)


def test_gate_reads_all_images_of_a_sample(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [NONE, TWO, ONE])
    image_tokens, weights = image_tokens_of(model, batch), model(**batch).alignment_weights
    ids = batch["input_ids"][1]
    after = (ids == model.config.align_token_index).cumsum(0).bool()
    readable = after & (ids != model.config.image_token_index) & (ids != model.config.align_token_index)
    text = model.get_input_embeddings().weight[ids[readable]].mean(dim=0)
    maps = image_tokens[:2] @ text
    torch.testing.assert_close(weights[1], model.model.alignment.gate_weights(maps.mean(dim=0)))


def test_a_forced_level_takes_its_embedding(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE, NONE, LONG])
    level = torch.tensor([3, 1, 8])
    sequence = read_by_language_model(model, batch, alignment_level=level)
    is_align = batch["input_ids"] == model.config.align_token_index
    assert torch.equal(sequence[is_align], model.model.alignment.levels[[2, 7]])
    assert model(**batch, alignment_level=level).alignment_weights is None
    low, high = (model(**batch, alignment_level=torch.full((3,), level)).logits for level in (1, 8))
    assert not torch.allclose(low[0], high[0], atol=1e-3)
    kept = batch["attention_mask"][1].bool()
    torch.testing.assert_close(low[1, kept], high[1, kept])


def test_weights_read_back_and_forced_give_the_same_logits(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, TEXTS)
    free = model(**batch)
    forced = model(**batch, alignment_weights=free.alignment_weights)
    torch.testing.assert_close(free.logits, forced.logits)
    other = model(**batch, alignment_weights=torch.eye(7)[:4])
    assert not torch.allclose(free.logits, other.logits, atol=1e-3)


@pytest.mark.parametrize("alignment", ["adaptive", "local"])
def test_instruction_pooling_reads_the_same_in_training_and_at_inference(
    assembled: Callable, batch_of: Callable, alignment: str
) -> None:
    model, processor = assembled(alignment=alignment)
    prompts = [ONE, LONG]
    answers = [" a red circle", " one two three four yes"]
    training = batch_of(processor, [p + a for p, a in zip(prompts, answers, strict=True)], side="right")
    inference = batch_of(processor, prompts)
    labels = training["input_ids"].clone()
    for row, length in enumerate(inference["attention_mask"].sum(dim=1)):
        labels[row, :length] = IGNORE_INDEX
    labels[training["attention_mask"] == 0] = IGNORE_INDEX
    trained = model(**training, labels=labels).alignment_weights
    torch.testing.assert_close(trained, model(**inference).alignment_weights)
    assert not torch.allclose(trained, model(**training).alignment_weights, atol=1e-5)
    # As in the published training code, which reads the responses as well.
    everything, _ = assembled(alignment=alignment, text_pooling="all")
    torch.testing.assert_close(
        everything(**training, labels=labels).alignment_weights, model(**training).alignment_weights
    )


def test_instruction_of_a_conversation_ends_at_the_first_response(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    first = batch_of(processor, [ONE])
    text = ONE + " red USER : how many are there ? ASSISTANT : two"
    batch = batch_of(processor, [text])
    start, length = first["input_ids"].shape[1], batch["input_ids"].shape[1]
    labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
    labels[0, [start, length - 1]] = batch["input_ids"][0, [start, length - 1]]
    torch.testing.assert_close(model(**batch, labels=labels).alignment_weights, model(**first).alignment_weights)


def test_a_given_instruction_mask_rules(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE, LONG])
    mask = torch.zeros_like(batch["input_ids"])
    mask[:, -4:] = 1
    masked = model(**batch, instruction_mask=mask).alignment_weights
    torch.testing.assert_close(model(**batch, instruction_mask=mask, labels=answered(batch)).alignment_weights, masked)
    assert not torch.allclose(model(**batch).alignment_weights, masked, atol=1e-5)
    # Marking padding, BOS, <align> and image tokens as well changes nothing.
    config, ids = model.config, batch["input_ids"]
    silent = (ids == config.align_token_index).cumsum(dim=-1) == 0
    silent |= (ids == config.align_token_index) | (ids == config.image_token_index)
    torch.testing.assert_close(model(**batch, instruction_mask=mask | silent).alignment_weights, masked)


def test_logits_to_keep_are_the_last_ones(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE, LONG])
    full = model(**batch).logits
    torch.testing.assert_close(model(**batch, logits_to_keep=2).logits, full[:, -2:])
    chosen = torch.tensor([5, 7])
    torch.testing.assert_close(model(**batch, logits_to_keep=chosen).logits, full[:, chosen])


def test_embeddings_can_be_given_in_place_of_ids(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, TEXTS)
    expected = model(**batch)
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    out = model(**batch, inputs_embeds=embeds)
    torch.testing.assert_close(out.logits, expected.logits)


def test_ids_and_embeddings_together_or_neither_are_an_error(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [NONE])
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**batch, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(attention_mask=batch["attention_mask"])


def test_images_that_do_not_fit_the_tokens_are_an_error(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE])
    batch["pixel_values"] = batch["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match="do not match"):
        model(**batch)


def test_an_image_token_without_an_image_is_an_error(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE])
    del batch["pixel_values"]
    with pytest.raises(ValueError, match="no pixel_values were given"):
        model(**batch)


@pytest.mark.parametrize("count", [0, 2])
def test_a_sample_with_images_needs_one_align_token(assembled: Callable, batch_of: Callable, count: int) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE, LONG])
    place = (batch["input_ids"][1] == model.config.align_token_index).nonzero().item()
    batch["input_ids"][1, place : place + 2] = model.config.align_token_index if count else 5
    with pytest.raises(ValueError, match=f"sample 1 of the batch has images and {count} <align> tokens"):
        model(**batch)


def test_a_plain_tuple_can_be_asked_for(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE])
    assert torch.equal(model(**batch, return_dict=False)[0], model(**batch).logits)


def test_a_labelled_batch_leaves_no_cache(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE])
    assert model(**batch, labels=answered(batch)).cache is None
    assert model(**batch).cache is not None


def test_hidden_states_and_attentions_can_be_asked_for(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    model.set_attn_implementation("eager")
    batch = batch_of(processor, [ONE])
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    length = batch["input_ids"].shape[1]
    assert [tuple(state.shape) for state in out.hidden_states] == [(1, length, 32)] * 3
    assert [tuple(attention.shape) for attention in out.attentions] == [(1, 4, length, length)] * 2
    assert [tuple(image.shape) for image in out.image_outputs.pooler_output] == [(16, 32)]


def test_half_precision_runs_in_half_precision(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE])
    expected = model(**batch)
    model.bfloat16()
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    out = model(**batch)
    assert out.logits.dtype == torch.bfloat16
    assert out.alignment_weights.dtype == torch.float32
    torch.testing.assert_close(out.logits.float(), expected.logits, rtol=0.1, atol=0.3)


def test_the_alignment_module_is_never_split_across_devices(assembled: Callable) -> None:
    model, _ = assembled()
    assert {"AlignmentModule", "LlamaDecoderLayer"} <= set(model._no_split_modules)


@pytest.mark.parametrize(
    ("tower", "options"),
    [
        ("clip", {}),
        ("clip", {"vision_feature_layer": [-2, -1]}),
        ("siglip", {}),
        ("dinov2", {"image_scales": [32, 64]}),
        ("dinov2_registers", {"vision_feature_layer": [-2, -1]}),
        ("dinov2_registers", {"image_scales": [32, 64]}),
    ],
)
def test_features_made_beforehand_are_as_good_as_pixels(
    language_folder: Callable,
    tower_folder: Callable,
    batch_of: Callable[..., Batch],
    tower: str,
    options: dict[str, Any],
) -> None:
    model, processor = assemble(tower_folder(tower), language_folder("llama"), **options)
    batch = batch_of(processor, TEXTS)
    pixels = batch["pixel_values"]
    with torch.no_grad():
        expected = model(**batch)
        del batch["pixel_values"]
        features = model.model.tower_features(pixels)
        found = model(**batch, vision_features=features)
    assert features.shape[:2] == (len(pixels), model.config.image_seq_length)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.alignment_weights, expected.alignment_weights)
    with pytest.raises(ValueError, match="give only one of pixel_values, vision_features"):
        model(**batch, pixel_values=pixels, vision_features=features)
