"""A later turn of a conversation is continued where the earlier one ended, without its pictures, with equal answers."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from aligngpt.inference.engine import Engine, Request, Sampling
from aligngpt.inference.generation.kept import KeptConversations

FIRST, SECOND = "what colour is the circle ?", "how many are there ?"
SHORT = Sampling(max_new_tokens=8)


@pytest.fixture
def engine(assembled: Callable) -> Engine:
    engine = Engine(*assembled())
    engine.model.generation_config.eos_token_id = None
    return engine


def turns(*texts: str) -> list[dict[str, Any]]:
    """A conversation about a picture, in which question and answer take turns."""
    messages = []
    for place, text in enumerate(texts):
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if place == 0:
            parts.insert(0, {"type": "image"})
        messages.append({"role": "assistant" if place % 2 else "user", "content": parts})
    return messages


def count_pictures(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    own = engine.model.model.get_image_features
    monkeypatch.setattr(
        engine.model.model,
        "get_image_features",
        lambda pixels, **settings: (seen.append(len(pixels)), own(pixels, **settings))[1],
    )
    return seen


def test_a_later_turn_reads_only_what_is_new(
    engine: Engine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = count_pictures(engine, monkeypatch)
    (first,) = engine.answer([Request(turns(FIRST), (pictures[0],), keep=True)], SHORT)
    assert (first.reused_tokens, looked) == (0, [1])
    later = turns(FIRST, first.text, SECOND)
    (fresh,) = engine.answer([Request(later, (pictures[0],))], SHORT)
    (second,) = engine.answer([Request(later, (pictures[0],), keep=True)], SHORT)
    assert second == fresh
    assert second.prompt_tokens > second.reused_tokens >= first.prompt_tokens - 1
    assert looked == [1]  # not for the fresh one either: the features of the latest pictures are kept
    third = turns(FIRST, first.text, SECOND, second.text, "is it red ?")
    assert engine.answer([Request(third, (pictures[0],), keep=True)], SHORT) == engine.answer(
        [Request(third, (pictures[0],))], SHORT
    )


@pytest.mark.parametrize("change", ["picture", "level", "question"])
def test_another_picture_level_or_first_question_is_read_afresh(
    engine: Engine, pictures: list[Image.Image], change: str
) -> None:
    (first,) = engine.answer([Request(turns(FIRST), (pictures[0],), keep=True)], SHORT)
    opening = "is it red ?" if change == "question" else FIRST
    picture = pictures[1] if change == "picture" else pictures[0]
    level = 2 if change == "level" else None
    later = Request(turns(opening, first.text, SECOND), (picture,), level=level, keep=True)
    (answer,) = engine.answer([later], SHORT)
    assert answer.reused_tokens == 0
    assert [answer] == engine.answer([Request(later.messages, later.images, level=level)], SHORT)


def test_the_gate_reads_the_same_in_every_turn(engine: Engine, pictures: list[Image.Image]) -> None:
    first, later = (
        engine.alignment_weights([Request(messages, (pictures[0],))])[0]
        for messages in (turns(FIRST), turns(FIRST, "red", SECOND))
    )
    assert first == later


def test_a_gate_that_reads_all_is_pinned_only_when_asked(assembled: Callable, pictures: list[Image.Image]) -> None:
    for pin, reused in ((False, False), (True, True)):
        model, processor = assembled()
        model.config.text_pooling = "all"
        engine = Engine(model, processor, pin_gate=pin)
        (first,) = engine.answer([Request(turns(FIRST), (pictures[0],), keep=True)], SHORT)
        later = turns(FIRST, first.text, SECOND)
        (second,) = engine.answer([Request(later, (pictures[0],), keep=True)], SHORT)
        assert bool(second.reused_tokens) is reused
        weights = [engine.alignment_weights([Request(one, (pictures[0],))])[0] for one in (turns(FIRST), later)]
        assert (weights[0] == weights[1]) is pin


def test_what_is_kept_stays_below_its_limit(assembled: Callable, pictures: list[Image.Image]) -> None:
    engine = Engine(*assembled(), kept_bytes=60_000)
    for number in range(6):
        engine.answer([Request.ask("what is it ? " * (number + 1), pictures[number % 3])], SHORT)
        messages = turns("what is it ? " * (number + 1))
        engine.answer([Request(messages, (pictures[number % 3],), keep=True)], SHORT)
    kept = engine.loop.kept
    assert isinstance(kept, KeptConversations)
    assert 0 < sum(one.bytes for one in kept._kept) <= 60_000
    assert len(kept._kept) < 6


def test_texts_alone_are_kept_too(engine: Engine) -> None:
    (first,) = engine.answer([Request([{"role": "user", "content": FIRST}], keep=True)], SHORT)
    later = [
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": SECOND},
    ]
    (second,) = engine.answer([Request(later, keep=True)], SHORT)
    assert second.reused_tokens > 0
    assert [second] == engine.answer([Request(later)], SHORT)
