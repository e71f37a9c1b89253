"""Asking from the command line: the printed output, and errors raised before the model is loaded."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from aligngpt.data.images.opening import ImageError
from aligngpt.inference.ask import BAR_WIDTH, ask, describe_alignment
from aligngpt.inference.engine import Engine, EngineError, Request, Sampling

QUESTION = "what colour is the circle ?"


@pytest.fixture
def picture(pictures: list[Image.Image], tmp_path: Path) -> Path:
    pictures[0].save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def folder(assembled: Callable, tmp_path: Path) -> Path:
    for part in assembled():
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr(Engine, "load", load)


def test_the_answer_is_the_engine_s(folder: Path, picture: Path, pictures: list[Image.Image]) -> None:
    said = "".join(ask(folder, picture, QUESTION, max_new_tokens=8, device="cpu"))
    (answer,) = Engine.load(folder, device="cpu").answer([Request.ask(QUESTION, pictures[0])], Sampling(8))
    assert said == answer.text != ""


def test_the_alignment_comes_before_the_answer(folder: Path, picture: Path, pictures: list[Image.Image]) -> None:
    plain = "".join(ask(folder, picture, QUESTION, max_new_tokens=8, device="cpu"))
    first, *rest = ask(folder, picture, QUESTION, show_alignment=True, max_new_tokens=8, device="cpu")
    assert "".join(rest) == plain
    heading, *lines = first.splitlines()
    assert heading == "alignment: level 8 (the whole image) and a mix of"
    (weights,) = Engine.load(folder, device="cpu").alignment_weights([Request.ask(QUESTION, pictures[0])])
    assert weights is not None
    for level, (line, weight) in enumerate(zip(lines, weights, strict=True), start=1):
        assert (found := re.fullmatch(rf"  level {level} +(\d+\.\d)% (█*)", line))
        assert float(found[1]) == pytest.approx(100 * weight, abs=0.051)
        assert len(found[2]) == round(BAR_WIDTH * weight)


def test_a_forced_level_is_named(folder: Path, picture: Path) -> None:
    first, *_ = ask(folder, picture, QUESTION, show_alignment=True, level=3, max_new_tokens=4, device="cpu")
    assert first == "alignment: level 3 of 8, forced\n"


def test_a_wrong_level_is_refused_before_anything_is_said(folder: Path, picture: Path) -> None:
    for show in (True, False):
        with pytest.raises(EngineError, match="level 9 is not one of the model's, 1…8"):
            next(ask(folder, picture, QUESTION, show_alignment=show, level=9, max_new_tokens=4, device="cpu"))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", "alignment: none, without a gate"),
        ("global", "alignment: global, without a gate"),
        ("local", "alignment: a mix of\n  level 1"),
    ],
)
def test_each_kind_of_alignment_is_described(
    assembled: Callable, pictures: list[Image.Image], mode: str, expected: str
) -> None:
    engine = Engine(*assembled(alignment=mode))
    assert describe_alignment(engine, Request.ask(QUESTION, pictures[0])).startswith(expected)


def test_a_wrong_picture_path_says_so_before_the_model_is_loaded(tmp_path: Path, no_model: None) -> None:
    with pytest.raises(ImageError, match=r"nowhere.png does not exist"):
        list(ask("model", tmp_path / "nowhere.png", QUESTION))


@pytest.mark.parametrize(
    ("image", "question", "said"),
    [
        ("https://example.com/red.png", QUESTION, "red.png is on the web; download the image"),
        ("red.png", " ", "the question is empty"),
    ],
)
def test_what_cannot_be_asked_says_so_before_the_model_is_loaded(
    no_model: None, image: str, question: str, said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        list(ask("model", Path(image), question))


def test_a_file_that_is_no_picture_says_so_before_the_model_is_loaded(tmp_path: Path, no_model: None) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text.png is not an image"):
        list(ask("model", tmp_path / "text.png", QUESTION))
