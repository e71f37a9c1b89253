"""Tests of evaluation results: counts with intervals, and files that survive an interruption."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from aligngpt.evaluation.results import (
    EvaluationError,
    EvaluationResult,
    Prediction,
    Tally,
    read_predictions,
    summarise,
)
from aligngpt.reports.statistics import wilson_interval


def prediction(
    record: int, *, correct: bool = True, kind: str | None = None, weights: tuple | None = None
) -> Prediction:
    return Prediction(
        id=f"q{record}",
        record=record,
        kind=kind,
        question="what colour is it ?",
        expected="red",
        answer="red" if correct else "été",
        correct=correct,
        image="1.png",
        image_shown="2.png",
        alignment_weights=weights,
    )


MIXED = [
    prediction(0, kind="colour", weights=(0.5, 0.5)),
    prediction(1, kind="colour", correct=False, weights=(0.25, 0.75)),
    prediction(2, kind="shape", weights=(0.0, 1.0)),
    prediction(3, correct=False),
]


def write(path: Path, predictions: list[Prediction]) -> bytes:
    content = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in predictions).encode()
    path.write_bytes(content)
    return content


def test_answers_are_counted_over_all_and_by_kind() -> None:
    result = summarise(MIXED, seconds=2.5, rejects={"missing": 1})
    assert result.overall == Tally(2, 4)
    assert result.by_kind == {"colour": Tally(1, 2), "shape": Tally(1, 1)}
    assert (result.seconds, result.rejects) == (2.5, 1)
    assert summarise([replace(one, kind=None) for one in MIXED]).by_kind == {}


def test_the_gate_is_averaged_by_kind_where_it_ran() -> None:
    assert summarise(MIXED).gate_weights == {"colour": [0.375, 0.625], "shape": [0.0, 1.0]}
    without_kind = [replace(one, kind=None) for one in MIXED]
    assert summarise(without_kind).gate_weights == {"all": [0.25, 0.75]}


def test_an_accuracy_comes_with_its_interval() -> None:
    facts = Tally(3, 4).facts()
    assert facts["accuracy"] == 0.75
    assert (facts["low"], facts["high"]) == wilson_interval(3, 4)
    assert math.isnan(Tally(0, 0).accuracy)
    assert (Tally(0, 0).facts()["low"], Tally(0, 0).facts()["high"]) == (0.0, 1.0)


def test_the_table_names_each_kind_with_its_counts() -> None:
    low, high = wilson_interval(1, 2)
    first, second, last = summarise(MIXED).table().splitlines()
    assert first == f"colour          50.0%  (1/2, 95 % interval {low:.1%}–{high:.1%})"
    assert second.startswith("shape          100.0%  (1/1, ")
    assert last.startswith("all questions   50.0%  (2/4, ")


def test_the_table_ends_with_what_was_passed_over() -> None:
    table = summarise(MIXED, rejects={"truncated": 1, "missing": 3}).table()
    assert table.splitlines()[-1] == "4 skipped: 3 missing, 1 truncated; rejects.jsonl lists them"


def test_results_of_an_older_version_have_only_the_count_of_what_was_passed_over(tmp_path: Path) -> None:
    summarise(MIXED, rejects={"missing": 2}).save(tmp_path / "results.json")
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert facts.pop("rejects_by_reason") == {"missing": 2}
    (tmp_path / "results.json").write_text(json.dumps(facts), encoding="utf-8")
    table = EvaluationResult.load(tmp_path / "results.json").table()
    assert table.splitlines()[-1] == "2 skipped; rejects.jsonl lists them"


def test_results_are_read_as_they_were_saved(tmp_path: Path) -> None:
    result = summarise(MIXED, seconds=2.5, rejects={"missing": 1})
    result.save(tmp_path / "new" / "results.json")
    assert EvaluationResult.load(tmp_path / "new" / "results.json") == result
    facts = json.loads((tmp_path / "new" / "results.json").read_text(encoding="utf-8"))
    assert facts["overall"] == Tally(2, 4).facts()
    assert facts["by_kind"]["shape"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "{}", '{"overall": 1}', '{"overall": {"correct": 1, "total": 2}, "by_kind": []}', "\0\0"],
)
def test_damaged_results_say_which_file_and_what_to_do(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"results.json cannot be read: .*; evaluate again"):
        EvaluationResult.load(path)


def test_missing_results_say_so(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"results.json cannot be read: .*No such file"):
        EvaluationResult.load(tmp_path / "results.json")


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    content = write(path, MIXED)
    assert read_predictions(path) == {one.record: one for one in MIXED}
    assert path.read_bytes() == content
    assert read_predictions(tmp_path / "none.jsonl") == {}


def test_a_line_cut_anywhere_is_dropped_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    content = write(path, MIXED)
    start = len(b"".join(content.splitlines(keepends=True)[:-1]))
    for end in range(start, len(content) - 1):
        path.write_bytes(content[:end])
        assert list(read_predictions(path)) == [0, 1, 2]
        assert path.read_bytes() == content[:start]
    path.write_bytes(content[:-1])  # only the final newline is missing
    assert list(read_predictions(path)) == [0, 1, 2, 3]
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", ["\0\0\0", "7", "null", "[]", '"text"', "{}", '{"record": 1}', "\udcff"])
def test_a_damaged_line_costs_only_itself(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "predictions.jsonl"
    lines = write(path, MIXED).splitlines(keepends=True)
    lines[1] = damage.encode(errors="surrogateescape") + b"\n"
    path.write_bytes(b"".join(lines))
    assert list(read_predictions(path)) == [0, 2, 3]
    assert path.read_bytes() == b"".join([lines[0], *lines[2:]])


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x1c", "\r", "\n"])
def test_line_ends_inside_a_text_are_part_of_it(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "predictions.jsonl"
    odd = replace(MIXED[0], question=f"what{mark}colour")
    content = write(path, [odd, MIXED[1]])
    assert read_predictions(path) == {0: odd, 1: MIXED[1]}
    assert path.read_bytes() == content
