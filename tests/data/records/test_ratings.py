"""Answers that are read but not learned from: those rated too low, and those marked in their turn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import ConversationDataset
from aligngpt.data.batches.examples import tokenize
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.ratings import without_low_ratings
from aligngpt.data.records.sample import parse_record, to_record
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.preparing import prepare_samples
from aligngpt.model.modeling import IGNORE_INDEX

TEXTS = [{"user": "is it red ?", "assistant": "yes"}, {"user": "how many ?", "assistant": "two"}]


def finevision(**ratings: Any) -> dict[str, Any]:
    return {"images": ["a.png"], "texts": TEXTS} | {f"{name}_ratings": values for name, values in ratings.items()}


def context_of(record: dict[str, Any], **lowest: float) -> tuple[int, ...]:
    return without_low_ratings(parse_record(record), record, lowest).context


@pytest.fixture
def image_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    return tmp_path


def test_answers_rated_too_low_are_context() -> None:
    record = finevision(relevance=[2, 5], visual=[5, None])
    assert context_of(record, relevance=2) == ()
    assert context_of(record, relevance=3) == (1,)
    assert context_of(record, visual=1) == (3,)


@pytest.mark.parametrize(
    ("ratings", "reason"),
    [
        ({}, "no_rating"),
        ({"relevance": [2]}, "rating"),
        ({"relevance": 2}, "rating"),
        ({"relevance": [2, "5"]}, "rating"),
        ({"relevance": [2, None]}, "low_rating"),
    ],
)
def test_ratings_that_cannot_be_used_are_refused(ratings: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=r"min_ratings|relevance_ratings") as caught:
        context_of(finevision(**ratings), relevance=3)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["data.json", "data.parquet"])
def test_the_ratings_of_a_source_are_applied_when_it_is_prepared(image_root: Path, name: str) -> None:
    records = [finevision(relevance=[2, 5]), finevision(relevance=[1, 1]), finevision(relevance=[4, 4])]
    path = image_root / name
    if name.endswith("json"):
        path.write_text(json.dumps(records))
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    rejects = Rejects(None, max_share=1)
    found = prepare_samples(path, image_root=image_root, rejects=rejects, min_ratings={"relevance": 3})
    assert [sample.context for sample in found] == [(1,), ()]
    assert rejects.by_reason == {"low_rating": 1}
    every = prepare_samples(path, image_root=image_root, rejects=Rejects(None))
    assert [sample.context for sample in every] == [(), (), ()]


@pytest.mark.parametrize("mark", [{"loss": False}, {"weight": 0}, {"train": False}])
def test_an_answer_may_be_marked_as_context(mark: dict[str, Any]) -> None:
    turns = [("user", "A?", {}), ("assistant", "a", mark), ("user", "B?", {}), ("assistant", "b", {"loss": True})]
    record = {"messages": [{"role": role, "content": text} | more for role, text, more in turns]}
    sample = parse_record(record)
    assert sample.context == (1,)
    assert parse_record(json.loads(json.dumps(to_record(sample)))) == sample
    for wrong, reason in (({"loss": "no"}, "turn_loss"), (mark, "no_loss")):
        with pytest.raises(RecordError) as caught:
            parse_record({"messages": [*record["messages"][:3], {"role": "assistant", "content": "b"} | wrong]})
        assert caught.value.reason == reason


def test_context_does_not_count_in_the_loss_and_keeps_its_token_ids(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    record = finevision(relevance=[2, 5])
    sample = parse_record(record)
    all_ids, all_labels = tokenize(sample.messages(), processor)
    low = without_low_ratings(sample, record, {"relevance": 3})
    input_ids, labels = tokenize(low.messages(), processor)
    assert input_ids == all_ids
    counted = [label for label in labels if label != IGNORE_INDEX]
    assert processor.tokenizer.decode(counted) == "two<|im_end|>"
    assert set(labels) <= {IGNORE_INDEX, *all_labels}


@pytest.mark.parametrize("packed", [False, True])
def test_the_gate_reads_the_first_question_alone_if_its_answer_is_context(
    assembled: Callable, image_root: Path, packed: bool
) -> None:
    _, processor = assembled("qwen2")
    record = finevision(relevance=[2, 5])
    sample = parse_record(record)
    rows = [
        ConversationDataset([one], processor, image_root)[0]
        for one in (sample, without_low_ratings(sample, record, {"relevance": 3}))
    ]
    (whole,) = rows[0]
    first = next(place for place, label in enumerate(whole.labels) if label != IGNORE_INDEX)
    mask = Collator(0, packed=packed)([rows[1]])["instruction_mask"][0]
    assert torch.equal(mask, (torch.arange(len(mask)) < first).long())


def test_ratings_that_are_not_needed_leave_records_without_them_as_they_are(tmp_path: Path) -> None:
    texts = [{"user": "a", "assistant": "b"}, {"user": "c", "assistant": "d"}]
    records = [{"texts": texts, "relevance_ratings": [1, 5]}, {"texts": texts}]
    path = tmp_path / "rated.json"
    path.write_text(json.dumps(records))
    lowest = {"relevance": 3}
    found = prepare_samples(path, rejects=Rejects(None), min_ratings=lowest, ratings_needed=False)
    assert [sample.context for sample in found] == [(1,), ()]
    rejects = Rejects(None, max_share=0.6)
    found = prepare_samples(path, rejects=rejects, min_ratings=lowest)
    assert [sample.context for sample in found] == [(1,)] and rejects.by_reason == {"no_rating": 1}
