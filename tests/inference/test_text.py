"""Text as it comes: no part of a character, nothing beyond a stop text, and the pieces join to the whole."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from aligngpt.inference.engine import Engine, EngineError, Request, Sampling
from aligngpt.inference.generation import loop
from aligngpt.inference.generation.text import AnswerText


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


def pieces(text: str, stop: Sequence[str] = (), cut: int | None = None) -> tuple[list[str], AnswerText]:
    answer = AnswerText(Bytes(), stop)
    shown = []
    for token in text.encode()[:cut]:
        shown.append(answer.add(token))
        if answer.stopped:
            break
    shown.append(answer.finish())
    return shown, answer


@pytest.mark.parametrize("text", ["a wolf", "żółw 🐺 дом", "  spaces  around \n", "", "   ", "a  b\n\n c"])
def test_the_pieces_join_to_the_text(text: str) -> None:
    shown, answer = pieces(text)
    assert "".join(shown) == answer.text == text.strip()


def test_no_part_of_a_character_is_shown() -> None:
    shown, _ = pieces("🐺🐺")
    assert [piece for piece in shown if piece] == ["🐺", "🐺"]
    cut, answer = pieces("a🐺", cut=3)
    assert "".join(cut) == answer.text == "a\ufffd"


@pytest.mark.parametrize("seed", range(20))
def test_broken_bytes_are_shown_as_they_come(seed: int) -> None:
    draw = random.Random(seed)
    whole, parts = ["a", "é", "€", "🐺", "\ufffd"], [b"\xff", b"\xf0\x9f", b"\xe2\x82", b"\x80"]
    said = b"".join(draw.choices([*map(str.encode, whole), *parts, 30 * b"\xff", 30 * "\ufffd".encode()], k=60))
    lengths: list[int] = []

    class Measured(Bytes):
        def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
            lengths.append(len(tokens))
            return super().decode(tokens, skip_special_tokens)

    answer = AnswerText(Measured())
    shown = [answer.add(token) for token in said]
    assert "".join(shown) + answer.finish() == answer.text == said.decode(errors="replace")
    assert max(lengths) < 30


def test_a_stop_text_is_found_among_broken_bytes() -> None:
    shown, answer = pieces("\ufffd" * 9, ["\ufffd\ufffd"], cut=20)
    assert (answer.text, answer.stopped, len(shown)) == ("", True, 10)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("a wolf. And more", ["."], "a wolf"),
        ("one two three", ["two", "one two t"], "one"),
        ("ab abc", ["abc"], "ab"),
        ("aab", ["ab"], "a"),
        ("a wolf", ["fox"], "a wolf"),
        ("ends with f", ["fox"], "ends with f"),
        ("🐺 stop 🐺", ["stop"], "🐺"),
    ],
)
def test_a_stop_text_ends_the_answer_and_is_never_shown(text: str, stop: list[str], expected: str) -> None:
    shown, answer = pieces(text, stop)
    assert "".join(shown) == answer.text == expected
    assert answer.stopped == (expected != text)


def test_the_engine_stops_at_a_stop_text(assembled: Callable, pictures: list[Any]) -> None:
    engine = Engine(*assembled())
    engine.model.generation_config.eos_token_id = None
    request = Request.ask("what colour is the circle ?", pictures[0])
    (whole,) = engine.answer([request], Sampling(12))
    words = whole.text.split()
    stop = next(word for word in words[2:] if word not in words[:2])
    (cut,) = engine.answer([request], Sampling(12, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert (cut.stopped, cut.finish_reason) == (True, "stop")
    assert "".join(engine.stream(request, Sampling(12, stop=(stop,)))) == cut.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": float("nan")},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": float("nan")},
        {"max_new_tokens": 0},
        {"answers": 0},
        {"top_k": -1},
        {"stop": ("",)},
        {"temperature": float("inf")},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=r"must (be|not be)"):
        Sampling(**wrong)


def test_a_stop_text_in_what_was_held_back_at_the_last_token_ends_the_answer(
    assembled: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(*assembled("qwen2"))
    tokenizer = engine.processor.tokenizer
    said = tokenizer.encode("red é")[:-1]
    assert tokenizer.decode(said) == "red \ufffd"
    left = iter(said)
    monkeypatch.setattr(loop, "choose", lambda logits, choosers: ([next(left)], [None]))
    (answer,) = engine.answer([Request.ask("what ?")], Sampling(len(said), stop=("\ufffd",)))
    assert (answer.text, answer.finish_reason) == ("red", "stop")


@pytest.mark.parametrize(("template", "expected"), [("llava_v0", "red"), ("chatml", "red###Human: blue")])
def test_an_answer_ends_at_the_text_that_ends_it_in_the_chat_template(
    assembled: Callable, monkeypatch: pytest.MonkeyPatch, template: str, expected: str
) -> None:
    engine = Engine(*assembled("qwen2", chat_template=template))
    said = engine.processor.tokenizer.encode("red###Human: blue")
    left = iter(said)
    monkeypatch.setattr(loop, "choose", lambda logits, choosers: ([next(left)], [None]))
    (answer,) = engine.answer([Request.ask("what ?")], Sampling(len(said)))
    assert (answer.text, answer.stopped) == (expected, template == "llava_v0")
