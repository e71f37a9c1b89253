"""An exported folder: transformers' own LLaVA gives the same answers, and what it cannot compute is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from tiny_models import IMAGE_SIZE, WORDS
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, LlavaProcessor
from transformers import LlavaForConditionalGeneration as Llava

from aligngpt.exporting import llava
from aligngpt.exporting.llava import export_llava
from aligngpt.exporting.loading import ExportError
from aligngpt.inference.engine import Engine

PROMPTS, NEW_TOKENS = 200, 8


@pytest.fixture
def saved(assembled: Callable, tmp_path: Path) -> Callable[..., Path]:
    """The folder of a tiny model."""

    def make(language: str = "llama", tower: str = "clip", **options: Any) -> Path:
        folder = tmp_path / f"{language}-{tower}"
        model, processor = assembled(language, tower, **options)
        if not model.config.tie_word_embeddings:
            # Rows of the head that would often win if the model did not forbid their tokens.
            model.lm_head.weight.data[model.config.placeholder_ids] *= 100
        for part in (model, processor):
            part.save_pretrained(folder)
        return folder

    return make


def conversations(count: int) -> list[tuple[list[dict[str, Any]], list[Image.Image]]]:
    """Questions of random words, one in five without a picture and one in five with two."""
    dice = np.random.default_rng(0)
    made = []
    for number in range(count):
        words = " ".join(dice.choice(WORDS[:30], size=6))
        images = [
            Image.fromarray(dice.integers(0, 256, (IMAGE_SIZE + 8, IMAGE_SIZE, 3), dtype=np.uint8))
            for _ in range({0: 0, 1: 2}.get(number % 5, 1))
        ]
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": words}]
        made.append(([{"role": "user", "content": content}], images))
    return made


def answers(model: Any, processor: Any, count: int, **options: Any) -> list[list[int]]:
    """Greedy ids, eight conversations at a time."""
    found = []
    asked = conversations(count)
    for start in range(0, count, 8):
        part = asked[start : start + 8]
        texts = [processor.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one, _ in part]
        bos = processor.tokenizer.bos_token
        inputs = processor(
            images=[image for _, images in part for image in images],
            text=texts,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )
        if "level" in options:
            inputs["alignment_level"] = torch.full((len(part),), options["level"])
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
        found += ids[:, inputs["input_ids"].shape[1] :].tolist()
    return found


def with_its_own_settings(folder: Path) -> Any:
    """The plain model without `suppress_tokens`, which some servers ignore."""
    model = Llava.from_pretrained(folder)
    settings = model.generation_config.to_dict() | {"suppress_tokens": None}
    model.generation_config = GenerationConfig(**settings)
    return model


@pytest.mark.parametrize(
    ("language", "tower"),
    [
        ("llama", "clip"),
        ("llama_tied", "siglip"),
        ("qwen2", "dinov2"),
        ("mistral", "clip"),
        ("gemma3", "siglip"),
        ("gemma", "clip"),
    ],
)
def test_transformers_own_llava_gives_the_same_greedy_ids(
    saved: Callable, tmp_path: Path, language: str, tower: str
) -> None:
    source = saved(language, tower)
    done = export_llava(source, tmp_path / "out", chosen="level:3")
    assert done.fold == "level:3" and done.engines["transformers"] is None
    assert (done.engines["vllm"] is None) == (tower != "dinov2" and "gemma" not in language)
    ours = Engine.load(source, device="cpu", dtype="float32")
    expected = answers(ours.model, ours.processor, PROMPTS, level=3)
    theirs = answers(with_its_own_settings(tmp_path / "out"), LlavaProcessor.from_pretrained(tmp_path / "out"), PROMPTS)
    assert theirs == expected
    assert len({tuple(ids) for ids in expected}) > 1


def test_another_level_gives_other_answers(saved: Callable, tmp_path: Path) -> None:
    source = saved()
    found = []
    for chosen in ("level:3", "level:4"):
        export_llava(source, tmp_path / chosen[-1], chosen=chosen)
        folder = tmp_path / chosen[-1]
        found.append(answers(Llava.from_pretrained(folder), LlavaProcessor.from_pretrained(folder), 24))
    assert found[0] != found[1]
    # Without a picture there is no <align>.
    assert found[0][::5] == found[1][::5]


@pytest.mark.parametrize("mode", ["global", "average", "mean"])
def test_a_model_whose_embedding_never_changes_needs_no_fold(saved: Callable, tmp_path: Path, mode: str) -> None:
    source = saved(alignment=mode)
    assert export_llava(source, tmp_path / "out").fold == ("level:8" if mode == "global" else mode)
    ours = Engine.load(source, device="cpu", dtype="float32")
    theirs = answers(Llava.from_pretrained(tmp_path / "out"), LlavaProcessor.from_pretrained(tmp_path / "out"), 16)
    assert theirs == answers(ours.model, ours.processor, 16)


def test_a_model_without_alignment_is_exported_as_it_is(saved: Callable, tmp_path: Path) -> None:
    source = saved(alignment="none")
    assert export_llava(source, tmp_path / "out").fold is None
    ours = Engine.load(source, device="cpu", dtype="float32")
    theirs = answers(Llava.from_pretrained(tmp_path / "out"), LlavaProcessor.from_pretrained(tmp_path / "out"), 16)
    assert theirs == answers(ours.model, ours.processor, 16)
    with pytest.raises(ExportError, match="no alignment module to fold"):
        export_llava(source, tmp_path / "other", chosen="global")


def test_the_folder_needs_nothing_of_ours(saved: Callable, tmp_path: Path) -> None:
    export_llava(saved("llama_tied"), tmp_path / "out", chosen="global")
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "out")) is Llava
    assert type(AutoProcessor.from_pretrained(tmp_path / "out")) is LlavaProcessor
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "llava" and config["vision_config"]["model_type"] == "clip_vision_model"
    assert not config["tie_word_embeddings"] and not config["text_config"]["tie_word_embeddings"]
    assert not {"alignment", "align_token_index", "gate_grid"} & set(config)
    assert "AlignGPT" not in "".join(file.read_text() for file in (tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2"])
def test_weights_have_the_names_of_the_published_files(
    saved: Callable, tower_folder: Callable, tmp_path: Path, tower: str
) -> None:
    """Other versions of transformers, and other programs, know only these."""
    export_llava(saved(tower=tower), tmp_path / "out", chosen="global")
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    in_the_tower = load_file(tower_folder(tower) / "model.safetensors")
    # CLIP's own files name the transformer inside the tower, whose name a LLaVA may leave out.
    of_tower = {name.removeprefix("vision_tower.") for name in names if name.startswith("vision_tower.")}
    assert {name.removeprefix("vision_model.") for name in in_the_tower} == {
        name.removeprefix("vision_model.") for name in of_tower
    }
    assert {
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "multi_modal_projector.linear_1.weight",
    } <= names


def test_align_and_image_never_win(saved: Callable, tmp_path: Path) -> None:
    export_llava(saved(), tmp_path / "out", chosen="global")
    model = Llava.from_pretrained(tmp_path / "out")
    hidden = torch.randn(2000, model.lm_head.in_features, generator=torch.Generator().manual_seed(0))
    winners = set(model.lm_head(hidden).argmax(dim=-1).tolist())
    words = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    assert len(winners) > 10
    assert not winners & set(words.convert_tokens_to_ids(["<align>", "<image>"]))


def test_an_adapter_is_merged_with_its_base(saved: Callable, tmp_path: Path) -> None:
    source = saved()
    adapter = Path(shutil.copytree(source, tmp_path / "adapter", ignore=shutil.ignore_patterns("model*", "config*")))
    model = Engine.load(source, device="cpu", dtype="float32").model
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(source)
    adapted.save_pretrained(adapter)
    export_llava(adapter, tmp_path / "out", chosen="level:2")
    ours = Engine.load(adapter, device="cpu", dtype="float32")
    expected = answers(ours.model, ours.processor, 16, level=2)
    assert expected == answers(
        Llava.from_pretrained(tmp_path / "out"), LlavaProcessor.from_pretrained(tmp_path / "out"), 16
    )
    with pytest.raises(ExportError, match="not an adapter folder"):
        export_llava(source, tmp_path / "other", chosen="global", base=source)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_the_precision_of_the_files_is_kept(assembled: Callable, tmp_path: Path, stored: torch.dtype) -> None:
    model, processor = assembled()
    for part in (model.to(stored), processor):
        part.save_pretrained(tmp_path / "model")
    export_llava(tmp_path / "model", tmp_path / "out", chosen="global")
    assert Llava.from_pretrained(tmp_path / "out", dtype="auto").dtype == stored


@pytest.mark.parametrize(
    ("options", "chosen", "reason"),
    [
        ({}, None, "choose a fixed one with --fold.*aligngpt ask"),
        ({"alignment": "local"}, None, "alignment: local"),
        ({}, "level:9", "levels 1 to 8"),
        ({}, "level:0", "levels 1 to 8"),
        ({}, "best", "expected global"),
        ({"merge_image_tokens": 2}, "global", "merges 2 × 2 patches.*aligngpt ask"),
        ({"image_scales": [32, 64]}, "global", "several sizes.*aligngpt ask"),
        ({"tower": "dinov2_registers"}, "global", "4 register tokens.*aligngpt ask"),
        ({"language": "phi"}, "global", "output layer has a bias.*aligngpt ask"),
        ({"language": "gemma2"}, "global", "final_logit_softcapping: 3.0.*aligngpt ask"),
        ({"language": "granite"}, "global", "logits_scaling: 4.0.*aligngpt ask"),
    ],
)
def test_what_a_plain_llava_cannot_do_is_refused(
    saved: Callable, tmp_path: Path, options: dict[str, Any], chosen: str | None, reason: str
) -> None:
    with pytest.raises(ExportError, match=reason):
        export_llava(saved(**options), tmp_path / "out", chosen=chosen)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tower": "dinov2"}, "CLIP and SigLIP towers, not dinov2"),
        ({"language": "gpt_neox"}, "language model gpt_neox"),
        ({"vision_feature_layer": [-2, -1]}, r"one layer of the vision tower, not \[-2, -1\]"),
    ],
)
def test_what_only_vllm_cannot_do_is_refused_for_it(
    saved: Callable, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    source = saved(**options)
    with pytest.raises(ExportError, match=f"{reason}.*transformers can"):
        export_llava(source, tmp_path / "out", chosen="global", engine="vllm")
    done = export_llava(source, tmp_path / "out", chosen="global")
    assert done.engines["vllm"] in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_that_answers_differently_is_not_left(
    saved: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = llava.fold

    def wrong(model: Any, chosen: Any) -> Any:
        state = right(model, chosen)
        state["model.language_model.embed_tokens.weight"][model.config.align_token_index] += 1
        return state

    monkeypatch.setattr(llava, "fold", wrong)
    with pytest.raises(ExportError, match="computes other logits"):
        export_llava(saved(), tmp_path / "out", chosen="global")
    assert not (tmp_path / "out").exists()


def test_only_an_earlier_export_is_replaced(saved: Callable, tmp_path: Path) -> None:
    source = saved()
    with pytest.raises(ExportError, match="is the model to export"):
        export_llava(source, source, chosen="global")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ExportError, match="no export wrote"):
        export_llava(source, tmp_path / "mine", chosen="global")
    for chosen in ("level:1", "level:2"):
        export_llava(source, tmp_path / "out", chosen=chosen)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["fold"] == "level:2"


def test_other_models_are_refused(tower_folder: Callable, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'clip_vision_model' model, expected an AlignGPT model"):
        export_llava(tower_folder("clip"), tmp_path / "out")
    with pytest.raises(ExportError, match="no such"):
        export_llava(tmp_path / "nothing", tmp_path / "out")
