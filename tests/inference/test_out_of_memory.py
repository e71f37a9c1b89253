"""Without memory for one request, the others are answered as ever, or it is said that they are not."""

from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest
import torch

from aligngpt.inference.engine import Engine, Event, Failed, Finished, Request, Sampling, TextDelta
from aligngpt.inference.generation import cache, loop
from aligngpt.inference.generation.cache import PooledCache, PooledLayer

WORDS = "what colour is the big red circle on left of this picture please "
SHORT, LONG = Request.ask(WORDS), Request.ask(WORDS * 6)
TOKENS = Sampling(150)


def no_memory(*args: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def engine(assembled: Callable) -> Iterator[Engine]:
    with Engine(*assembled()) as engine:
        engine.model.generation_config.eos_token_id = None
        yield engine


def ends_of(engine: Engine, later: Request, arm: Callable[[], None]) -> list[Finished | Failed]:
    """How a short request ends, and a later one that comes while it is answered, when `arm` has been called."""
    events: SimpleQueue[tuple[int, Event]] = SimpleQueue()
    engine.submit(SHORT, TOKENS, lambda event: events.put((0, event)))
    assert isinstance(events.get(timeout=30)[1], TextDelta)
    # Between two steps.
    engine.loop.run(arm)
    engine.submit(later, Sampling(4), lambda event: events.put((1, event)))
    ends: dict[int, Finished | Failed] = {}
    while len(ends) < 2:
        number, event = events.get(timeout=30)
        if not isinstance(event, TextDelta):
            ends[number] = event
    return [ends[0], ends[1]]


def test_no_room_for_a_request_leaves_the_others_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = engine.answer([SHORT], TOKENS)
    reserve, calls = PooledLayer.reserve, []

    def arm() -> None:
        assert engine.loop._pool is not None
        layers = engine.loop._pool.cache.layers  # type: ignore[attr-defined]

        def once(self: PooledLayer, rows: int, length: int) -> None:
            # In the second layer, when the first has its room already.
            if self in layers and rows > self.rows and len(calls) < 2:
                calls.append(length)
                if len(calls) == 2:
                    no_memory()
            reserve(self, rows, length)

        monkeypatch.setattr(PooledLayer, "reserve", once)

    first, second = ends_of(engine, LONG, arm)
    assert len(calls) == 2
    assert first == Finished(0, expected)
    assert isinstance(second, Failed) and "out of memory" in str(second.error)


@pytest.mark.parametrize("read_whole_up_to", [loop.LONG_PROMPT, 16])
def test_a_join_that_fails_half_way_fails_all_and_the_next_request_is_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, read_whole_up_to: int
) -> None:
    monkeypatch.setattr(loop, "LONG_PROMPT", read_whole_up_to)
    (expected,) = engine.answer([SHORT], TOKENS)
    write = cache._write_rows
    written = []

    def arm() -> None:
        assert engine.loop._pool is not None
        pooled = engine.loop._pool.cache.layers  # type: ignore[attr-defined]

        def once(layer: PooledLayer, state: tuple[torch.Tensor, torch.Tensor], end: int) -> None:
            if layer in pooled and len(written) < 2:
                written.append(layer)
                if len(written) == 2:
                    no_memory()
            write(layer, state, end)

        monkeypatch.setattr(cache, "_write_rows", once)

    ends = ends_of(engine, LONG, arm)
    assert len(written) == 2
    assert all(isinstance(end, Failed) and "out of memory" in str(end.error) for end in ends)
    assert engine.answer([SHORT], TOKENS) == [expected]


def test_room_is_made_for_keys_and_values_or_for_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = PooledLayer()
    layer.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    before = layer.keys, layer.values
    make, made = cache._buffer, []

    def once(like: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        made.append(length)
        if len(made) == 2:
            no_memory()
        return make(like, rows, length)

    monkeypatch.setattr(cache, "_buffer", once)
    with pytest.raises(torch.OutOfMemoryError):
        layer.reserve(1, 500)
    assert layer.keys is before[0] and layer.values is before[1]


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine.answer([SHORT], TOKENS) + engine.answer([LONG], Sampling(4))
    keep = Request(LONG.messages, keep=True)
    ends = ends_of(engine, keep, lambda: monkeypatch.setattr(PooledCache, "copied", no_memory))
    assert ends == [Finished(0, answer) for answer in expected]
    assert engine.answer([keep], Sampling(4))[0].reused_tokens == 0
