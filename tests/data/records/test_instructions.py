"""Records with an instruction and its output: Alpaca, ms-swift and TRL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligngpt.data.batches.examples import tokenize
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.fields import fields_not_read
from aligngpt.data.records.sample import parse_record
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.preparing import prepare_samples

ALPACA = {"instruction": "is it", "input": "red ?", "output": "yes"}
SWIFT = {"query": "is it red ?", "response": "yes"}
TRL = {"prompt": "is it red ?", "completion": "yes"}
TRL_TURNS = {
    "prompt": [{"role": "user", "content": "is it red ?"}],
    "completion": [{"role": "assistant", "content": "yes"}],
}


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        (ALPACA, ["is it\nred ?", "yes"]),
        (ALPACA | {"input": "", "history": "[]"}, ["is it", "yes"]),
        (ALPACA | {"history": [["is it ?", "no"]]}, ["is it ?", "no", "is it\nred ?", "yes"]),
        (SWIFT | {"history": [["is it ?", "no"]]}, ["is it ?", "no", "is it red ?", "yes"]),
        (TRL, ["is it red ?", "yes"]),
        (TRL_TURNS, ["is it red ?", "yes"]),
    ],
)
def test_an_instruction_and_its_output_are_read(assembled: Callable, record: dict[str, Any], texts: list[str]) -> None:
    shown = {"images": ["a.png"], "system": "a circle"}
    sample = parse_record(record | shown)
    assert ([turn.text for turn in sample.turns], sample.images, sample.system) == (texts, ("a.png",), "a circle")
    assert fields_not_read(record | shown | {"source": "x"}) == ["source"]
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    _, processor = assembled("qwen2")
    written_out = parse_record({"messages": turns} | shown)
    assert tokenize(sample.messages(), processor) == tokenize(written_out.messages(), processor)


@pytest.mark.parametrize(
    ("record", "reason", "named"),
    [
        (ALPACA | {"output": ""}, "unanswered", "`output` is empty"),
        (ALPACA | {"output": ["yes"]}, "no_conversation", "`output` must be a string"),
        (ALPACA | {"history": [["is it ?"]]}, "no_conversation", "`history` must be a list of pairs of texts"),
        (ALPACA | {"history": "no"}, "no_conversation", "`history` must be a list of pairs of texts"),
        (ALPACA | {"answer": "no"}, "two_conversations", "`answer` beside `instruction` and `output`"),
        (ALPACA | SWIFT, "two_conversations", "`instruction` and `query`"),
        (TRL | {"label": False}, "preference_data", "`completion` is good or bad"),
        (TRL | {"input": "more"}, "unread_field", "`input` is not read"),
        ({"prompt": "is it ?", "chosen": "yes", "rejected": "no"}, "preference_data", "`chosen`"),
        (SWIFT | {"rejected_response": "no"}, "preference_data", "`rejected_response`"),
        (TRL | {"prompt": [{"role": "user", "content": "is it ?"}]}, "no_conversation", "`prompt` must be a string"),
    ],
)
def test_what_an_instruction_cannot_say_is_refused(record: dict[str, Any], reason: str, named: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record(record)
    assert caught.value.reason == reason
    assert named in str(caught.value)


def test_a_table_with_the_columns_of_an_instruction_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    rows = [ALPACA | {"history": [["is it ?", "no"]]}, ALPACA | {"input": None, "history": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    samples = prepare_samples(tmp_path / "data.parquet", rejects=Rejects(None))
    assert [[turn.text for turn in sample.turns] for sample in samples] == [
        ["is it ?", "no", "is it\nred ?", "yes"],
        ["is it", "yes"],
    ]
