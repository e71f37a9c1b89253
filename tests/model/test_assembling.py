"""Assembling: any tower and any language model, both unchanged, with fresh modules that a seed reproduces."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from aligngpt.model.assembling import assemble
from aligngpt.model.backbones import BackboneError
from aligngpt.model.templates import CHATML, VICUNA, with_images

LANGUAGES = [
    "llama",
    "llama_tied",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "phi3",
    "gpt_neox",
    "stablelm",
    "gpt2",
    "cohere",
    "granite",
    "falcon_h1",
    "mamba2",
]
TOWERS = ["clip", "clip_full", "siglip", "siglip_full", "dinov2", "dinov2_registers"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_without_an_image_the_language_model_says_what_it_said(
    assembled: Callable, language_folder: Callable[[str], Path], language: str
) -> None:
    model, _ = assembled(language, chat_template="plain")
    original = AutoModelForCausalLM.from_pretrained(language_folder(language)).eval()
    vocabulary = original.config.vocab_size
    ids = torch.randint(3, vocabulary, (2, 20))
    with torch.no_grad():
        expected = original(input_ids=ids).logits
        found = model(input_ids=ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found[..., :vocabulary], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("language", LANGUAGES)
def test_image_and_alignment_reach_every_language_model(assembled: Callable, batch_of: Callable, language: str) -> None:
    model, processor = assembled(language, chat_template="plain")
    batch = batch_of(processor, ["<image> what colour is it ?"] * 2)
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    out = model(**batch, labels=labels)
    out.loss.backward()
    first, second = model(**batch).logits[:, -1]
    assert not torch.allclose(first, second, atol=1e-3)
    for part in (model.model.alignment, model.model.multi_modal_projector, model.model.vision_tower):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize("tower", TOWERS)
def test_image_tokens_are_the_projected_patches_of_every_tower(
    assembled: Callable, tower_folder: Callable[[str], Path], batch_of: Callable, tower: str
) -> None:
    model, processor = assembled(tower=tower)
    batch = batch_of(processor, ["<image> what colour is it ?"])
    whole = AutoModel.from_pretrained(tower_folder(tower)).eval()
    vision = whole.vision_model if tower.endswith("_full") else whole
    with torch.no_grad():
        features = vision(batch["pixel_values"], output_hidden_states=True).hidden_states[-2]
        found = torch.stack(model(**batch).image_outputs.pooler_output)
        # Class token and registers come first.
        expected = model.model.multi_modal_projector.project(features[:, -16:])
    assert found.shape == (1, 16, 32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert model.config.gate_grid == 4


@pytest.mark.parametrize("layer", [-1, -3, 1])
def test_another_feature_layer_can_be_chosen(
    assembled: Callable, tower_folder: Callable[[str], Path], batch_of: Callable, layer: int
) -> None:
    model, processor = assembled(vision_feature_layer=layer)
    batch = batch_of(processor, ["<image> what colour is it ?"])
    vision = AutoModel.from_pretrained(tower_folder("clip")).eval()
    with torch.no_grad():
        features = vision(batch["pixel_values"], output_hidden_states=True).hidden_states[layer][:, 1:]
        expected = model.model.multi_modal_projector(features)
        torch.testing.assert_close(
            torch.stack(model(**batch).image_outputs.pooler_output), expected, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("layer", [4, -5, [-2, 4], []])
def test_a_feature_layer_that_the_tower_does_not_have_is_an_error(assembled: Callable, layer: int | list[int]) -> None:
    with pytest.raises(BackboneError, match=r"vision_feature_layer is .* has the layers 0 to 3, or -4 to -1 counted"):
        assembled(vision_feature_layer=layer)


def test_options_reach_configuration_and_network(assembled: Callable) -> None:
    model, processor = assembled(alignment="local", num_levels=3, gate_grid=2, text_pooling="all", dtype=torch.bfloat16)
    config = model.config
    assert (config.alignment, config.num_alignment_levels, config.gate_grid) == ("local", 3, 2)
    assert config.text_pooling == "all"
    assert model.model.alignment.levels.shape == (3, 32)
    assert model.model.alignment.gate[0].weight.shape == (256, 4)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert config.image_token_index == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert config.align_token_index == processor.tokenizer.convert_tokens_to_ids("<align>")
    assert not model.training


def test_a_larger_picture_has_more_image_tokens(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled(tower="dinov2", image_size=48)
    assert (model.config.image_seq_length, processor.image_seq_length, model.config.gate_grid) == (36, 36, 6)
    features = model(**batch_of(processor, ["<image> red"])).image_outputs.pooler_output
    assert [tuple(image.shape) for image in features] == [(36, 32)]


def test_parts_share_their_configuration_with_the_whole(assembled: Callable) -> None:
    model, _ = assembled()
    assert model.config.text_config is model.model.language_model.config
    assert model.config.vision_config is model.model.vision_tower.config
    model.set_attn_implementation("eager")
    assert model.model.language_model.config._attn_implementation == "eager"


def test_the_same_seed_gives_the_same_model(
    tower_folder: Callable[[str], Path], language_folder: Callable[[str], Path]
) -> None:
    def weights(**options: Any) -> dict[str, torch.Tensor]:
        torch.rand(3)  # the random state before must not matter
        model, _ = assemble(tower_folder("clip"), language_folder("llama"), **options)
        return model.state_dict()

    first, second, other = weights(), weights(), weights(seed=1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    fresh = {name for name in first if not torch.equal(first[name], other[name])}
    assert fresh == {name for name in first if "multi_modal_projector" in name or "alignment" in name}


def test_answers_end_where_the_language_model_and_the_template_end_them(assembled: Callable) -> None:
    model, processor = assembled("gemma")
    ids = processor.tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    assert model.generation_config.eos_token_id == sorted(ids)
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id
    assert model.generation_config.bos_token_id == processor.tokenizer.bos_token_id
    model, processor = assembled("llama")
    assert model.generation_config.eos_token_id == [processor.tokenizer.eos_token_id]


def test_templates_are_found_by_name_file_or_tokenizer(assembled: Callable, tmp_path: Path) -> None:
    _, vicuna = assembled("llama")  # whose tokenizer has no template
    assert vicuna.chat_template == VICUNA
    _, own = assembled("gemma")
    assert own.chat_template == with_images(own.tokenizer.chat_template)
    _, named = assembled("gemma", chat_template="chatml")
    assert named.chat_template == CHATML
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}¡{{ m['content'] }}!{% endfor %}", encoding="utf-8")
    _, mine = assembled("gemma", chat_template=str(file))
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]
    assert mine.apply_chat_template(talk) == "¡<image>\nhi!"


THINKS = (
    "{% for m in messages %}<|im_start|>{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


ENDLESS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "chosen", "name", "trouble"),
    [
        (THINKS, CHATML, "chatml", "it writes earlier turns otherwise when later ones follow"),
        (THINKS.replace("im_", ""), VICUNA, "vicuna", "it writes earlier turns otherwise when later ones follow"),
        (ENDLESS, VICUNA, "vicuna", "it writes no mark after an answer, so a model would not learn to stop"),
    ],
)
def test_a_template_that_does_not_suit_training_is_replaced_and_told(
    language_folder: Callable,
    tower_folder: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    template: str,
    chosen: str,
    name: str,
    trouble: str,
) -> None:
    shutil.copytree(language_folder("qwen2"), tmp_path / "words")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "words")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "words")
    _, processor = assemble(tower_folder("clip"), tmp_path / "words")
    assert processor.chat_template == chosen
    said = capsys.readouterr().err
    assert f"{trouble}; {name} is used instead" in said
    (tmp_path / "mine.jinja").write_text(template)
    _, mine = assemble(tower_folder("clip"), tmp_path / "words", chat_template=str(tmp_path / "mine.jinja"))
    assert mine.chat_template == with_images(template)
    said = capsys.readouterr().err
    assert f"mine.jinja does not suit training: {trouble}; change it, or choose another" in said


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x80", "folder"])
def test_a_template_that_cannot_be_read_is_an_error(
    assembled: Callable, tmp_path: Path, content: bytes | str | None
) -> None:
    file = tmp_path / "mine.jinja"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file.mkdir()
    with pytest.raises(BackboneError, match=r"mine.jinja' is neither one of plain, .*bare nor a readable Jinja file"):
        assembled(chat_template=str(file))


def test_a_language_model_that_does_more_than_is_known_is_an_error(
    tower_folder: Callable[[str], Path], language_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LlamaForCausalLM.forward

    def scaled(self: LlamaForCausalLM, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 0.9
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    with pytest.raises(BackboneError, match="llama: LlamaForCausalLM does more between its embeddings and its logits"):
        assemble(tower_folder("clip"), language_folder("llama"))


def test_a_backbone_that_is_missing_is_an_error(
    tower_folder: Callable[[str], Path], language_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(BackboneError, match="vision tower"):
        assemble(tmp_path / "nothing", language_folder("llama"))
    with pytest.raises(BackboneError, match="language model"):
        assemble(tower_folder("clip"), tmp_path / "nothing")
