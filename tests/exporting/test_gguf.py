"""The GGUF files: their tensors are the model's, and what llama.cpp would compute otherwise is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFReader, dequantize
from tiny_models import TEXT, build_tokenizer
from typer.testing import CliRunner

from aligngpt import cli
from aligngpt.exporting.folding import Fold, fold
from aligngpt.exporting.gguf.export import export_gguf
from aligngpt.exporting.gguf.writing import encoded
from aligngpt.exporting.loading import ExportError
from aligngpt.model.assembling import assemble
from aligngpt.model.modeling import AlignGPTForConditionalGeneration

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def saved(tower_folder: Callable, tmp_path: Path) -> Callable[..., Path]:
    """The folder of a tiny model: a language model with a byte-level tokenizer, and SigLIP."""

    def make(
        family: str = "Llama",
        *,
        tower: str = "siglip",
        text: dict[str, Any] | None = None,
        change: Callable[[Any, Any], None] = lambda model, processor: None,
        **options: Any,
    ) -> Path:
        words = build_tokenizer("chatml")
        special = {"vocab_size": len(words) + 5, "eos_token_id": words.eos_token_id, "bos_token_id": None}
        config = getattr(transformers, f"{family}Config")(**(TEXT | special | (text or {})))
        torch.manual_seed(1)
        language = tmp_path / "language"
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(language)
        words.save_pretrained(language)
        model, processor = assemble(tower_folder(tower), language, **options)
        change(model, processor)
        for part in (model, processor):
            part.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields and the dequantised tensors of a file."""
    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {one.name: dequantize(one.data, one.tensor_type) for one in reader.tensors}


def rotated_by_neighbours(weight: np.ndarray, heads: int, positions: np.ndarray) -> np.ndarray:
    """The rotary form of llama.cpp's Llama: values 2i and 2i + 1 of a head turn together; `(positions, rows)`."""
    size = len(weight) // heads
    angles = positions[:, None] / 10000.0 ** (np.arange(size // 2) * 2 / size)
    values = np.broadcast_to(weight[:, 0], (len(positions), len(weight))).reshape(-1, heads, size // 2, 2)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = values[..., 0], values[..., 1]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_tensors_read_back_are_the_models(saved: Callable, tmp_path: Path, family: str) -> None:
    text = {"head_dim": 8, "sliding_window": None}
    source = saved(family, text=text if family in ("Mistral", "Qwen3") else {"tie_word_embeddings": True})
    done = export_gguf(source, tmp_path / "out", chosen="level:3", stored="f32", square_images=True)
    fields, found = read(tmp_path / "out" / "model.gguf")
    model = AlignGPTForConditionalGeneration.from_pretrained(source)
    state = {name: tensor.numpy() for name, tensor in fold(model, Fold(3)).items()}
    inside = "model.language_model.layers.1."
    expected = {
        "token_embd.weight": state["model.language_model.embed_tokens.weight"],
        "output.weight": state["lm_head.weight"],
        "output_norm.weight": state["model.language_model.norm.weight"],
        "blk.1.attn_v.weight": state[inside + "self_attn.v_proj.weight"],
        "blk.1.attn_output.weight": state[inside + "self_attn.o_proj.weight"],
        "blk.1.ffn_down.weight": state[inside + "mlp.down_proj.weight"],
        "blk.1.ffn_gate.weight": state[inside + "mlp.gate_proj.weight"],
        "blk.1.ffn_up.weight": state[inside + "mlp.up_proj.weight"],
        "blk.1.attn_norm.weight": state[inside + "input_layernorm.weight"],
        "blk.1.ffn_norm.weight": state[inside + "post_attention_layernorm.weight"],
    }
    if family == "Qwen2":
        expected["blk.1.attn_q.bias"] = state[inside + "self_attn.q_proj.bias"]
    if family == "Qwen3":
        expected["blk.1.attn_q_norm.weight"] = state[inside + "self_attn.q_norm.weight"]
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    for one, heads in (("q", 4), ("k", 2)):
        weight, theirs = state[f"{inside}self_attn.{one}_proj.weight"], found[f"blk.1.attn_{one}.weight"]
        if family.startswith("Qwen"):
            assert np.array_equal(theirs, weight)
            continue
        assert not np.array_equal(theirs, weight)
        # What is rotated by neighbours in their order is what transformers rotates by halves in its order.
        turned = rotated_by_neighbours(theirs, heads, np.arange(5.0))
        size = len(weight) // heads
        angles = np.arange(5.0)[:, None] / 10000.0 ** (np.arange(size // 2) * 2 / size)
        first, second = weight[:, 0].reshape(heads, 2, size // 2).transpose(1, 0, 2)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        assert np.allclose(turned[..., 0], first * cos - second * sin, atol=1e-6)
        assert np.allclose(turned[..., 1], second * cos + first * sin, atol=1e-6)
    arch = "qwen" + family[-1] if family.startswith("Qwen") else "llama"
    assert fields["general.architecture"] == arch
    assert fields[f"{arch}.attention.head_count_kv"] == 2 and fields[f"{arch}.rope.dimension_count"] == 8
    assert not {name for name in found if name.startswith("rope")}
    _, vision = read(tmp_path / "out" / "mmproj.gguf")
    assert done.parameters == sum(one.size for one in (*found.values(), *vision.values()))


def test_align_is_an_ordinary_row(saved: Callable, tmp_path: Path) -> None:
    source = saved()
    export_gguf(source, tmp_path / "out", chosen="level:3", stored="f32", square_images=True)
    fields, found = read(tmp_path / "out" / "model.gguf")
    model = AlignGPTForConditionalGeneration.from_pretrained(source)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    align = tokens.index("<align>")
    assert np.array_equal(found["token_embd.weight"][align], model.model.alignment.levels[2].detach().numpy())
    for name in ("<align>", "<image>", "<|im_end|>"):
        assert types[tokens.index(name)] == gguf.TokenType.CONTROL
    assert len(tokens) == len(found["token_embd.weight"])
    assert types[tokens.index(f"[PAD{len(tokens) - 1}]")] == gguf.TokenType.UNUSED
    assert tokens[fields["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert fields["tokenizer.ggml.pre"] == "gpt-2" and not fields["tokenizer.ggml.add_bos_token"]
    first = min(align, tokens.index("<image>"))
    words = model.get_output_embeddings().weight[:first].detach().numpy()
    assert np.array_equal(found["output.weight"][:first], words)


@pytest.mark.parametrize(("layer", "used"), [(-2, 2), (-1, 3)])
def test_the_tower_ends_where_the_projector_reads(saved: Callable, tmp_path: Path, layer: int, used: int) -> None:
    source = saved(vision_feature_layer=layer)
    export_gguf(source, tmp_path / "out", chosen="global", stored="f32", square_images=True)
    fields, found = read(tmp_path / "out" / "mmproj.gguf")
    assert fields["clip.vision.block_count"] == used and fields["clip.vision.feature_layer"] == [used]
    assert fields["clip.use_gelu"] is True and fields["clip.vision.image_size"] == 32
    assert {name.split(".")[2] for name in found if name.startswith("v.blk.")} == {str(i) for i in range(used)}
    state = {
        name.removeprefix("model.").replace(".vision_model.", "."): tensor.numpy()
        for name, tensor in AlignGPTForConditionalGeneration.from_pretrained(source).state_dict().items()
    }
    for theirs, ours in {
        "v.patch_embd.weight": "vision_tower.embeddings.patch_embedding.weight",
        "v.patch_embd.bias": "vision_tower.embeddings.patch_embedding.bias",
        "v.position_embd.weight": "vision_tower.embeddings.position_embedding.weight",
        "v.blk.1.attn_q.weight": "vision_tower.encoder.layers.1.self_attn.q_proj.weight",
        "v.blk.1.attn_out.bias": "vision_tower.encoder.layers.1.self_attn.out_proj.bias",
        "v.blk.1.ffn_up.weight": "vision_tower.encoder.layers.1.mlp.fc1.weight",
        "v.blk.1.ffn_down.weight": "vision_tower.encoder.layers.1.mlp.fc2.weight",
        "v.blk.1.ln2.weight": "vision_tower.encoder.layers.1.layer_norm2.weight",
        "mm.0.weight": "multi_modal_projector.linear_1.weight",
        "mm.2.bias": "multi_modal_projector.linear_2.bias",
    }.items():
        assert np.array_equal(found[theirs], state[ours]), theirs


@pytest.mark.parametrize(("stored", "error"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 127)])
def test_matrices_are_stored_as_asked(saved: Callable, tmp_path: Path, stored: Any, error: float) -> None:
    source = saved()
    found = {}
    for one in ("f32", stored):
        export_gguf(source, tmp_path / one, chosen="mean", stored=one, square_images=True)
        found[one] = read(tmp_path / one / "model.gguf")[1] | read(tmp_path / one / "mmproj.gguf")[1]
    types = {
        one.name: one.tensor_type.name
        for file in ("model.gguf", "mmproj.gguf")
        for one in GGUFReader(tmp_path / stored / file).tensors
    }
    assert types["blk.0.attn_q.weight"] == stored.upper() and types["blk.0.attn_norm.weight"] == "F32"
    assert types["v.position_embd.weight"] == types["v.patch_embd.weight"] == "F32"
    # Rows of 24 values do not divide into blocks of 32.
    assert types["v.blk.0.attn_q.weight"] == ("F16" if stored == "q8_0" else stored.upper())
    for name, values in found["f32"].items():
        assert np.abs(found[stored][name] - values).max() <= error * np.abs(values).max()


def test_scaled_rotary_frequencies_become_factors(saved: Callable, tmp_path: Path) -> None:
    source = saved(text={"rope_parameters": LLAMA3_ROPE})
    export_gguf(source, tmp_path / "out", chosen="global", stored="f32", square_images=True)
    factors = read(tmp_path / "out" / "model.gguf")[1]["rope_freqs.weight"]
    # Fast frequencies are kept, slow ones divided by the factor.
    assert factors[0] == pytest.approx(1.0) and factors[-1] == pytest.approx(8.0)


def test_values_too_large_for_the_type_are_refused() -> None:
    large = torch.full((2, 32), 7e4)
    with pytest.raises(ExportError, match="--gguf-type bf16"):
        encoded("output.weight", large, gguf.GGMLQuantizationType.F16)
    kept = gguf.GGMLQuantizationType.Q8_0
    assert np.allclose(dequantize(encoded("output.weight", large, kept), kept), 7e4, rtol=1e-2)


def _crops(model: Any, processor: Any) -> None:
    processor.image_processor.do_pad = False


def _bilinear(model: Any, processor: Any) -> None:
    processor.image_processor.resample = 2


def _exact_gelu(model: Any, processor: Any) -> None:
    model.config.vision_config.hidden_act = "gelu"


def _unnormalised(model: Any, processor: Any) -> None:
    processor.image_processor.do_normalize = False


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tower": "clip"}, "class token of CLIP.*aligngpt ask"),
        ({"tower": "dinov2"}, "SigLIP towers, not dinov2"),
        ({"vision_feature_layer": [-2, -1]}, "several layers"),
        ({"merge_image_tokens": 2}, "merges 2 × 2"),
        ({"family": "GPTNeoX"}, "gpt_neox was not looked at"),
        ({"family": "Mistral", "text": {"sliding_window": 12}}, "last 12 tokens"),
        ({"text": {"attention_bias": True}}, "have biases"),
        ({"text": {"hidden_act": "gelu"}}, "activation is gelu, expected silu"),
        ({"family": "Qwen2", "text": {"rope_parameters": LLAMA3_ROPE}}, "scales its positions"),
        ({"change": _bilinear}, "bicubic"),
        ({"change": _exact_gelu}, "activation is gelu, expected one of gelu_pytorch_tanh"),
        ({"change": _unnormalised}, "leaves out"),
        ({"chat_template": "llava_v0"}, "ends answers with the text '###'"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    saved: Callable, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ExportError, match=reason):
        export_gguf(saved(**options), tmp_path / "out", chosen="global", square_images=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("change", "does"), [(_crops, "crops or stretches"), (None, "pads them with another colour")])
def test_only_square_images_are_exported_for(saved: Callable, tmp_path: Path, change: Any, does: str) -> None:
    source = saved(change=change or (lambda model, processor: None))
    with pytest.raises(ExportError, match=f"{does}.*--square-images"):
        export_gguf(source, tmp_path / "out", chosen="global")


def test_tokenizers_that_llama_cpp_lacks_are_refused(assembled: Callable, tmp_path: Path) -> None:
    for part in assembled("llama", "siglip"):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(ExportError, match=r"WordLevel.*byte-level BPE"):
        export_gguf(tmp_path / "model", tmp_path / "out", chosen="global", square_images=True)


def test_the_command(saved: Callable, tmp_path: Path) -> None:
    source, out = str(saved()), str(tmp_path / "out")
    run = CliRunner().invoke
    written = run(cli.app, ["export", source, "--out", out, "--fold", "mean", "--gguf", "--square-images"])
    assert written.exit_code == 0, written.output
    assert "alignment: mean" in written.output
    notes = json.loads((tmp_path / "out" / "export.json").read_text())
    assert notes["stored"] == "f16" and 0 <= notes["projector_difference"] < 2e-2
    for wrong in (["--gguf", "--engine", "vllm"], ["--square-images"], ["--gguf-type", "f32"]):
        assert run(cli.app, ["export", source, "--out", out, *wrong]).exit_code != 0
