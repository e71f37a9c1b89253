"""From lmms-eval's chat messages and generation settings to requests and sampling."""

import ast
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aligngpt.data.images.opening import open_image
from aligngpt.evaluation.lmms_requests import DEFAULT_NEW_TOKENS, HarnessError, request_of, request_of_text, sampling_of
from aligngpt.inference.engine import Engine, Request, Sampling

ROOT = Path(__file__).parents[2]
WIDE = Image.new("RGB", (30, 10), (200, 0, 0))


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def shown(picture: object) -> dict[str, Any]:
    return {"type": "image", "url": picture}


def test_a_question_about_pictures_is_the_one_that_the_engine_is_asked() -> None:
    green = Image.new("RGB", (8, 8), (0, 200, 0))
    expected = Request.ask("what ?", WIDE, green, level=2)
    assert request_of(user(shown(WIDE), shown(green), text("what ?")), level=2) == expected
    assert request_of_text("what ?", [WIDE, green], level=2) == expected


@pytest.mark.parametrize("visuals", [None, []])
def test_a_question_without_pictures(visuals: list[object] | None) -> None:
    assert request_of_text("what ?", visuals) == Request.ask("what ?")


def test_turns_and_texts_between_pictures_keep_their_order() -> None:
    messages = [
        {"role": "system", "content": "be short"},
        *user(text("left"), shown(WIDE), text("right ?")),
        {"role": "assistant", "content": [text("red")]},
    ]
    request = request_of(messages)
    assert [message["role"] for message in request.messages] == ["system", "user", "assistant"]
    assert request.messages[0]["content"] == [text("be short")]
    assert request.messages[1]["content"] == [text("left"), {"type": "image"}, text("right ?")]
    assert request.images == (WIDE,)


def test_crop_shows_the_central_square() -> None:
    assert request_of_text("what ?", [WIDE], mode="crop").images[0].size == (10, 10)


def test_transparent_parts_become_white() -> None:
    (picture,) = request_of_text("what ?", [Image.new("RGBA", (4, 4), (0, 0, 0, 0))]).images
    assert (picture.mode, picture.getpixel((0, 0))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize("kind", ["16 bits", "turned"])
def test_pictures_are_those_that_training_sees(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture.png"
    if kind == "16 bits":
        Image.fromarray(np.linspace(0, 65535, 800).reshape(20, 40).astype(np.uint16)).save(path)
    else:
        exif = Image.Exif()
        exif[274] = 6
        Image.linear_gradient("L").resize((40, 20)).convert("RGB").save(path, exif=exif)
    (picture,) = request_of_text("what ?", [Image.open(path)]).images
    expected = open_image(path)
    assert picture.size == expected.size and picture.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "no messages"),
        (user({"type": "video", "url": "a.mp4"}), "shows the model video"),
        (user({"type": "audio", "url": {}}), "shows the model audio"),
        (user(shown("a.png"), text("what ?")), "'a.png', expected a decoded picture"),
    ],
)
def test_what_the_model_cannot_read_is_refused(messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        request_of(messages)


def test_settings_of_a_greedy_task() -> None:
    settings = {"max_new_tokens": 16, "temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False}
    assert sampling_of(settings | {"until": ["\n\n"]}) == Sampling(max_new_tokens=16, stop=("\n\n",))


def test_settings_of_a_sampling_task() -> None:
    settings = {"max_gen_toks": 8, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3}
    expected = Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9, top_k=5, seed=3, stop=("x",))
    assert sampling_of(settings | {"until": "x"}) == expected


def test_settings_left_out() -> None:
    assert sampling_of({"until": None, "top_p": None}) == Sampling(max_new_tokens=DEFAULT_NEW_TOKENS)


def test_do_sample_false_is_greedy_whatever_the_temperature() -> None:
    assert sampling_of({"do_sample": False, "temperature": 0.2}).temperature == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_beams": 5}, "num_beams=5, which this model does not do"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"visual_cot": True}, "visual_cot=True, which this model does not know"),
        ({"do_sample": True}, "without a temperature"),
        ({"until": 3}, "until=3"),
        ({"until": [""]}, "not empty"),
        ({"max_new_tokens": "many"}, "cannot be read"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": 1, "top_p": 0}, "top_p must be above 0"),
    ],
)
def test_settings_that_would_change_the_answers_unseen_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        sampling_of(settings)


def test_the_prompt_is_that_of_the_published_code(model_folder: Path) -> None:
    with Engine.load(model_folder, device="cpu", dtype="float32") as engine:
        request = request_of(user(shown(WIDE), text("what shape ?")))
        rendered = engine.processor.apply_chat_template(request.messages, add_generation_prompt=True, tokenize=False)
    assert "<image>\nwhat shape ? ASSISTANT:" in rendered


def test_the_package_names_the_model_to_lmms_eval() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["entry-points"]["lmms_eval.models"]["aligngpt"].partition(":")
    source = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
    defined = [node.name for node in ast.parse(source.read_text(encoding="utf-8")).body if hasattr(node, "name")]
    assert function in defined and "lmms" in project["optional-dependencies"]
