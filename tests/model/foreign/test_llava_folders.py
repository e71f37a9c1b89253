"""Settings and files of transformers' LLaVA folders are kept, reported, or refused: never dropped silently."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from aligngpt.errors import AlignGPTError
from aligngpt.model.foreign.checkpoint_formats import LayoutError
from aligngpt.model.foreign.conversion import convert

PARTED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXT_ONLY = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PROMPT = "<|im_start|>user\n<image>\nwhat is it ?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, language_folder: Callable, tower_folder: Callable) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "made"
    language = AutoConfig.from_pretrained(language_folder("llama"))
    vision = AutoConfig.from_pretrained(tower_folder("clip"))
    words = AutoTokenizer.from_pretrained(language_folder("llama"))
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=language, image_seq_length=16)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def llava(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """A LLaVA with a Llama language model; the arguments change its `config.json`."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "llava"
        shutil.copytree(made, folder)
        rewrite(folder / "config.json", changes)
        return folder

    return make


@pytest.fixture
def converted(tmp_path: Path, tower_folder: Callable) -> Callable[..., Any]:
    """The result of a conversion to the folder `out`, in place of an earlier one."""

    def run(folder: Path, **options: Any) -> Any:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return convert(folder, tmp_path / "out", vision_tower=tower_folder("clip"), **options)

    return run


def rewrite(file: Path, changes: dict[str, Any]) -> None:
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | changes))


def prompt_of(folder: Path, asks: Callable) -> str:
    return str(
        AutoProcessor.from_pretrained(folder).apply_chat_template(asks("what is it ?", 1), add_generation_prompt=True)
    )


@pytest.mark.parametrize("template", [PARTED, TEXT_ONLY], ids=["with parts", "text only"])
@pytest.mark.parametrize(
    "file", ["chat_template.json", "chat_template.jinja", "processor_config.json", "tokenizer_config.json"]
)
def test_the_chat_template_is_its_own_wherever_it_is(
    llava: Callable, converted: Callable, tmp_path: Path, asks: Callable, file: str, template: str
) -> None:
    folder = llava()
    if file.endswith("jinja"):
        (folder / file).write_text(template)
    else:
        rewrite(folder / file, {"chat_template": template})
    done = converted(folder)
    assert prompt_of(tmp_path / "out", asks) == PROMPT
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    said = [{"role": "user", "content": "what is it ?"}]
    assert processor.apply_chat_template(said).startswith("<|im_start|>user\nwhat is it ?<|im_end|>")
    assert done.chat_template == (f"the tokenizer of {folder}" if file.startswith("tokenizer") else file)


def test_a_processors_template_goes_before_the_tokenizers(
    llava: Callable, converted: Callable, tmp_path: Path, asks: Callable
) -> None:
    folder = llava()
    rewrite(folder / "chat_template.json", {"chat_template": PARTED})
    rewrite(folder / "tokenizer_config.json", {"chat_template": "{{ 'no' }}"})
    converted(folder)
    assert prompt_of(tmp_path / "out", asks) == PROMPT


def test_of_several_templates_the_default_is_taken(
    llava: Callable, converted: Callable, tmp_path: Path, asks: Callable
) -> None:
    folder = llava()
    named = [{"name": "tool_use", "template": "{{ 'no' }}"}, {"name": "default", "template": TEXT_ONLY}]
    rewrite(folder / "tokenizer_config.json", {"chat_template": named})
    converted(folder)
    assert prompt_of(tmp_path / "out", asks) == PROMPT
    rewrite(folder / "tokenizer_config.json", {"chat_template": named[:1]})
    with pytest.raises(
        AlignGPTError, match=r"several chat templates, tool_use, and none is called `default`; set chat_t"
    ):
        converted(folder)
    done = converted(folder, chat_template="chatml")
    assert (done.chat_template, prompt_of(tmp_path / "out", asks)) == ("chatml", PROMPT)


def test_a_template_that_cannot_be_used_is_refused(llava: Callable, converted: Callable, tmp_path: Path) -> None:
    folder = llava()
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(AlignGPTError, match=r"chat_template.jinja cannot be rendered"):
        converted(folder)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_tokens_above_the_table_is_refused(
    llava: Callable, converted: Callable, language_folder: Callable
) -> None:
    folder = llava()
    words = AutoTokenizer.from_pretrained(folder)
    rows = len(words)
    words.add_tokens(["<box>", "<point>"])
    words.save_pretrained(folder)
    with pytest.raises(
        LayoutError, match=rf"has {rows + 2} tokens but the embedding table has {rows} rows: '<box>', '<point>'"
    ):
        converted(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy is 'full'"),
        (
            {"vision_config": {"model_type": "clip_vision_model", "hidden_act": "gelu"}},
            "hidden_act of its vision_config",
        ),
        ({"vision_config": {"model_type": "clip_vision_model", "image_size": 64}}, "image_size .* is 64 .* 32"),
        ({"image_aspect_ratio": "anyres"}, r"tiles \(image_aspect_ratio 'anyres'"),
        ({"quantization_config": {"bits": 4}}, "weights are quantized"),
        ({"text_config": {"model_type": "nonesuch"}}, "language model has type 'nonesuch'"),
    ],
)
def test_a_setting_that_changes_answers_and_cannot_be_kept_is_refused(
    llava: Callable, converted: Callable, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(LayoutError, match=says):
        converted(llava(**changes))
    assert not (tmp_path / "out").exists()


def test_an_unknown_setting_of_pictures_is_said(llava: Callable, converted: Callable) -> None:
    done = converted(llava(image_newline="after", vision_pooling=None))
    assert [note for note in done.notes if "image_newline: 'after'" in note]
    assert not [note for note in done.notes if "vision_pooling" in note]


def test_its_own_image_processor_decides_about_pictures(llava: Callable, converted: Callable, tmp_path: Path) -> None:
    folder = llava()
    stated = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "crop_size": {"height": 32, "width": 32}}
    rewrite(folder / "preprocessor_config.json", stated | {"do_pad": False})
    converted(folder)
    found = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    assert (list(found.image_mean), found.do_pad) == ([0.1, 0.2, 0.3], False)
    rewrite(folder / "preprocessor_config.json", {"crop_size": {"height": 64, "width": 64}})
    with pytest.raises(LayoutError, match="reads images of 64 px but the vision tower reads 32 px"):
        converted(folder)


def test_pixels_are_scaled_as_its_image_processor_does(llava: Callable, converted: Callable, tmp_path: Path) -> None:
    folder = llava()
    stated = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_pad": True, "crop_size": {"height": 32, "width": 32}}
    stated |= {"rescale_factor": 1 / 127.5, "do_normalize": False}
    rewrite(folder / "preprocessor_config.json", stated)
    converted(folder)
    found = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    white = found(Image.new("RGB", (32, 32), "white"), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(white, torch.full_like(white, 2.0))
    rewrite(folder / "preprocessor_config.json", {"do_rescale": False})
    converted(folder)
    found = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    assert found(Image.new("RGB", (32, 32), "white"), return_tensors="pt")["pixel_values"].unique().tolist() == [255]


SQUARE = {"height": 32, "width": 32}


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"do_center_crop": False, "size": {"shortest_edge": 32}}, "neither pads images nor cuts out"),
        ({"do_center_crop": False, "size": {"height": 32, "width": 48}}, "neither pads images nor cuts out"),
        ({"size": {"shortest_edge": 40}, "crop_size": SQUARE}, "resizes images to 40 px and cuts out 32 px"),
        ({"do_resize": False, "crop_size": SQUARE}, "leaves images in their own size"),
        ({"do_center_crop": False, "do_pad": True, "size": {"height": 64, "width": 64}}, "reads images of 64 px"),
        ({"do_center_crop": False, "do_pad": True, "size": SQUARE, "crop_size": 48}, None),
        ({"size": {"shortest_edge": 32}, "crop_size": SQUARE}, None),
    ],
)
def test_another_view_of_images_is_refused(
    llava: Callable, converted: Callable, tmp_path: Path, stated: dict[str, Any], says: str | None
) -> None:
    folder = llava()
    rewrite(folder / "preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | stated)
    if says is None:
        assert converted(folder).parameters
        return
    with pytest.raises(LayoutError, match=says):
        converted(folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "stated",
    [
        {"do_center_crop": False, "size": SQUARE},
        {"do_center_crop": False, "do_pad": False, "size": SQUARE},
        {"do_center_crop": True, "do_pad": False, "size": SQUARE, "crop_size": SQUARE},
        {"image_processor_type": "SiglipImageProcessor", "size": SQUARE},
    ],
)
def test_images_are_resized_to_a_square_if_its_processor_does(
    llava: Callable, converted: Callable, tmp_path: Path, stated: dict[str, Any]
) -> None:
    folder = llava()
    rewrite(folder / "preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | stated)
    assert not converted(folder).notes
    found = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    picture = Image.new("RGB", (60, 20))
    picture.paste((255, 255, 255), (0, 0, 30, 20))
    # The left half is white: padding would add rows, and a central square would be narrower.
    pixels = found(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (32, 32)
    assert (pixels[..., :12] > 0.9).all() and (pixels[..., 20:] < -0.9).all()


def test_generation_settings_go_with_the_model(llava: Callable, converted: Callable, tmp_path: Path) -> None:
    folder = llava()
    settings = {"eos_token_id": [2, 9], "repetition_penalty": 1.3, "temperature": 0.2, "max_length": 4096}
    rewrite(folder / "generation_config.json", settings)
    converted(folder)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").generation_config
    assert {2, 9} <= set(found.eos_token_id)
    assert found.repetition_penalty == 1.3
    rewrite(folder / "generation_config.json", {"do_sample": True})
    converted(folder)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").generation_config
    assert (found.do_sample, found.temperature) == (True, 0.2)


def test_weights_that_differ_where_the_configuration_ties_them_stay_apart(
    llava: Callable, converted: Callable, tmp_path: Path
) -> None:
    folder = llava()
    content = json.loads((folder / "config.json").read_text())
    rewrite(folder / "config.json", {"text_config": content["text_config"] | {"tie_word_embeddings": True}})
    head = next(one for name, one in load_file(folder / "model.safetensors").items() if name.endswith("lm_head.weight"))
    done = converted(folder)
    assert any("they were untied" in note for note in done.notes)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert torch.equal(found.lm_head.weight[: len(head)], head)


def test_a_weight_under_two_names_is_refused(llava: Callable, converted: Callable) -> None:
    folder = llava()
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("multi_modal_projector.linear_1.bias"))
    other = name.removeprefix("model.") if name.startswith("model.") else f"model.{name}"
    save_file(state | {other: state[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LayoutError, match=r"same weight twice, as .*linear_1\.bias and as .*linear_1\.bias"):
        converted(folder)


def test_the_tokenizers_padding_alone_may_be_new(llava: Callable, converted: Callable) -> None:
    folder = llava()
    words = AutoTokenizer.from_pretrained(folder)
    words.add_special_tokens({"pad_token": AddedToken("<pad>", special=True)})
    words.save_pretrained(folder)
    assert converted(folder).parameters


@pytest.mark.parametrize(
    ("version", "multiplied"), [("4.44.0", True), ("5.3.0", True), ("5.4.0", False), ("5.24.0", False), (None, True)]
)
def test_a_gemma_of_before_transformers_5_4_multiplied_image_tokens_too(
    tmp_path: Path, language_folder: Callable, tower_folder: Callable, version: str | None, multiplied: bool
) -> None:
    folder = tmp_path / "llava"
    language, vision = (AutoConfig.from_pretrained(one) for one in (language_folder("gemma"), tower_folder("clip")))
    LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=language, image_seq_length=16)
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(language_folder("gemma")).save_pretrained(folder)
    rewrite(folder / "config.json", {"transformers_version": version})
    theirs = load_file(folder / "model.safetensors")
    convert(folder, tmp_path / "out", vision_tower=tower_folder("clip"))
    ours = load_file(tmp_path / "out" / "model.safetensors")
    names = [name for name in theirs if "multi_modal_projector.linear_2." in name]
    assert len(names) == 2
    for name in names:
        found = next(tensor for own, tensor in ours.items() if own.endswith(name.split("multi_modal")[1]))
        factor = language.hidden_size**0.5 if multiplied else 1.0
        torch.testing.assert_close(found, factor * theirs[name])
