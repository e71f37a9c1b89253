"""Foreign folders are converted weight for weight, or refused with an error that gives the reason."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from aligngpt.errors import AlignGPTError
from aligngpt.model.backbones import BackboneError
from aligngpt.model.foreign.checkpoint_formats import LayoutError
from aligngpt.model.foreign.conversion import convert, to_original
from aligngpt.model.foreign.first_stage import STAGE_ONE_FILE
from aligngpt.model.foreign.weight_files import ShardError, read_shard, shard_files
from aligngpt.model.vision_towers import stretch

TEXT = "USER : <image> what colour is the circle ? ASSISTANT :"
THEIRS = (
    ("model.vision_tower.", "vision_tower.vision_tower.vision_model."),
    ("model.multi_modal_projector.linear_1.", "mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "mm_projector.2."),
    ("model.alignment.levels", "align_indicators.indicator_embs"),
    ("model.alignment.gate.", "gated_weight_layer.mlp."),
    ("model.language_model.", "model."),
)


def their_name(name: str) -> str:
    return next((name.replace(ours, theirs, 1) for ours, theirs in THEIRS if name.startswith(ours)), name)


@pytest.fixture
def original(
    assembled: Callable, tmp_path: Path, language_folder: Callable, tower_folder: Callable
) -> Callable[..., tuple[Path, Any, Any]]:
    """A folder as saved by the original code, and the model and processor it was made from."""

    def make(
        language: str = "llama", tower: str = "clip", *, files: str = "bin", with_tower: bool = True, **options: Any
    ) -> tuple[Path, Any, Any]:
        model, processor = assembled(
            language, tower, text_pooling="all", chat_template="vicuna", pad_images=False, **options
        )
        if tower == "siglip":
            # The original code leaves images to the tower's own processor.
            stretch(processor.image_processor)
        folder = tmp_path / "x"  # a name without meaning
        folder.mkdir()
        words = len(model.lm_head.weight) - 2
        state = {
            their_name(name): tensor[:words] if "embed_tokens" in name or "lm_head" in name else tensor
            for name, tensor in model.state_dict().items()
            if with_tower or "vision_tower" not in name
        }
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        config = model.config.text_config.to_dict() | {
            "model_type": "aligngpt" if language == "llama" else f"aligngpt_{language}",
            "architectures": [
                "AlignGPTForCausalLM" if language == "llama" else f"AlignGPT{language.title()}ForCausalLM"
            ],
            "vocab_size": words,
            "mm_vision_tower": str(tower_folder(tower)),
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
        }
        if scales := model.config.image_scales:
            config |= {"use_s2": True, "s2_scales": ",".join(map(str, scales))}
        (folder / "config.json").write_text(json.dumps(config))
        for file in language_folder(language).glob("*token*"):
            shutil.copy(file, folder)
        write(folder, state, files)
        return folder, model, processor

    return make


def write(folder: Path, state: dict[str, Tensor], files: str) -> None:
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    if files == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif files == "old bin":
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif files == "safetensors":
        save_file(state, folder / "model.safetensors")
    else:
        names = sorted(state)
        parts = {f"pytorch_model-0000{n + 1}-of-00003.bin": names[n::3] for n in range(3)}
        for file, members in parts.items():
            torch.save({name: state[name] for name in members}, folder / file)
        weight_map = {name: file for file, members in parts.items() for name in members}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def inputs_of(processor: Any, pictures: list) -> dict[str, Tensor]:
    return dict(processor(images=pictures[:1], text=[TEXT], return_tensors="pt"))


def assert_answers_alike(out: Path, model: Any, processor: Any, pictures: list) -> None:
    """The converted folder gives the logits of the model that the foreign folder was made from."""
    found = AutoModelForImageTextToText.from_pretrained(out)
    batch = inputs_of(AutoProcessor.from_pretrained(out), pictures)
    expected = inputs_of(processor, pictures)
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name
    torch.testing.assert_close(found(**batch).logits, model(**expected).logits)
    torch.testing.assert_close(found(**batch).alignment_weights, model(**expected).alignment_weights)
    assert found.generation_config.eos_token_id == model.generation_config.eos_token_id


@pytest.mark.parametrize("files", ["bin", "old bin", "safetensors", "shards"])
@pytest.mark.parametrize("with_tower", [True, False])
def test_an_original_folder_gives_the_same_numbers(
    original: Callable, tmp_path: Path, pictures: list, files: str, with_tower: bool
) -> None:
    folder, model, processor = original(files=files, with_tower=with_tower)
    done = convert(folder, tmp_path / "out")
    assert done.layout == "original AlignGPT"
    assert done.fresh == ()
    assert done.parameters == model.num_parameters()
    assert_answers_alike(tmp_path / "out", model, processor, pictures)
    assert not list((tmp_path / "out").glob("*.bin"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == (3 if files == "shards" else 1)


@pytest.mark.parametrize(
    ("language", "tower", "options"),
    [
        ("mistral", "clip", {}),
        ("llama", "siglip", {}),
        ("llama", "dinov2", {"num_levels": 5}),
        ("phi", "clip", {"gate_grid": 3}),
        ("gemma", "clip", {}),
        ("qwen2", "siglip", {"num_levels": 12}),
    ],
)
def test_the_family_is_converted_by_its_configuration(
    original: Callable, tmp_path: Path, pictures: list, language: str, tower: str, options: dict
) -> None:
    folder, model, processor = original(language, tower, **options)
    convert(folder, tmp_path / "out")
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert type(found.config.text_config) is type(model.config.text_config)
    assert found.config.num_alignment_levels == model.config.num_alignment_levels
    assert found.config.gate_grid == model.config.gate_grid
    batch = inputs_of(processor, pictures)
    if language == "gemma":
        multiply_all_embeddings(model)
    torch.testing.assert_close(found(**batch).logits, model(**batch).logits)
    torch.testing.assert_close(found(**batch).alignment_weights, model(**batch).alignment_weights)


def multiply_all_embeddings(model: Any) -> None:
    """Let a Gemma compute as in the original code's version of transformers: image tokens are multiplied like words."""
    language = model.model.language_model
    scale = language.embed_tokens.embed_scale.item()
    assert scale == pytest.approx(model.config.text_config.hidden_size**0.5)
    language.embed_tokens.embed_scale.fill_(1.0)

    def multiply(_: Any, args: tuple, given: dict) -> tuple:
        return args, given | {"inputs_embeds": given["inputs_embeds"] * scale}

    language.register_forward_pre_hook(multiply, with_kwargs=True)


def test_a_llava_gets_a_fresh_alignment_module(
    assembled: Callable, tmp_path: Path, language_folder: Callable, tower_folder: Callable, pictures: list
) -> None:
    model, processor = assembled(alignment="none", chat_template="vicuna")
    ours = model.config
    config = LlavaConfig(
        vision_config=ours.vision_config,
        text_config=ours.text_config,
        image_token_index=ours.image_token_index,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    llava = LlavaForConditionalGeneration(config)
    llava.load_state_dict(model.state_dict())
    llava.save_pretrained(tmp_path / "llava")
    processor.tokenizer.save_pretrained(tmp_path / "llava")
    with pytest.raises(LayoutError, match="does not name its vision tower"):
        convert(tmp_path / "llava", tmp_path / "out")
    done = convert(tmp_path / "llava", tmp_path / "out", vision_tower=tower_folder("clip"), seed=3)
    assert done.layout == "LLaVA of transformers"
    assert {name.rpartition(".")[0] for name in done.fresh} == {
        "model.alignment",
        "model.alignment.gate.0",
        "model.alignment.gate.2",
    }
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    for name, tensor in llava.state_dict().items():
        assert torch.equal(found.state_dict()[name][: len(tensor)], tensor), name
    batch = inputs_of(AutoProcessor.from_pretrained(tmp_path / "out"), pictures)
    assert found(**batch).alignment_weights.shape == (1, 7)
    # The same seed gives the same module.
    convert(tmp_path / "llava", tmp_path / "again", vision_tower=tower_folder("clip"), seed=3)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_what_the_first_stage_left_is_put_on_its_backbones(
    original: Callable, tmp_path: Path, language_folder: Callable, tower_folder: Callable
) -> None:
    _, model, _ = original()
    left = {
        f"model.{their_name(name)}": tensor
        for name, tensor in model.state_dict().items()
        if "multi_modal_projector" in name or name.endswith("alignment.levels")
    }
    torch.save(left, tmp_path / STAGE_ONE_FILE)
    with pytest.raises(LayoutError, match="--language-model"):
        convert(tmp_path / STAGE_ONE_FILE, tmp_path / "out", vision_tower=tower_folder("clip"))
    backbones = {"vision_tower": tower_folder("clip"), "language_model": language_folder("llama")}
    done = convert(tmp_path / STAGE_ONE_FILE, tmp_path / "out", **backbones)
    assert all(name.startswith("model.alignment.gate.") for name in done.fresh)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("model.alignment.gate."):
            assert torch.equal(found[name], tensor), name


def test_a_first_stage_for_gemma_is_multiplied_as_its_layers_multiplied_it(
    original: Callable, tmp_path: Path, language_folder: Callable, tower_folder: Callable
) -> None:
    _, model, _ = original("gemma")
    torch.save(first_stage_of(model), tmp_path / STAGE_ONE_FILE)
    backbones = {"vision_tower": tower_folder("clip"), "language_model": language_folder("gemma")}
    convert(tmp_path / STAGE_ONE_FILE, tmp_path / "out", **backbones)
    found, theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").state_dict(), model.state_dict()
    scale = model.config.text_config.hidden_size**0.5
    for name in ("multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias", "alignment.levels"):
        torch.testing.assert_close(found[f"model.{name}"], scale * theirs[f"model.{name}"])
    first = "model.multi_modal_projector.linear_1.weight"
    assert torch.equal(found[first], theirs[first])


def test_weights_that_do_not_fit_are_all_named(original: Callable, tmp_path: Path) -> None:
    folder, _, _ = original(files="safetensors")
    state = load_file(folder / "model.safetensors")
    state["mm_projector.1.weight"] = torch.zeros(3)
    state["model.norm.weight"] = torch.zeros(5)
    del state["mm_projector.2.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(LayoutError) as raised:
        convert(folder, tmp_path / "out")
    message = str(raised.value)
    assert "mm_projector.1.weight is not part of such a model" in message
    assert "model.language_model.norm.weight has shape (5,), expected (32,)" in message
    assert "model.multi_modal_projector.linear_2.bias is missing" in message
    assert not (tmp_path / "out").exists()


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize("content", [{"a": Evil()}, Evil(), [torch.zeros(2)], {"a": "text"}])
def test_a_pickle_with_anything_but_tensors_is_refused(
    original: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, _, _ = original()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ShardError, match=r"pytorch_model\.bin"):
        convert(folder, tmp_path / "out")
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Evil(), file)
    with pytest.raises(ShardError, match=r"pytorch_model\.bin"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"torn"), "cannot be read|refused"),
        (lambda folder: (folder / "pytorch_model.bin").unlink(), "contains no weights"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "neither that of the original"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(original: Callable, tmp_path: Path, damage: Callable, says: str) -> None:
    folder, _, _ = original()
    damage(folder)
    with pytest.raises((LayoutError, ShardError, BackboneError), match=says):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_shard_is_named(original: Callable, tmp_path: Path) -> None:
    folder, _, _ = original(files="shards")
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(ShardError, match=r"lacks pytorch_model-00002-of-00003\.bin"):
        convert(folder, tmp_path / "out")


@pytest.mark.parametrize(("field", "value"), [("mm_projector_type", "linear"), ("mm_use_im_start_end", True)])
def test_what_cannot_be_converted_is_refused(original: Callable, tmp_path: Path, field: str, value: Any) -> None:
    folder, _, _ = original()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(LayoutError, match=r"projector is 'linear'|mm_use_im_start_end"):
        convert(folder, tmp_path / "out")


def test_several_scales_are_converted_there_and_back(original: Callable, tmp_path: Path, pictures: list) -> None:
    folder, model, processor = original(image_scales=(32, 64))
    convert(folder, tmp_path / "out")
    assert_answers_alike(tmp_path / "out", model, processor, pictures)
    to_original(tmp_path / "out", tmp_path / "back", vision_tower="clip")
    theirs = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (theirs["use_s2"], theirs["s2_scales"]) == (True, "32,64")
    assert theirs["mm_hidden_size"] == 2 * model.config.vision_config.hidden_size


@pytest.mark.parametrize("files", ["safetensors", "shards"])
@pytest.mark.parametrize("language", ["llama", "mistral", "phi", "gemma"])
def test_there_and_back_gives_the_same_files(original: Callable, tmp_path: Path, language: str, files: str) -> None:
    folder, *_ = original(language, files=files)
    convert(folder, tmp_path / "ours")
    tower = json.loads((folder / "config.json").read_text())["mm_vision_tower"]
    parameters = to_original(tmp_path / "ours", tmp_path / "back", vision_tower=tower)
    first = {name: tensor for file in shard_files(folder) for name, tensor in read_shard(file).items()}
    second = {name: tensor for file in shard_files(tmp_path / "back") for name, tensor in read_shard(file).items()}
    first.pop("model.layers.0.self_attn.rotary_emb.inv_freq")
    if language == "gemma":
        first.pop("lm_head.weight")  # Tied to the embeddings.
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if language == "gemma":  # Some weights were multiplied by √d and divided again.
            torch.testing.assert_close(tensor, second[name], rtol=1e-6, atol=0)
        else:
            assert torch.equal(tensor, second[name]), name
    assert parameters == sum(tensor.numel() for tensor in first.values())
    before, after = (json.loads((one / "config.json").read_text()) for one in (folder, tmp_path / "back"))
    assert {name: after[name] for name in before if name in after and name != "torch_dtype"} == {
        name: value for name, value in before.items() if name in after and name != "torch_dtype"
    }
    assert set(before) - set(after) <= {"dtype", "transformers_version", "_name_or_path"}


def own_pixels(tower: Path, picture: Image.Image) -> Tensor:
    """What the image processor of a tower makes of an image."""
    return AutoImageProcessor.from_pretrained(tower, backend="pil")(picture, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_images_that_are_not_padded_are_read_as_the_tower_reads_them(
    original: Callable, tmp_path: Path, tower_folder: Callable, language_folder: Callable, tower: str
) -> None:
    """CLIP's own processor cuts out the central square, SigLIP's resizes the whole image to one."""
    picture = Image.effect_noise((90, 40), 100).convert("RGB")
    expected = own_pixels(tower_folder(tower), picture)
    folder, model, _ = original("llama", tower)
    convert(folder, tmp_path / "whole")
    left = tmp_path / "left"
    left.mkdir()
    torch.save(first_stage_of(model), left / STAGE_ONE_FILE)
    (left / "config.json").write_text(json.dumps({"mm_vision_tower": "tower", "mm_projector_type": "mlp2x_gelu"}))
    convert(left, tmp_path / "first", vision_tower=tower_folder(tower), language_model=language_folder("llama"))
    for name in ("whole", "first"):
        images = AutoProcessor.from_pretrained(tmp_path / name).image_processor
        torch.testing.assert_close(images(picture, return_tensors="pt")["pixel_values"], expected)
    to_original(tmp_path / "whole", tmp_path / "back", vision_tower=str(tower_folder(tower)))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["image_aspect_ratio"] == "square"
    padded = reconfigured(folder, image_aspect_ratio="pad")
    convert(padded, tmp_path / "padded")
    assert AutoProcessor.from_pretrained(tmp_path / "padded").image_processor.do_pad is True


def test_images_that_the_original_code_would_read_otherwise_do_not_go_back(tmp_path: Path, assembled: Callable) -> None:
    for part in assembled("llama", "siglip", text_pooling="all", pad_images=False):
        part.save_pretrained(tmp_path / "ours")
    with pytest.raises(
        LayoutError, match=r"it cuts out the central square, but the original code resizes .*pad_images: true"
    ):
        to_original(tmp_path / "ours", tmp_path / "back", vision_tower="tower")
    assert not (tmp_path / "back").exists()


def test_only_our_models_go_back(original: Callable, tmp_path: Path, assembled: Callable) -> None:
    folder, _, _ = original()
    with pytest.raises(LayoutError, match="not one of our model folders"):
        to_original(folder, tmp_path / "back", vision_tower="tower")
    for name, options, reason in (
        ("global", {"alignment": "global"}, "alignment 'global'"),
        ("grid", {"gate_grid": 3}, "reads 3 × 3 values, .* of its 16 image tokens"),
        ("family", {"language": "gpt2"}, "no model with gpt2"),
    ):
        for part in assembled(text_pooling="all", **options):
            part.save_pretrained(tmp_path / name)
        with pytest.raises(LayoutError, match=reason):
            to_original(tmp_path / name, tmp_path / "back", vision_tower="tower")
    assert not (tmp_path / "back").exists()


def test_only_a_new_or_empty_folder_is_written(
    original: Callable, tmp_path: Path, tower_folder: Callable, language_folder: Callable
) -> None:
    folder, model, _ = original()
    torch.save(first_stage_of(model), tmp_path / STAGE_ONE_FILE)
    backbones = {"vision_tower": tower_folder("clip"), "language_model": language_folder("llama")}
    (tmp_path / "out").mkdir()
    convert(folder, tmp_path / "out")
    (tmp_path / "notes.txt").touch()
    said = "is not empty, and its files would be lost; choose another folder"
    # The last holds the model that is read.
    for out in (folder, tmp_path / "out", tmp_path):
        with pytest.raises(LayoutError, match=said):
            convert(folder, out)
        with pytest.raises(LayoutError, match=said):
            convert(tmp_path / STAGE_ONE_FILE, out, **backbones)
        with pytest.raises(LayoutError, match=said):
            to_original(tmp_path / "out", out, vision_tower="tower")
    with pytest.raises(LayoutError, match=r"notes\.txt is a file; choose another folder"):
        convert(folder, tmp_path / "notes.txt")


def test_a_tower_with_registers_goes_neither_way(
    original: Callable, tmp_path: Path, assembled: Callable, tower_folder: Callable, language_folder: Callable
) -> None:
    model, processor = assembled("llama", "dinov2_registers")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "ours")
    with pytest.raises(LayoutError, match="ours has 4 register tokens"):
        to_original(tmp_path / "ours", tmp_path / "out", vision_tower="tower")
    folder, other, _ = original()
    with pytest.raises(LayoutError, match="4 register tokens"):
        convert(folder, tmp_path / "out", vision_tower=tower_folder("dinov2_registers"))
    left = {"align_indicators.indicator_embs": other.state_dict()["model.alignment.levels"]}
    torch.save(left, tmp_path / STAGE_ONE_FILE)
    backbones = {"vision_tower": tower_folder("dinov2_registers"), "language_model": language_folder("llama")}
    with pytest.raises(LayoutError, match="4 register tokens"):
        convert(tmp_path / STAGE_ONE_FILE, tmp_path / "out", **backbones)
    assert not (tmp_path / "out").exists()


def reconfigured(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_aspect_ratio": "anyres"}, r"tiles \(image_aspect_ratio 'anyres', as LLaVA-1\.6"),
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio 'highres' is not supported"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type is 'spatial_unpad'"),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type is 'perceiver'"),
        ({"mm_vision_select_feature": "cls_patch"}, "keeps the class token"),
        ({"use_s2": True, "s2_scales": "large"}, "s2_scales are 'large'"),
        ({"quantization_config": {"bits": 4}}, "weights are quantized"),
        (
            {"model_type": "llava_granite", "architectures": ["LlavaGraniteForCausalLM"], "logits_scaling": 8.0},
            r"its language model \(model_type 'llava_granite'\) is none of those supported",
        ),
    ],
)
def test_a_setting_that_cannot_be_kept_is_refused(
    original: Callable, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    folder, _, _ = original()
    with pytest.raises(LayoutError, match=says):
        convert(reconfigured(folder, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tower_that_was_trained_must_be_among_the_weights(original: Callable, tmp_path: Path) -> None:
    folder, _, _ = original(with_tower=False)
    with pytest.raises(LayoutError, match="the trained tower is not among its weights"):
        convert(reconfigured(folder, unfreeze_mm_vision_tower=True), tmp_path / "out")


def test_a_setting_that_is_not_known_is_said(original: Callable, tmp_path: Path) -> None:
    folder, _, _ = original()
    done = convert(reconfigured(folder, mm_newline_position="grid", mm_use_im_patch_token=True), tmp_path / "out")
    assert done.notes == ("the setting mm_newline_position: 'grid' of its configuration is unknown and was not kept",)


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2.0}])
def test_rotary_settings_go_there_and_back(original: Callable, tmp_path: Path, scaling: dict[str, Any] | None) -> None:
    folder, _, _ = original()
    config = json.loads((folder / "config.json").read_text())
    # As written by the version of transformers that the original code uses.
    config.pop("rope_parameters")
    config |= {"rope_theta": 500000.0, "rope_scaling": scaling}
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "ours")
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").config.text_config.rope_parameters
    assert found["rope_theta"] == 500000.0
    assert found["rope_type"] == ("linear" if scaling else "default") and found.get("factor") == (scaling and 2.0)
    to_original(tmp_path / "ours", tmp_path / "back", vision_tower="tower")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (back["rope_theta"], back["rope_scaling"]) == (500000.0, scaling)


def test_there_and_back_and_there_again_gives_the_same_model(
    original: Callable, tmp_path: Path, pictures: list, tower_folder: Callable
) -> None:
    folder, model, processor = original()
    convert(folder, tmp_path / "ours")
    to_original(tmp_path / "ours", tmp_path / "back", vision_tower=str(tower_folder("clip")))
    before, after = (AutoTokenizer.from_pretrained(one) for one in (folder, tmp_path / "back"))
    assert before.get_vocab() == after.get_vocab()
    convert(tmp_path / "back", tmp_path / "again")
    assert_answers_alike(tmp_path / "again", model, processor, pictures)


def test_a_trained_tower_goes_back_only_with_a_folder_of_its_own(
    assembled: Callable, tmp_path: Path, tower_folder: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = assembled(text_pooling="all")
    processor.save_pretrained(tmp_path / "ours")
    model.bfloat16().save_pretrained(tmp_path / "ours")
    to_original(tmp_path / "ours", tmp_path / "rounded", vision_tower=str(tower_folder("clip")))
    assert "note:" not in capsys.readouterr().err
    with torch.no_grad():
        next(model.model.vision_tower.parameters())[0] += 1
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(LayoutError, match=r"has other weights than .* give --vision-tower FOLDER"):
        to_original(tmp_path / "ours", tmp_path / "back", vision_tower=str(tower_folder("clip")))
    assert not (tmp_path / "back").exists()
    model.model.vision_tower.save_pretrained(tmp_path / "own")
    shutil.copy(tower_folder("clip") / "preprocessor_config.json", tmp_path / "own")
    to_original(tmp_path / "ours", tmp_path / "back", vision_tower=str(tmp_path / "own"))
    to_original(tmp_path / "ours", tmp_path / "unknown", vision_tower="owner/tower")
    assert "if this model's tower was trained, give a folder" in " ".join(capsys.readouterr().err.split())


def test_a_tower_other_than_clip_is_said(
    assembled: Callable, tmp_path: Path, tower_folder: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in assembled("llama", "siglip", text_pooling="all"):
        part.save_pretrained(tmp_path / "ours")
    to_original(tmp_path / "ours", tmp_path / "back", vision_tower=str(tower_folder("siglip")))
    assert "builds a CLIP only, and the vision tower of this model is a siglip" in capsys.readouterr().err


def test_what_the_gate_reads_goes_there_and_back_and_is_said(
    assembled: Callable, tmp_path: Path, tower_folder: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    for pooling in ("instruction", "all"):
        for part in assembled(text_pooling=pooling):
            part.save_pretrained(tmp_path / pooling)
        back = tmp_path / f"{pooling} back"
        to_original(tmp_path / pooling, back, vision_tower=str(tower_folder("clip")))
        said = " ".join(capsys.readouterr().err.split())
        assert ("the original code averages all text" in said) == (pooling == "instruction")
        convert(back, tmp_path / f"{pooling} again")
        assert AutoConfig.from_pretrained(tmp_path / f"{pooling} again").text_pooling == pooling
    with pytest.raises(LayoutError, match="its text_pooling is 'none'; expected instruction or all"):
        convert(reconfigured(back, text_pooling="none"), tmp_path / "out")


@pytest.mark.parametrize("levels", [8, 5])
def test_the_number_of_levels_goes_back_and_is_said_if_only_the_family_reads_it(
    assembled: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], levels: int
) -> None:
    for part in assembled(num_levels=levels, text_pooling="all"):
        part.save_pretrained(tmp_path / "ours")
    to_original(tmp_path / "ours", tmp_path / "back", vision_tower="tower")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["n_indicators"] == levels
    said = " ".join(capsys.readouterr().err.split())
    assert ("only the code of AlignGPT_family reads that" in said) == (levels != 8)


@pytest.mark.parametrize("files", [["adapter_config.json"], ["non_lora_trainables.bin", "adapter_model.safetensors"]])
def test_an_adapter_folder_is_called_one(original: Callable, tmp_path: Path, files: list[str]) -> None:
    folder, _, _ = original()
    for file in ("pytorch_model.bin", "tokenizer.json"):
        (folder / file).unlink()
    for file in files:
        (folder / file).touch()
    whose = "peft" if len(files) == 1 else "LLaVA"
    with pytest.raises(AlignGPTError, match=f"is an adapter folder of {whose}, not a complete model; merge it"):
        convert(folder, tmp_path / "out")


def first_stage_of(model: Any, *, levels: bool = True) -> dict[str, Tensor]:
    return {
        f"model.{their_name(name)}": tensor
        for name, tensor in model.state_dict().items()
        if "multi_modal_projector" in name or (levels and name.endswith("alignment.levels"))
    }


def test_a_projector_alone_is_what_llavas_first_stage_leaves(
    original: Callable, tmp_path: Path, language_folder: Callable, tower_folder: Callable
) -> None:
    _, model, _ = original()
    torch.save(first_stage_of(model, levels=False), tmp_path / "mm_projector.bin")
    backbones = {"vision_tower": tower_folder("clip"), "language_model": language_folder("llama")}
    done = convert(tmp_path / "mm_projector.bin", tmp_path / "out", **backbones)
    assert "model.alignment.levels" in done.fresh
    assert any("no config.json of its training" in note for note in done.notes)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in model.state_dict().items():
        if "multi_modal_projector" in name:
            assert torch.equal(found[name], tensor), name


def test_the_settings_beside_a_first_stage_are_its_own(
    original: Callable, tmp_path: Path, language_folder: Callable, tower_folder: Callable
) -> None:
    _, model, _ = original()
    left = tmp_path / "left"
    left.mkdir()
    torch.save(first_stage_of(model), left / STAGE_ONE_FILE)
    settings = {"mm_vision_tower": "tower", "mm_projector_type": "mlp2x_gelu"}
    (left / "config.json").write_text(json.dumps(settings | {"mm_vision_select_layer": -3}))
    backbones = {"vision_tower": tower_folder("clip"), "language_model": language_folder("llama")}
    convert(left, tmp_path / "out", **backbones)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out").config.vision_feature_layer == -3
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_processor.do_pad is False
    reconfigured(left, image_aspect_ratio="anyres")
    with pytest.raises(LayoutError, match="cuts images into tiles"):
        convert(left, tmp_path / "again", **backbones)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda left: left.update({"model.mm_projector.0.weight": torch.zeros(3, 3)}),
            r"linear_1.weight has shape \(3, 3\)",
        ),
        (lambda left: left.update({"model.mm_projector.4.weight": torch.zeros(3)}), r"mm_projector\.4\.weight is not"),
        (lambda left: left.pop("model.mm_projector.2.bias"), r"linear_2\.bias is missing"),
    ],
)
def test_a_first_stage_that_does_not_fit_is_named(
    original: Callable, tmp_path: Path, language_folder: Callable, tower_folder: Callable, change: Callable, says: str
) -> None:
    _, model, _ = original()
    left = first_stage_of(model)
    change(left)
    torch.save(left, tmp_path / STAGE_ONE_FILE)
    backbones = {"vision_tower": tower_folder("clip"), "language_model": language_folder("llama")}
    with pytest.raises(LayoutError, match=says):
        convert(tmp_path / STAGE_ONE_FILE, tmp_path / "out", **backbones)


def test_a_whole_model_with_a_first_stage_beside_it_is_the_whole_model(
    original: Callable, tmp_path: Path, pictures: list
) -> None:
    folder, model, processor = original()
    torch.save(first_stage_of(model), folder / STAGE_ONE_FILE)
    convert(folder, tmp_path / "out")
    assert_answers_alike(tmp_path / "out", model, processor, pictures)


def test_a_tensor_in_two_files_is_refused(original: Callable, tmp_path: Path) -> None:
    folder, _, _ = original(files="shards")
    file = folder / "pytorch_model-00002-of-00003.bin"
    state = dict(torch.load(file)) | {"model.norm.weight": torch.zeros(32)}
    torch.save(state, file)
    first = folder / "pytorch_model-00001-of-00003.bin"
    torch.save(dict(torch.load(first)) | {"model.norm.weight": torch.ones(32)}, first)
    with pytest.raises(ShardError, match=r"contains model\.norm\.weight, which another file contains too"):
        convert(folder, tmp_path / "out")
