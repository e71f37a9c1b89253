"""Long prompts are read in pieces, between which others are answered."""

from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest
import torch
from PIL import Image

from aligngpt.inference.engine import Answer, Engine, Event, Failed, Finished, Request, Sampling, TextDelta, Ticket
from aligngpt.inference.generation import loop
from aligngpt.inference.generation.conversations import Beginning
from aligngpt.inference.generation.pool import JointPool

LONG = "what colour is the big red circle on the left of this picture please " * 6
GREEDY = Sampling(12)
FAMILIES = ["llama", "qwen3", "mistral", "gemma3"]


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LONG_PROMPT", 48)
    monkeypatch.setattr(loop, "TOKENS_READ_BETWEEN_STEPS", 7)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many tokens of which prompts, by length, each piece had."""
    pieces: list[tuple[int, int]] = []
    whole = JointPool.read_piece

    def counted(self: JointPool, beginning: Beginning, tokens: int) -> None:
        before = beginning.read
        whole(self, beginning, tokens)
        pieces.append((len(beginning.prompt.ids), beginning.read - before))

    monkeypatch.setattr(JointPool, "read_piece", counted)
    return pieces


@pytest.fixture
def engine_of(assembled: Callable) -> Iterator[Callable[..., Engine]]:
    opened: list[Engine] = []

    def make(language: str = "llama", **options: int) -> Engine:
        opened.append(Engine(*assembled(language), **options))
        opened[-1].model.generation_config.eos_token_id = None
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("language", FAMILIES)
def test_the_answer_is_that_of_a_prompt_read_whole(
    engine_of: Callable[..., Engine],
    pictures: list[Image.Image],
    language: str,
    read: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of(language)
    requests = [Request.ask(LONG), Request.ask(LONG, pictures[0]), Request.ask(LONG, *pictures[1:3], level=2)]
    sampling = Sampling(12, answers=2)
    whole = [engine.answer([request], sampling) for request in requests]
    assert not read
    monkeypatch.setattr(loop, "LONG_PROMPT", 48)
    for request, expected in zip(requests, whole, strict=True):
        del read[:]
        assert _texts(engine.answer([request], sampling)) == _texts(expected)
        assert len(read) >= 2 and sum(tokens for _, tokens in read) == read[0][0]
    assert [one.alignment_weights for one in engine.answer(requests, GREEDY)] == [
        one[0].alignment_weights for one in whole
    ]


def _texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


class Inbox:
    """Events of requests, in the order they come."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.events: SimpleQueue[tuple[str, Event]] = SimpleQueue()

    def submit(self, name: str, request: Request, sampling: Sampling) -> Ticket:
        return self.engine.submit(request, sampling, lambda event: self.events.put((name, event)))

    def until(self, name: str, kind: type[Event]) -> list[tuple[str, Event]]:
        found = []
        while not found or found[-1][0] != name or not isinstance(found[-1][1], kind):
            found.append(self.events.get(timeout=60))
        return found


@pytest.mark.usefixtures("short_pieces")
def test_others_are_answered_between_the_pieces(engine_of: Callable[..., Engine], read: list[tuple[int, int]]) -> None:
    engine = engine_of()
    expected = {name: engine.answer([Request.ask(text)], Sampling(n))[0].text for name, text, n in _three()}
    del read[:]
    inbox = Inbox(engine)
    first, long, late = _three()
    inbox.submit(first[0], Request.ask(first[1]), Sampling(first[2]))
    inbox.until("first", TextDelta)
    inbox.submit(long[0], Request.ask(long[1]), Sampling(long[2]))
    inbox.submit(late[0], Request.ask(late[1]), Sampling(late[2]))
    events = inbox.until("long", TextDelta)
    pieces = [tokens for length, tokens in read if length > 48]
    assert len(pieces) > 5 and max(pieces) <= 7
    # With each piece those under way got a token, and the late one was not kept waiting for the whole.
    assert sum(name == "first" and isinstance(event, TextDelta) for name, event in events) >= len(pieces)
    assert any(name == "late" and isinstance(event, Finished) for name, event in events)
    finished = {name: event.answer.text for name, event in events if isinstance(event, Finished)}
    while len(finished) < 3:
        name, event = inbox.events.get(timeout=60)
        if isinstance(event, Finished):
            finished[name] = event.answer.text
    assert finished == expected


def _three() -> list[tuple[str, str, int]]:
    return [("first", "is it red ?", 60), ("long", LONG, 5), ("late", "how many ?", 3)]


@pytest.mark.usefixtures("short_pieces")
def test_two_long_prompts_are_read_one_after_the_other(
    engine_of: Callable[..., Engine], read: list[tuple[int, int]]
) -> None:
    engine = engine_of(rows=2)
    alone = [engine.answer([Request.ask(text)], GREEDY)[0].text for text in (LONG, LONG + LONG)]
    del read[:]
    together = engine.answer([Request.ask(LONG), Request.ask(LONG + LONG), Request.ask("what ?")], GREEDY)
    assert _texts(together[:2]) == alone
    lengths = [length for length, _ in read]
    assert lengths == sorted(lengths) and len(set(lengths)) == 2


@pytest.mark.usefixtures("short_pieces")
def test_a_later_turn_reads_only_what_is_new_in_pieces(
    engine_of: Callable[..., Engine], pictures: list[Image.Image], read: list[tuple[int, int]], asks: Callable
) -> None:
    engine = engine_of()
    first = Request(tuple(asks("what colour ?", pictures[:1])), (pictures[0],), keep=True)
    answer = engine.answer([first], GREEDY)[0]
    turns = [
        *first.messages,
        {"role": "assistant", "content": answer.text},
        {"role": "user", "content": [{"type": "text", "text": LONG}]},
    ]
    del read[:]
    kept = engine.answer([Request(tuple(turns), (pictures[0],), keep=True)], GREEDY)[0]
    assert kept.reused_tokens > 0 and len(read) >= 2
    assert sum(tokens for _, tokens in read) == kept.prompt_tokens - kept.reused_tokens
    fresh = engine.answer([Request(tuple(turns), (pictures[0],))], GREEDY)[0]
    assert kept.text == fresh.text and kept.alignment_weights == fresh.alignment_weights


@pytest.mark.usefixtures("short_pieces")
def test_nobody_wants_it_any_more(engine_of: Callable[..., Engine], read: list[tuple[int, int]]) -> None:
    engine = engine_of()
    inbox = Inbox(engine)
    inbox.submit("first", Request.ask("is it red ?"), Sampling(80))
    inbox.until("first", TextDelta)
    ticket = inbox.submit("long", Request.ask(LONG + LONG), GREEDY)
    while not read:
        inbox.until("first", TextDelta)
    ticket.cancel()
    events = inbox.until("first", Finished)
    assert not any(name == "long" for name, _ in events)
    assert sum(tokens for _, tokens in read) < read[0][0], "the rest was not read"
    assert engine.answer([Request.ask("what ?")], GREEDY)


@pytest.mark.usefixtures("short_pieces")
def test_a_piece_that_fails_harms_nobody_else(
    engine_of: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of()
    expected = engine.answer([Request.ask("is it red ?")], Sampling(40))[0].text
    whole, count = JointPool.read_piece, []

    def failing(self: JointPool, beginning: Beginning, tokens: int) -> None:
        count.append(1)
        if len(count) == 3:
            raise torch.OutOfMemoryError("no room")
        whole(self, beginning, tokens)

    monkeypatch.setattr(JointPool, "read_piece", failing)
    inbox = Inbox(engine)
    inbox.submit("first", Request.ask("is it red ?"), Sampling(40))
    inbox.until("first", TextDelta)
    inbox.submit("long", Request.ask(LONG), GREEDY)
    assert inbox.until("long", Failed)
    (_, finished) = inbox.until("first", Finished)[-1]
    assert isinstance(finished, Finished) and finished.answer.text == expected
    assert engine.answer([Request.ask(LONG)], GREEDY)[0].tokens == 12


@pytest.mark.usefixtures("short_pieces")
def test_a_recurrent_model_reads_prompts_whole(engine_of: Callable[..., Engine]) -> None:
    assert engine_of("mamba2").answer([Request.ask(LONG)], GREEDY)[0].tokens == 12
