"""Calls of tools and their results become turns of the assistant and of the user; no order is guessed."""

from collections.abc import Callable
from typing import Any

import pytest

from aligngpt.data.batches.examples import tokenize
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.sample import parse_record, to_record
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.templates import CHATML

CALL, RESULT = '{"name": "clock", "arguments": {"city": "Oslo"}}', '{"time": "12:30"}'


def turns(*said: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in said], **fields}


def read(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in parse_record(record).turns]


def reason_of(record: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(RecordError) as caught:
        parse_record(record)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("call", ["function_call", "tool_call"])
@pytest.mark.parametrize("result", ["observation", "tool", "tool_response", "function"])
def test_a_call_is_the_assistants_and_its_result_the_users(call: str, result: str) -> None:
    record = turns(("human", "<image>when?"), (call, CALL), (result, RESULT), ("gpt", "12:30."), image="a.jpg")
    sample = parse_record(record)
    assert read(record) == [("user", "when?"), ("assistant", CALL), ("user", RESULT), ("assistant", "12:30.")]
    assert sample.images == ("a.jpg",) and not sample.interleaved
    assert parse_record(to_record(sample)) == sample


def test_messages_have_a_result_after_any_turn_of_the_assistant() -> None:
    said = [("user", "when?"), ("assistant", f"<tool_call>{CALL}</tool_call>"), ("tool", RESULT), ("assistant", "12.")]
    record = {"messages": [{"role": role, "content": text} for role, text in said]}
    assert [role for role, _ in read(record)] == ["user", "assistant", "user", "assistant"]


def test_calls_and_results_of_several_tools_at_once_are_a_turn_each() -> None:
    record = turns(
        *(("human", "when?"), ("gpt", "let me see"), ("tool_call", "a"), ("tool_call", "b")),
        *(("tool", "1"), ("tool", "2"), ("gpt", "at one")),
    )
    joined = [("user", "when?"), ("assistant", "let me see\na\nb"), ("user", "1\n2"), ("assistant", "at one")]
    assert read(record) == joined


def test_an_image_may_be_what_a_tool_returns() -> None:
    record = turns(("human", "look"), ("function_call", CALL), ("observation", "<image>done"), ("gpt", "a cat"))
    sample = parse_record({**record, "image": "a.jpg"})
    assert sample.turns[2].text == "<image>\ndone" and sample.interleaved


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ((("tool", "1"), ("gpt", "b")), "turn 1 is a tool's result, which needs the assistant's turn before it"),
        ((("human", "a"), ("tool", "1"), ("gpt", "b")), "turn 2 is a tool's result"),
        ((("function_call", "a"), ("tool", "1"), ("gpt", "b")), "turn 1 calls a tool, which needs a question"),
        ((("system", "s"), ("tool_call", "a"), ("tool", "1"), ("gpt", "b")), "turn 2 calls a tool"),
        ((("human", "a"), ("function_call", "b"), ("gpt", "c")), "turn 3 is the assistant's, which needs the tool's"),
        (
            (("human", "a"), ("function_call", "b"), ("tool", "1"), ("human", "c"), ("gpt", "d")),
            "turn 4 is the user's, which needs the assistant's answer before it",
        ),
    ],
)
def test_an_impossible_order_is_refused(said: tuple[tuple[str, str], ...], found: str) -> None:
    reason, message = reason_of(turns(*said))
    assert reason == "tool_order" and message.startswith(found)


def test_a_joined_answer_counts_in_the_loss_as_a_whole() -> None:
    record = turns(("human", "when?"), ("gpt", "let me see"), ("tool_call", "a"), ("tool", "1"), ("gpt", "at one"))
    record["conversations"][1]["loss"] = False
    assert reason_of(record)[0] == "turn_loss"
    record["conversations"][2]["loss"] = False
    assert parse_record(record).context == (1,)


def test_a_call_in_a_field_of_its_own_is_refused_even_without_a_text() -> None:
    said = [{"role": "user", "content": "when?"}, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]
    reason, message = reason_of({"messages": said})
    assert reason == "unread_field" and "`tool_calls`" in message


@pytest.mark.parametrize(
    "said",
    [
        (("human", "a"), ("gpt", "b"), ("system", "c"), ("human", "d"), ("gpt", "e")),
        (("system", "a"), ("system", "b"), ("human", "c"), ("gpt", "d")),
        (("human", "a"), ("gpt", "b"), ("tool", "1"), ("system", "c"), ("gpt", "d")),
    ],
)
def test_a_later_system_turn_is_refused_by_name(said: tuple[tuple[str, str], ...]) -> None:
    reason, message = reason_of(turns(*said))
    assert reason == "late_system" and "only as the first turn" in message


def test_calls_are_learned_and_results_are_not(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    record = turns(("human", "what is red ?"), ("function_call", "the cat"), ("tool", "a dog"), ("gpt", "it is red"))
    ids, labels = tokenize(parse_record(record).messages(), processor, chat_template=CHATML)
    whole = processor.tokenizer.decode(ids)
    learned = processor.tokenizer.decode([one for one in labels if one != IGNORE_INDEX])
    assert "a dog" in whole and "dog" not in learned
    assert "the cat" in learned and "it is red" in learned
