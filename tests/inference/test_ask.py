"""Asking from the command line: the printed output, and errors raised before the model is loaded."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from aligngpt.cli import app
from aligngpt.data.images.opening import ImageError
from aligngpt.inference.ask import BAR_WIDTH, AskError, ask, describe_alignment
from aligngpt.inference.engine import Engine, EngineError, Request, Sampling, TextDelta
from aligngpt.inference.generation.loop import Loop

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


def test_white_space_around_a_question_is_left_out(
    folder: Path, picture: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def events(_: Engine, request: Request, __: Sampling) -> Iterator[TextDelta]:
        asked.append(request)
        return iter(())

    monkeypatch.setattr(Engine, "events", events)
    assert not list(ask(folder, picture, f"  {QUESTION}\n", device="cpu"))
    assert [request.messages for request in asked] == [Request.ask(QUESTION, pictures[0]).messages]


def test_codes_for_the_terminal_in_an_answer_are_printed_as_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aligngpt.inference.ask.ask", lambda *_, **__: iter(["red\x1b[2J\n", "ü\r"]))
    ended = CliRunner().invoke(app, ["ask", "model", "picture.png", QUESTION])
    assert ended.stdout == "red\\x1b[2J\nü\\r\n"


def test_a_question_that_is_not_utf8_is_refused(no_model: None, folder: Path, picture: Path) -> None:
    with pytest.raises(AskError, match="not UTF-8"):
        list(ask(folder, picture, "what is th\udce9 ?"))


def test_the_alignment_comes_after_the_answer(folder: Path, picture: Path, pictures: list[Image.Image]) -> None:
    plain = "".join(ask(folder, picture, QUESTION, max_new_tokens=8, device="cpu"))
    *pieces, last = ask(folder, picture, QUESTION, show_alignment=True, max_new_tokens=8, device="cpu")
    assert "".join(pieces) == plain and last.startswith("\n")
    heading, *lines = last[1:].splitlines()
    assert heading == "alignment: level 8 (the whole image) and a mix of (even: 14.3%, marked │)"
    (weights,) = Engine.load(folder, device="cpu").alignment_weights([Request.ask(QUESTION, pictures[0])])
    assert weights is not None
    mark = round(BAR_WIDTH / 7)
    for level, (line, weight) in enumerate(zip(lines, weights, strict=True), start=1):
        found = re.fullmatch(rf"  level {level} +(\d+\.\d)% (.*)│(.*)", line)
        assert found is not None
        assert float(found[1]) == pytest.approx(100 * weight, abs=0.051)
        assert len(found[2]) == mark
        eighths = sum("▏▎▍▌▋▊▉█".index(cell) + 1 for cell in (found[2] + found[3]).rstrip())
        assert eighths == round(8 * BAR_WIDTH * weight)


def test_a_forced_level_is_named(folder: Path, picture: Path) -> None:
    *_, last = ask(folder, picture, QUESTION, show_alignment=True, level=3, max_new_tokens=4, device="cpu")
    assert last == "\nalignment: level 3 of 8, forced"


def test_an_empty_answer_is_reported(
    folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Engine, "events", lambda *_: iter([TextDelta(0, " "), TextDelta(0, "\n")]))
    assert list(ask(folder, picture, QUESTION, device="cpu")) == [" ", "\n"]
    assert capsys.readouterr().err == "the model answered with nothing\n"
    monkeypatch.setattr(Engine, "events", lambda *_: iter([TextDelta(0, "red")]))
    assert list(ask(folder, picture, QUESTION, device="cpu")) == ["red"]
    assert capsys.readouterr().err == ""


def test_an_answer_that_was_cut_off_is_reported(
    folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Loop, "_end_tokens", lambda loop: set())
    assert "".join(ask(folder, picture, QUESTION, max_new_tokens=4, device="cpu"))
    assert capsys.readouterr().err == "\ncut off after 4 tokens; --max-new-tokens sets the limit\n"


def test_the_precision_is_the_engine_s(folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def events(engine: Engine, *_: object) -> Iterator[TextDelta]:
        seen.append(engine.model.dtype)
        return iter([TextDelta(0, "red")])

    monkeypatch.setattr(Engine, "events", events)
    for precision in ("float32", "bfloat16"):
        list(ask(folder, picture, QUESTION, device="cpu", precision=precision))
    assert seen == [torch.float32, torch.bfloat16]


def test_a_run_folder_is_not_taken_for_its_model(folder: Path, picture: Path, no_model: None) -> None:
    with pytest.raises(AskError, match=re.escape(f"it is a run folder; did you mean {folder}?")):
        next(ask(folder.parent, picture, QUESTION))


def test_a_wrong_level_is_refused_before_anything_is_said(folder: Path, picture: Path) -> None:
    for show in (True, False):
        with pytest.raises(EngineError, match="level 9 is not one of the model's, 1…8"):
            next(ask(folder, picture, QUESTION, show_alignment=show, level=9, max_new_tokens=4, device="cpu"))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", "alignment: none, without a gate"),
        ("global", "alignment: global, without a gate"),
        ("local", "alignment: a mix of (even: 14.3%, marked │)\n  level 1"),
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
    with pytest.raises(AskError, match=said):
        list(ask("model", Path(image), question))


def test_a_file_that_is_no_picture_says_so_before_the_model_is_loaded(tmp_path: Path, no_model: None) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text.png is not an image"):
        list(ask("model", tmp_path / "text.png", QUESTION))
