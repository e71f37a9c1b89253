"""A real server on this machine with the clients that people use, and with clients that leave."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
openai = pytest.importorskip("openai", reason="needs the extra test")
httpx = pytest.importorskip("httpx", reason="needs the extra test")

from aligngpt.serving.running import Options  # noqa: E402

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_completion_tokens": 8}


@pytest.fixture(scope="module")
def client(serving: tuple[str, Any]) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{serving[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_a_stream_joins_to_the_answer(client: Any, ask: Callable, picture_url: str) -> None:
    asked = {**GREEDY, "messages": ask(picture_url), "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.strip() == whole.choices[0].message.content
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    streamed = [told for c in chunks if c.choices and c.choices[0].logprobs for told in c.choices[0].logprobs.content]
    assert [told.token for told in streamed] == [told.token for told in whole.choices[0].logprobs.content]
    assert all(len(told.top_logprobs) == 2 for told in streamed)


def test_several_answers_are_streamed_by_index(client: Any, ask: Callable) -> None:
    asked = {**GREEDY, "messages": ask(), "temperature": 2, "seed": 3, "n": 3}
    whole = client.chat.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) > 1
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [text.strip() for text in texts] == [choice.message.content for choice in whole.choices]


def test_errors_are_the_clients_exceptions(client: Any, ask: Callable) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(
            **GREEDY, messages=ask(), tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert bad.value.param == "tools"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**GREEDY, messages=ask(text="red " * 600), stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**GREEDY, "model": "other"}, messages=ask())
    assert client.models.list().data[0].id == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"


def test_langchain_answers_and_streams(serving: tuple[str, Any], ask: Callable, picture_url: str) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="needs the extra test")
    chat = langchain.ChatOpenAI(base_url=f"{serving[0]}/v1", api_key="none", model="tiny", temperature=0, max_tokens=8)
    answer = chat.invoke(ask(picture_url))
    assert "".join(str(chunk.content) for chunk in chat.stream(ask(picture_url))).strip() == answer.content


def test_a_later_turn_reuses_the_first(client: Any, ask: Callable, picture_url: str) -> None:
    first = client.chat.completions.create(**GREEDY, messages=ask(picture_url))
    told = {"role": "assistant", "content": first.choices[0].message.content}
    later = client.chat.completions.create(**GREEDY, messages=[*ask(picture_url), told, *ask(text="is it big ?")])
    assert later.usage.prompt_tokens_details.cached_tokens > 0


@pytest.fixture
def slow_engine(assembled: Callable, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An engine that takes 50 ms a token and never ends an answer."""
    from aligngpt.inference.engine import Engine

    with Engine(*assembled("qwen2"), rows=1) as engine:
        step = engine.loop._step

        def slowly() -> None:
            time.sleep(0.05)
            step()

        monkeypatch.setattr(engine.loop, "_step", slowly)
        monkeypatch.setattr(engine.loop, "_end_tokens", set)
        yield engine


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(
    slow_engine: Any, run_server: Callable, ask: Callable, stream: bool
) -> None:
    body = {"model": "tiny", "messages": ask(), "max_tokens": 400, "stream": stream}
    with run_server(slow_engine, Options(port=0, rows=1, grace=1)) as (address, server):
        with httpx.Client() as client:
            if stream:
                with client.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
                    next(response.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(f"{address}/v1/chat/completions", json=body, timeout=0.5)
        wait_for(lambda: server.desk.open == 0 and slow_engine.loop.running == 0)
        assert 'outcome="left"' in httpx.get(f"{address}/metrics").text


def test_a_full_queue_is_told_and_waiting_requests_that_leave_are_forgotten(
    slow_engine: Any, run_server: Callable, ask: Callable
) -> None:
    body = {"model": "tiny", "messages": ask(), "max_tokens": 400, "stream": True}
    with run_server(slow_engine, Options(port=0, rows=1, max_queue=2, grace=0)) as (address, server):
        url = f"{address}/v1/chat/completions"
        with httpx.Client() as client, client.stream("POST", url, json=body):
            import threading

            def leave() -> None:
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(url, json=body, timeout=1.5)

            waiting = [threading.Thread(target=leave) for _ in range(2)]
            for thread in waiting:
                thread.start()
            wait_for(lambda: slow_engine.loop.waiting == 2)
            refused = httpx.post(url, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert refused.headers["retry-after"] == "1"
            for thread in waiting:
                thread.join()
            wait_for(lambda: server.desk.open == 1 and slow_engine.loop.waiting == 0)
            assert slow_engine.loop.running == 1


def test_a_request_has_limited_time(slow_engine: Any, run_server: Callable, ask: Callable) -> None:
    body = {"model": "tiny", "messages": ask(), "max_tokens": 400}
    with run_server(slow_engine, Options(port=0, rows=1, seconds=0.5, grace=1)) as (address, server):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        with pytest.raises(openai.InternalServerError) as late:
            client.chat.completions.create(**body)
        assert (late.value.status_code, late.value.code) == (504, "timeout")
        with pytest.raises(openai.APIError, match="took longer"):
            list(client.chat.completions.create(**body, stream=True))
        wait_for(lambda: server.desk.open == 0)


def test_a_server_that_stops_ends_open_requests_after_the_grace_time(
    slow_engine: Any, run_server: Callable, ask: Callable
) -> None:
    body = {"model": "tiny", "messages": ask(), "max_tokens": 400, "stream": True}
    with (
        run_server(slow_engine, Options(port=0, rows=1, grace=0.2)) as (address, server),
        httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        server.should_exit = True
        assert any("shutting down" in line for line in lines)
