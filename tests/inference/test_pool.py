"""Requests join and leave between steps, and each gets the answer it gets alone."""

import os
import random
import signal
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from PIL import Image

from aligngpt.inference.engine import Engine, EngineError, Event, Failed, Finished, Request, Sampling, TextDelta, Ticket
from aligngpt.inference.generation.fast_step import FastStep
from aligngpt.inference.generation.pool import JointPool, pool_for
from aligngpt.inference.generation.prompts import Prompt
from aligngpt.inference.generation.separate import SeparatePool

WORDS = [
    "what",
    "colour",
    "is",
    "the",
    "circle",
    "big",
    "red",
    "shape",
    "are",
    "there",
    "on",
    "left",
    "of",
    "this",
    "picture",
    "please",
    "how",
    "many",
]


def some_requests(pictures: list[Image.Image], count: int) -> list[tuple[Request, Sampling]]:
    rng = random.Random(7)
    made = []
    for number in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 40)))
        shown = rng.sample(pictures, rng.randint(0, 2))
        level = rng.choice([None, None, 3]) if shown else None
        made.append((Request.ask(text, *shown, level=level), Sampling(rng.choice([1, 2, 9, 30, 70]), seed=number)))
    return made


class Inbox:
    """What happens to the requests of a test, as tuples of request and event."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.events: SimpleQueue[tuple[int, Event]] = SimpleQueue()
        self.tickets: dict[int, Ticket] = {}

    def submit(self, number: int, request: Request, sampling: Sampling) -> None:
        self.tickets[number] = self.engine.submit(request, sampling, lambda event: self.events.put((number, event)))


@pytest.mark.parametrize("language", ["llama", "qwen2", "qwen3", "mistral", "gemma3", "mamba2"])
@pytest.mark.parametrize("rows", [3, 32])
def test_answers_do_not_depend_on_who_joins_and_leaves(
    assembled: Callable, pictures: list[Image.Image], language: str, rows: int
) -> None:
    engine = Engine(*assembled(language), rows=rows)
    engine.model.generation_config.eos_token_id = None
    asked = some_requests(pictures, 24)
    expected = [engine.answer([request], sampling)[0] for request, sampling in asked]
    assert len({answer.text for answer in expected}) > 12
    rng = random.Random(1)
    inbox = Inbox(engine)
    waiting = list(range(len(asked)))
    dropped = set(rng.sample(waiting, 5))
    rng.shuffle(waiting)
    found = {}
    for number in waiting[:4]:
        inbox.submit(number, *asked[number])
    joined = 4
    while len(found) < len(asked) - len(dropped):
        number, event = inbox.events.get(timeout=60)
        if number in dropped and isinstance(event, TextDelta):
            inbox.tickets[number].cancel()
        if isinstance(event, Finished):
            found[number] = event.answer
            dropped.discard(number)
        if joined < len(waiting) and rng.random() < 0.3:
            inbox.submit(waiting[joined], *asked[waiting[joined]])
            joined += 1
        if joined < len(waiting) and len(found) + len(dropped) >= joined:
            inbox.submit(waiting[joined], *asked[waiting[joined]])
            joined += 1
    for number, answer in found.items():
        assert (answer.text, answer.tokens) == (expected[number].text, expected[number].tokens)


def test_a_recurrent_model_answers_each_request_by_itself(assembled: Callable) -> None:
    assert isinstance(pool_for(assembled("mamba2")[0]), SeparatePool)
    assert isinstance(pool_for(assembled("llama")[0]), JointPool)


@pytest.mark.parametrize("language", ["llama", "qwen2", "qwen3", "mistral"])
def test_the_fast_step_is_the_model_s_own(assembled: Callable, language: str) -> None:
    model, _ = assembled(language)
    assert FastStep.of(model.eval()) is not None


def test_a_step_that_would_differ_is_not_used(assembled: Callable) -> None:
    model, _ = assembled("llama")
    model.eval()
    attention = model.model.language_model.layers[1].self_attn
    attention.scaling *= 1.5
    step = FastStep.of(model)
    assert step is not None  # it reads the scaling that the model uses
    model.model.language_model.layers[1].mlp.act_fn = torch.nn.GELU()
    assert FastStep.of(model) is not None
    model.model.language_model.layers[0].forward = lambda hidden_states, **_: hidden_states  # type: ignore[method-assign]
    assert FastStep.of(model) is None


def test_joined_projections_keep_the_model_s_weights(assembled: Callable) -> None:
    model, _ = assembled("qwen2")
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert FastStep.of(model) is not None
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("language", ["llama", "qwen2"])
def test_after_an_answer_the_model_still_has_gradients(assembled: Callable, language: str) -> None:
    model, processor = assembled(language)
    with Engine(model, processor) as engine:
        engine.answer([Request.ask("what ?")], Sampling(2))
    with torch.inference_mode():
        assert FastStep.of(model) is not None
    ids = torch.tensor([processor.encode("what ?")[0]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.model.language_model.layers[0].self_attn.q_proj.weight.grad.any()


def test_several_answers_are_drawn_from_one_reading(assembled: Callable, pictures: list[Image.Image]) -> None:
    engine = Engine(*assembled())
    request = Request.ask("what colour is the circle ?", pictures[0])
    together = engine.answer([request, request], Sampling(8, temperature=1.5, seed=5, answers=3))
    alone = [engine.answer([request], Sampling(8, temperature=1.5, seed=5 + index))[0] for index in range(3)]
    assert [answer.text for answer in together] == [answer.text for answer in alone] * 2
    assert len({answer.text for answer in alone}) == 3


def test_a_request_that_fails_leaves_the_others_alone(assembled: Callable, pictures: list[Image.Image]) -> None:
    engine = Engine(*assembled())
    engine.model.generation_config.eos_token_id = None
    good = Request.ask("what colour is the circle ?", pictures[0])
    (expected,) = engine.answer([good], Sampling(60))
    inbox = Inbox(engine)
    inbox.submit(0, good, Sampling(60))
    first = inbox.events.get(timeout=60)
    assert isinstance(first[1], TextDelta)
    bad = Request.ask("how many ?", Image.new("RGB", (20, 20), "white"))
    ticket = Ticket(engine.prompts.write(bad, 4), Sampling(4), False, lambda event: inbox.events.put((1, event)))
    ticket.prompt.pixels.fill_(float("nan"))  # type: ignore[union-attr]
    engine.loop.submit([ticket])
    ends = {}
    while len(ends) < 2:
        number, event = inbox.events.get(timeout=60)
        if isinstance(event, (Finished, Failed)):
            ends[number] = event
    assert ends[0] == Finished(0, expected)
    assert isinstance(ends[1], Failed)
    assert "not a number" in str(ends[1].error)


def test_of_requests_read_together_only_the_guilty_one_fails(
    assembled: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(*assembled())
    requests = [Request.ask(text) for text in ("what colour ?", "how many red ?", "is it big ?")]
    expected = [engine.answer([request], Sampling(8))[0] for request in requests]
    bad = engine.prompts.write(requests[1], 8).ids
    whole = JointPool.read

    def failing(self: JointPool, prompts: Sequence[Prompt], *args: Any) -> torch.Tensor:
        if any(prompt.ids == bad for prompt in prompts):
            raise torch.OutOfMemoryError("no room")
        return whole(self, prompts, *args)

    monkeypatch.setattr(JointPool, "read", failing)
    inbox = Inbox(engine)
    tickets = [
        Ticket(
            engine.prompts.write(request, 8), Sampling(8), False, partial(lambda n, e: inbox.events.put((n, e)), number)
        )
        for number, request in enumerate(requests)
    ]
    engine.loop.submit(tickets)
    ends: dict[int, Finished | Failed] = {}
    while len(ends) < 3:
        number, event = inbox.events.get(timeout=60)
        if not isinstance(event, TextDelta):
            ends[number] = event
    assert isinstance(ends[1], Failed) and "no room" in str(ends[1].error)
    assert [ends[0], ends[2]] == [Finished(0, expected[0]), Finished(0, expected[2])]


def test_an_error_as_an_answer_leaves_ends_it_but_not_the_engine(
    assembled: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(*assembled())
    engine.model.generation_config.eos_token_id = None
    request = Request.ask("what colour ?")
    (expected,) = engine.answer([request], Sampling(8))
    inbox = Inbox(engine)
    inbox.submit(0, request, Sampling(400))
    inbox.submit(1, request, Sampling(400))
    assert isinstance(inbox.events.get(timeout=60)[1], TextDelta)

    def failing(self: JointPool, row: int) -> None:
        raise RuntimeError("no more device")

    def arm() -> None:
        monkeypatch.setattr(JointPool, "leave", failing)
        inbox.tickets[0].cancel()

    engine.loop.run(arm)
    while isinstance(event := inbox.events.get(timeout=60)[1], TextDelta):
        pass
    assert isinstance(event, Failed) and "no more device" in str(event.error)
    monkeypatch.undo()
    assert engine.answer([request], Sampling(8)) == [expected]


def test_the_pool_is_made_once(assembled: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        "aligngpt.inference.generation.loop.pool_for", lambda model: (made.append(1), pool_for(model))[1]
    )
    engine = Engine(*assembled())
    for _ in range(3):
        engine.answer([Request.ask("what ?")], Sampling(2))
    assert len(made) == 1


def test_a_closed_engine_says_so(assembled: Callable) -> None:
    engine = Engine(*assembled())
    engine.answer([Request.ask("what ?")], Sampling(2))
    engine.close()
    with pytest.raises(Exception, match="the engine was closed"):
        engine.answer([Request.ask("what ?")], Sampling(2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_engine_that_answered_before_a_fork_says_so_in_the_copy(assembled: Callable) -> None:
    engine = Engine(*assembled())
    engine.answer([Request.ask("what ?")], Sampling(2))
    if (child := os.fork()) == 0:
        signal.alarm(20)  # Without an error, the copy would wait for ever.
        try:
            engine.answer([Request.ask("what ?")], Sampling(2))
        except EngineError as error:
            engine.close()
            os._exit(3 if "forked copy" in str(error) else 4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert engine.answer([Request.ask("what ?")], Sampling(2))
