"""The application in one process: every field has an effect or is refused, every error has OpenAI's form."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from aligngpt.inference.generation.kept import KeptConversations

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs the extra test")

from aligngpt.serving.conversation import Limits, prepare
from aligngpt.serving.media import MediaPolicy
from aligngpt.serving.protocol import ChatRequest
from aligngpt.serving.running import Options

GREEDY = {"model": "tiny", "temperature": 0, "max_completion_tokens": 6}


def check_error(response: Any, status: int, param: str | None = None, code: str | None = None) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["param"], body["error"]["code"]) == (param, code)
    return body["error"]["message"]


def test_an_answer_is_that_of_the_engine(post: Callable, ask: Callable, engine: Any, picture_url: str) -> None:
    from aligngpt.inference.engine import Request, Sampling
    from aligngpt.serving.media import pictures_from_urls

    image = pictures_from_urls([picture_url], MediaPolicy())[0]
    request = Request.ask("what colour is the circle ?", image)
    (expected,) = engine.answer([request], Sampling(max_new_tokens=6))
    body = post({**GREEDY, "messages": ask(picture_url)}).json()
    assert body["choices"][0]["message"]["content"] == expected.text
    assert body["choices"][0]["finish_reason"] == expected.finish_reason
    assert body["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert body["usage"]["completion_tokens"] == expected.tokens


def test_a_level_changes_the_answers_probabilities_and_weights_are_returned(
    post: Callable, ask: Callable, picture_url: str
) -> None:
    asked = {**GREEDY, "messages": ask(picture_url), "logprobs": True, "alignment_weights": True}
    gate, level = post(asked).json(), post({**asked, "alignment_level": 1}).json()
    assert sum(gate["alignment_weights"]) == pytest.approx(1, abs=1e-4)
    assert level["alignment_weights"] is None
    assert "alignment_weights" not in post({**GREEDY, "messages": ask(picture_url)}).json()
    first = [body["choices"][0]["logprobs"]["content"][0]["logprob"] for body in (gate, level)]
    assert first[0] != first[1]


def test_a_seed_repeats_a_drawn_answer_and_no_seed_does_not(post: Callable, ask: Callable) -> None:
    asked = {"model": "tiny", "messages": ask(), "max_tokens": 20, "temperature": 2}
    texts = [
        post({**asked, **more}).json()["choices"][0]["message"]["content"] for more in [{"seed": 4}] * 2 + [{}] * 2
    ]
    assert texts[0] == texts[1]
    assert texts[2] != texts[3]


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unknown_parameter"),
        ({"max_tokens": 5}, "max_tokens", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", None),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"n": 9}, "n", None),
        ({"temperature": 2.5}, "temperature", None),
        ({"top_p": 0}, "top_p", None),
        ({"stop": ["a", ""]}, "stop", None),
        ({"stop": ["a"] * 5}, "stop", None),
        ({"alignment_level": 99}, "alignment_level", None),
        ({"alignment_level": 1}, "alignment_level", None),
        ({"messages": []}, "messages", None),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, None),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    post: Callable, ask: Callable, change: dict, param: str | None, code: str | None
) -> None:
    body = {**GREEDY, "messages": ask(), **change}
    response = post(body, content=json.dumps(body), headers={"content-type": "application/json"})
    if param is None:
        assert response.status_code == 400
    elif param in ("stop",):
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("stop")
    else:
        check_error(response, 400, param, code)


PART = 'a part is {"type": "text", "text": …} or {"type": "image_url", "image_url": {"url": …}}'


@pytest.mark.parametrize(
    ("content", "place", "said"),
    [
        (None, "", "give a text or a list of parts"),
        ([1], "[0]", PART),
        ([{"type": "text", "text": "a"}, {"type": "file", "file": {}}], "[1]", PART),
        ([{"type": ["text"]}], "[0]", PART),
        ([{"type": "text"}], "[0].text", "this field is missing"),
        ([{"type": "text", "text": "a", "name": "b"}], "[0].name", "is not supported"),
        ([{"type": "image_url", "image_url": "data:image/png;base64,AAAA"}], "[0].image_url", "give an object"),
        ([{"type": "image_url", "image_url": {"url": 5}}], "[0].image_url.url", "valid string"),
        ("\ud800", "", "half of a surrogate pair"),
    ],
)
def test_a_wrong_part_of_a_message_is_named_in_the_clients_terms(
    post: Callable, content: Any, place: str, said: str
) -> None:
    body = json.dumps({**GREEDY, "messages": [{"role": "user", "content": content}]})
    error = post(1, content=body, headers={"content-type": "application/json"}).json()["error"]
    assert error["param"] == f"messages[0].content{place}"
    assert said in error["message"]
    assert "pydantic" not in error["message"] and "function-" not in error["message"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("temperature", True, "give a number"),
        ("temperature", "0.5", "without quotation marks"),
        ("n", "2", "without quotation marks"),
        ("seed", False, "give a number"),
        ("stream", "yes", "valid boolean"),
        ("logprobs", 1, "valid boolean"),
        ("stop", 5, "give a text or a list of texts"),
        ("stop", ["a"] * 5, "at most 4"),
    ],
)
def test_a_value_of_another_type_is_refused(post: Callable, ask: Callable, field: str, value: Any, said: str) -> None:
    error = post({**GREEDY, "messages": ask(), field: value}).json()["error"]
    assert error["param"] == field
    assert said in error["message"]


def test_a_whole_number_with_a_decimal_point_is_whole(post: Callable, ask: Callable) -> None:
    body = {"model": "tiny", "messages": ask(), "max_tokens": 3.0, "temperature": 0}
    assert post(body).json()["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize("change", [{"model": "é" * 100_000}, {"x" * 100_000: 1}])
def test_errors_repeat_little_of_what_a_client_wrote(post: Callable, ask: Callable, change: dict[str, Any]) -> None:
    assert len(post({"model": "tiny", "messages": ask(), **change}).content) < 2_000


def test_values_that_ask_for_nothing_are_accepted(post: Callable, ask: Callable) -> None:
    neutral = {"tools": None, "frequency_penalty": 0, "response_format": {"type": "text"}, "logit_bias": {}, "n": 1}
    earlier = {"role": "assistant", "content": "red", "refusal": None, "tool_calls": None}
    body = {**GREEDY, **neutral, "messages": [*ask(), earlier, *ask()]}
    assert post(body).status_code == 200


@pytest.mark.parametrize("field", [name for name, field in ChatRequest.model_fields.items() if not field.is_required()])
def test_null_is_as_if_a_field_were_left_out(post: Callable, ask: Callable, field: str) -> None:
    assert post({**GREEDY, "messages": ask(), field: None}).status_code == 200


def test_null_within_the_options_of_a_stream_asks_for_nothing(post: Callable, ask: Callable) -> None:
    response = post({**GREEDY, "messages": ask(), "stream": True, "stream_options": {"include_usage": None}})
    assert response.status_code == 200 and "usage" not in response.text


def test_a_conversation_that_begins_with_an_answer_is_answered(post: Callable, ask: Callable, picture_url: str) -> None:
    greeting = {"role": "assistant", "content": "please describe"}
    weights = []
    for opening in ([greeting], [greeting, greeting], []):
        body = {**GREEDY, "messages": [*opening, *ask(picture_url)], "alignment_weights": True}
        response = post(body)
        assert response.status_code == 200, response.text
        weights.append(response.json()["alignment_weights"])
    assert all(weights)


def test_a_conversation_beyond_the_context_is_refused(post: Callable, ask: Callable) -> None:
    asked = {**GREEDY, "messages": ask(text="red " * 600)}
    message = check_error(post(asked), 400, "messages", "context_length_exceeded")
    assert "512" in message
    check_error(
        post({**asked, "messages": ask(), "max_completion_tokens": 600}), 400, "messages", "context_length_exceeded"
    )


def test_without_a_limit_an_answer_ends_at_the_context_or_the_servers_limit(post: Callable, ask: Callable) -> None:
    asked = {"model": "tiny", "messages": ask(), "temperature": 2, "seed": 1}
    body = post(asked, options=Options(limits=Limits(answer_tokens=3))).json()
    assert body["usage"]["completion_tokens"] <= 3
    body = post(asked).json()
    assert body["usage"]["total_tokens"] <= 512


def test_another_model_is_not_found(post: Callable, ask: Callable) -> None:
    check_error(post({**GREEDY, "model": "gpt", "messages": ask()}), 404, "model", "model_not_found")
    check_error(post(None, path="/v1/models/gpt"), 404, "model", "model_not_found")
    assert post(None, path="/v1/models").json()["data"][0]["id"] == "tiny"


def test_messages_of_the_system_are_one_at_the_beginning(post: Callable, ask: Callable, engine: Any) -> None:
    def ids(*messages: dict[str, Any]) -> list[int]:
        body = ChatRequest(model="tiny", messages=[*messages, *ask()])
        return prepare(body, engine, Limits()).prompt.ids

    system, developer = {"role": "system", "content": "a big"}, {"role": "developer", "content": "red"}
    parts = {"role": "system", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "big"}]}
    together = ids({"role": "system", "content": "a big\n\nred"})
    assert ids(system, developer) == ids(parts, developer) == together
    for earlier in (ask(), [system, *ask()]):
        said = check_error(post({**GREEDY, "messages": [*earlier, developer]}), 400, f"messages[{len(earlier)}].role")
        assert "role developer can only stand at the beginning" in said


def test_neighbouring_messages_of_one_role_are_one(engine: Any, ask: Callable, picture_url: str) -> None:
    def ids(*messages: tuple[str, str], before: Any = ()) -> list[int]:
        said = [{"role": role, "content": text} for role, text in messages]
        return prepare(ChatRequest(model="tiny", messages=[*before, *said]), engine, Limits()).prompt.ids

    (shown,) = ask(picture_url)
    alone = {**shown, "content": shown["content"][:1]}
    asked = ("user", shown["content"][1]["text"])
    assert ids(asked, before=[alone]) == ids(before=[shown])
    assert ids(("user", "a circle"), asked) == ids(("user", "a circle\n" + asked[1]))
    answers = ids(asked, ("assistant", "red"), ("assistant", "big"), ("user", "and ?"))
    assert answers == ids(asked, ("assistant", "red\nbig"), ("user", "and ?"))
    # What chat front ends send.
    usual = ids(("system", "a big"), asked, ("assistant", "red"), ("user", "and ?"))
    assert engine.processor.tokenizer.decode(usual).count("<|im_start|>") == 5


def test_images_and_texts_are_written_as_in_training(engine: Any, ask: Callable, picture_url: str) -> None:
    image = ask(picture_url)[0]["content"][0]

    def written(*messages: list[str]) -> str:
        """The turn of the user; "<image>" is an image, any other text a part."""
        said = [
            {
                "role": "user",
                "content": [image if part == "<image>" else {"type": "text", "text": part} for part in parts],
            }
            for parts in messages
        ]
        ids = prepare(ChatRequest(model="tiny", messages=said), engine, Limits()).prompt.ids
        token = engine.processor.image_token
        text = re.sub(rf"(?:{re.escape(token)})+", "<image>", engine.processor.tokenizer.decode(ids))
        return text.partition("user\n")[2].partition("<|im_end|>")[0]

    for parts in (["<image>", "\n is it  red ?\n"], ["is it  red ?\n", "<image>"], [" is it ", " red ?", "<image>"]):
        assert written(parts) == "<image>\nis it  red ?"
    assert written(["is it ", "<image>", " red ?\n"]) == "is it <image> red ?"
    # Neighbours: each image is on a line of its own, as in a training record of several lines.
    assert written(["it is"], ["<image>", "red ?"]) == "it is\n<image>\nred ?"
    assert written(["<image>", "it is"], ["<image>", "red ?"]) == "<image>\nit is\n<image>\nred ?"
    assert written(["it is", "<image>"], ["red ?\n"]) == "<image>\nit is\nred ?"
    assert written(["<image>"], ["red ?"]) == written(["red ?"], ["<image>"]) == "<image>\nred ?"


def test_a_system_message_without_text_is_none(engine: Any, ask: Callable) -> None:
    def ids(*blank: Any) -> list[int]:
        opening = [{"role": "system", "content": content} for content in blank]
        return prepare(ChatRequest(model="tiny", messages=[*opening, *ask()]), engine, Limits()).prompt.ids

    assert ids("") == ids(" \n") == ids([{"type": "text", "text": ""}]) == ids()
    assert ids("a big", "") == ids("a big")


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_the_last_message_is_the_users(post: Callable, ask: Callable, role: str) -> None:
    begun = [*(ask() if role == "assistant" else []), {"role": role, "content": "it is"}]
    said = check_error(post({**GREEDY, "messages": begun}), 400, f"messages[{len(begun) - 1}].role")
    assert "end with one of the user" in said


def test_a_bad_image_names_its_place(post: Callable, ask: Callable) -> None:
    for url in ("data:image/png;base64,AAAA", "file:///etc/passwd", "/etc/passwd", "http://127.0.0.1/x.png"):
        response = post({**GREEDY, "messages": ask(url)})
        assert response.status_code in (400, 415)
        assert response.json()["error"]["param"] == "messages[0].content[0].image_url"
    many = [{"role": "user", "content": ask("data:,")[0]["content"][:1] * 17}]
    check_error(post({**GREEDY, "messages": many}), 413, "messages", "too_many_images")


def test_images_belong_to_users(post: Callable, ask: Callable, picture_url: str) -> None:
    messages = [{**ask(picture_url)[0], "role": "assistant"}, *ask()]
    check_error(post({**GREEDY, "messages": messages}), 400, "messages[0].content[0].image_url")


def test_a_body_that_is_too_large_or_no_json_is_refused_before_it_is_parsed(post: Callable) -> None:
    json_type = {"content-type": "application/json"}
    check_error(
        post(1, content=b"x" * 200, headers=json_type, options=Options(max_body=100)), 413, None, "body_too_large"
    )

    async def chunks() -> Any:
        for _ in range(20):
            yield b"x" * 10

    check_error(
        post(1, content=chunks(), headers=json_type, options=Options(max_body=100)), 413, None, "body_too_large"
    )
    check_error(post(1, content=b"{", headers=json_type), 400, None, "invalid_json")
    check_error(post(1, content=b"{}", headers={"content-type": "text/plain"}), 415)
    assert post(1, content=b"[" * 100_000, headers=json_type).status_code == 400


def test_a_key_is_needed_where_one_is_set(post: Callable, ask: Callable) -> None:
    body = {**GREEDY, "messages": ask()}
    check_error(post(body, key="k"), 401, None, "invalid_api_key")
    check_error(post(body, key="k", headers={"Authorization": "Bearer K"}), 401, None, "invalid_api_key")
    check_error(post(None, key="k", path="/metrics"), 401, None, "invalid_api_key")
    assert post(body, key="k", headers={"Authorization": "Bearer k"}).status_code == 200
    assert post(None, key="k", path="/health").json() == {"status": "ok"}


def test_without_a_key_a_web_page_cannot_reach_the_server_under_its_own_name(post: Callable, ask: Callable) -> None:
    body = {**GREEDY, "messages": ask()}
    check_error(post(body, base_url="http://evil.example:8000"), 403, None, "host_not_allowed")
    for own in ("localhost:8000", "127.0.0.1", "127.0.0.2:8000", "[::1]", "[::1]:8000"):
        assert post(body, headers={"host": own}).status_code == 200, own
    for other in ("", "127.0.0.1.evil.example", "[::1]evil.example", "[::1", "::1", "10.0.0.1", "127.0.0.1:80:80"):
        check_error(post(body, headers={"host": other}), 403, None, "host_not_allowed")


def test_a_fault_of_the_server_tells_the_client_nothing(
    post: Callable, ask: Callable, monkeypatch: pytest.MonkeyPatch, engine: Any
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(engine.loop.pictures, "look", fail)
    # Otherwise an earlier test's conversation is continued without looking.
    monkeypatch.setattr(engine.loop, "kept", KeptConversations())
    # Another question than before, of which nothing was kept.
    response = post(
        {**GREEDY, "messages": ask(text="how many green are there ?")}, options=Options(limits=Limits(keep=False))
    )
    assert "secret" not in check_error(response, 500)
    monkeypatch.undo()
    monkeypatch.setattr(engine.prompts, "write", fail)
    assert "secret" not in check_error(post({**GREEDY, "messages": ask()}), 500)


def test_metrics_count_what_happened(engine: Any, ask: Callable, run_server: Callable) -> None:
    import httpx

    with run_server(engine, Options(port=0)) as (address, _):
        for model in ("tiny", "other"):
            httpx.post(f"{address}/v1/chat/completions", json={**GREEDY, "model": model, "messages": ask()})
        text = httpx.get(f"{address}/metrics").text
    assert 'aligngpt_requests_total{outcome="200"} 1.0' in text
    assert 'aligngpt_requests_total{outcome="404"} 1.0' in text
    assert "aligngpt_running_answers 0.0" in text


def outcomes(server: Any) -> dict[str, float]:
    """How many requests ended how, so far."""
    (family,) = server.desk.metrics.requests.collect()
    return {one.labels["outcome"]: one.value for one in family.samples if one.name.endswith("_total")}


def test_metrics_count_what_never_reaches_the_model(
    engine: Any, ask: Callable, run_server: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    good = {**GREEDY, "messages": ask()}

    def fail(*_: Any) -> None:
        raise RuntimeError("a fault")

    with run_server(engine, Options(port=0, max_body=10_000)) as (address, server):

        def send(body: Any = good, **how: Any) -> int:
            return httpx.post(f"{address}/v1/chat/completions", **({"json": body} | how)).status_code

        assert send({**good, "temperature": 9}) == 400
        assert send({**good, "tools": [{}]}) == 400
        assert send(None, content=b"{") == 415
        assert send(headers={"host": "evil.example"}) == 403
        assert send({**good, "user": "x" * 20_000}) == 413
        with monkeypatch.context() as patch:
            patch.setattr(engine.prompts, "write", fail)
            assert send() == 500
        assert httpx.get(f"{address}/v1/models").status_code == 200
        with httpx.stream("POST", f"{address}/v1/chat/completions", json={**good, "stream": True}) as stream:
            stream.read()
        assert outcomes(server) == {"400": 2, "415": 1, "403": 1, "413": 1, "500": 1, "200": 1}


def test_a_stream_is_counted_by_how_it_ended(engine: Any, ask: Callable, run_server: Callable) -> None:
    import httpx

    engine.model.generation_config.eos_token_id, ends = None, engine.model.generation_config.eos_token_id
    long = {**GREEDY, "max_completion_tokens": 400, "messages": ask(), "stream": True}
    try:
        with run_server(engine, Options(port=0, seconds=0.3)) as (address, server):
            with httpx.stream("POST", f"{address}/v1/chat/completions", json=long) as stream:
                assert '"code":"timeout"' in stream.read().decode()
            assert outcomes(server) == {"504": 1}
        with run_server(engine, Options(port=0)) as (address, server):
            with httpx.stream("POST", f"{address}/v1/chat/completions", json=long) as stream:
                next(stream.iter_bytes())
            end = time.monotonic() + 20
            while not outcomes(server) and time.monotonic() < end:
                time.sleep(0.01)
            assert outcomes(server) == {"left": 1}
    finally:
        engine.model.generation_config.eos_token_id = ends
