"""The page's handler without a browser: streams, stops, compares, and says errors as text."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from aligngpt.inference.engine import Engine, Request, Sampling
from aligngpt.web.answering import (
    FAULT,
    LONG_QUESTION,
    NO_PICTURE,
    NO_QUESTION,
    PICTURE_FAULTS,
    STOPPED,
    Answering,
)

QUESTION = "what colour is the circle ?"
LONG = 200


@pytest.fixture(scope="module")
def engine(assembled: Callable) -> Iterator[Engine]:
    with Engine(*assembled()) as engine:
        yield engine


@pytest.fixture
def upload(pictures: list[Image.Image], tmp_path: Path) -> str:
    pictures[0].save(tmp_path / "upload.png")
    return str(tmp_path / "upload.png")


def test_the_answer_grows_and_is_the_engine_s(engine: Engine, upload: str, pictures: list[Image.Image]) -> None:
    seen = list(Answering(engine, 8).ask("a", upload, f" {QUESTION} "))
    (answer,) = engine.answer([Request.ask(QUESTION, pictures[0])], Sampling(8))
    assert seen[-1].answer == answer.text != ""
    assert len({one.answer for one in seen}) > 2 and seen[-1].compared == ""
    assert answer.alignment_weights is not None
    assert seen[0].gate.count('class="bar"') == len(answer.alignment_weights) == 7
    assert f"{answer.alignment_weights[0]:.1%}" in seen[0].gate
    assert seen[0].matches is not None and seen[0].matches.size == (384, 384)


def test_a_level_s_answer_stands_beside_the_gate_s(engine: Engine, upload: str, pictures: list[Image.Image]) -> None:
    *_, last = Answering(engine, 8).ask("a", upload, QUESTION, 2)
    requests = [Request.ask(QUESTION, pictures[0], level=level) for level in (None, 2)]
    assert [last.answer, last.compared] == [answer.text for answer in engine.answer(requests, Sampling(8))]


def test_a_cut_answer_is_marked(engine: Engine, upload: str) -> None:
    *_, last = Answering(engine, 2).ask("a", upload, QUESTION)
    assert last.status == "An answer was cut off after 2 tokens (--max-new-tokens)."


def test_stopping_ends_the_engine_s_work_of_this_visitor_only(engine: Engine, upload: str) -> None:
    answering = Answering(engine, LONG)
    mine, other = answering.ask("mine", upload, QUESTION, 1), answering.ask("other", upload, QUESTION)
    next(mine), next(other)
    answering.stop("nobody")
    answering.stop("mine")
    assert list(mine)[-1].status == STOPPED
    assert STOPPED not in {one.status for one in other}
    answering.stop("mine")
    assert _rows(engine) == 0


def test_stopping_keeps_what_was_said(engine: Engine, upload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answering = Answering(engine, LONG)
    answers = answering.ask("a", upload, QUESTION)
    said = next(one for one in answers if one.answer)
    answering.stop("a")
    last = list(answers)[-1]
    assert last.status == STOPPED and last.answer.startswith(said.answer)


def test_a_new_question_stops_the_visitor_s_earlier_one(engine: Engine, upload: str) -> None:
    answering = Answering(engine, LONG)
    first = answering.ask("a", upload, QUESTION)
    next(first)
    second = answering.ask("a", upload, QUESTION)
    next(second)
    assert list(first)[-1].status == STOPPED
    answering.stop("a")
    assert list(second)[-1].status == STOPPED


def test_closing_the_iterator_stops_the_generation(engine: Engine, upload: str) -> None:
    answers = Answering(engine, LONG).ask("a", upload, QUESTION)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert _rows(engine) == 0


def _rows(engine: Engine) -> int:
    """Answers under way, once the engine has looked for cancelled ones."""
    for _ in range(3):
        engine.answer([Request.ask("how many ?")], Sampling(2))
    return len(engine.loop._rows)


def _status(engine: Engine, picture: str | None, question: str | None, level: int = 0) -> str:
    *_, last = Answering(engine, 4).ask("a", picture, question, level)
    assert last.answer == ""
    return last.status


def test_what_is_missing_is_said(engine: Engine, upload: str) -> None:
    assert _status(engine, None, QUESTION) == NO_PICTURE
    assert _status(engine, upload, " ") == _status(engine, upload, None) == NO_QUESTION
    assert "level 9 is not one of the model's, 1…8" in _status(engine, upload, QUESTION, 9)
    assert _status(engine, upload, "red " * 1001) == LONG_QUESTION
    assert "context is 512 tokens" in _status(engine, upload, "red " * 600)


def _huge(width: int = 9_000, height: int = 9_000) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"%PDF-1.7", "not_an_image"),
        (_huge(), "too_large"),
        (_huge()[:300], "too_large"),
        (_huge(2_000, 1), "too_large"),
    ],
)
def test_a_bad_picture_is_said_without_a_path(engine: Engine, tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    assert _status(engine, str(tmp_path / "bad.png"), QUESTION) == PICTURE_FAULTS[reason]


def test_a_fault_is_said_without_its_trace(engine: Engine, upload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(engine.loop.pictures, "look", fails)
    assert _status(engine, upload, QUESTION) == FAULT


@pytest.mark.parametrize("mode", ["none", "global", "local"])
def test_models_without_a_gate_show_none(assembled: Callable, upload: str, mode: str) -> None:
    with Engine(*assembled(alignment=mode)) as engine:
        *_, last = Answering(engine, 4).ask("a", upload, QUESTION)
    assert last.answer
    assert bool(last.gate) == (mode == "local") and (last.matches is None) == (mode == "none")
