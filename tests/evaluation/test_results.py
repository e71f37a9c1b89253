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
    drop_incomplete,
    read_predictions,
    summarise,
    wrong_answers,
)
from aligngpt.reports.statistics import wilson_interval


def prediction(
    record: int,
    *,
    correct: bool = True,
    kind: str | None = None,
    weights: tuple | None = None,
    picture: str | None = None,
) -> Prediction:
    return Prediction(
        id=f"q{record}",
        record=record,
        kind=kind,
        question="what colour is it ?",
        expected="red",
        answer="red" if correct else "été",
        correct=correct,
        image=f"{record}.png" if picture is None else picture,
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
    assert summarise(without_kind).gate_counts == {"all": 3}


def test_questions_without_a_kind_are_not_all_of_them(tmp_path: Path) -> None:
    some = [*MIXED, prediction(4, weights=(1.0, 0.0)), prediction(5, kind="all", weights=(0.75, 0.25))]
    result = summarise([*some, prediction(6, kind="colour")])
    assert result.gate_weights.pop("(without one)") == [1.0, 0.0] and result.gate_weights["all"] == [0.75, 0.25]
    assert result.gate_counts == {"all": 1, "colour": 2, "shape": 1, "(without one)": 1}
    assert result.by_kind == {"all": Tally(1, 1), "colour": Tally(2, 3), "shape": Tally(1, 1)}
    result.save(tmp_path / "results.json")
    assert EvaluationResult.load(tmp_path / "results.json").gate_counts == result.gate_counts


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


def grouped(pictures: int, each: int) -> list[Prediction]:
    """Half of the pictures have only right answers, the other half only wrong ones."""
    return [
        prediction(number, correct=number // each % 2 == 0, picture=f"{number // each}.png")
        for number in range(pictures * each)
    ]


def test_questions_about_one_picture_count_less(tmp_path: Path) -> None:
    result = summarise(grouped(40, 10))
    low, high = result.overall.interval
    apart = wilson_interval(200, 400)
    assert result.overall == Tally(200, 400) and result.overall.pictures == 40
    assert high - low > 2.5 * (apart[1] - apart[0])
    assert f"95 % interval, by picture, {low:.1%}–{high:.1%}" in result.table()
    result.save(tmp_path / "results.json")
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["overall"]
    assert (facts["low"], facts["high"], facts["pictures"]) == (low, high, 40)
    assert "by picture" in facts["interval"] and facts["effective_total"] < 45
    assert EvaluationResult.load(tmp_path / "results.json").overall.interval == (low, high)


def test_right_answers_only_are_as_sure_as_the_pictures_are_many() -> None:
    of_one, of_many = (summarise([replace(one, correct=True) for one in grouped(*size)]) for size in ((2, 50), (50, 2)))
    assert of_one.overall.interval == pytest.approx(wilson_interval(2, 2))
    assert of_many.overall.interval == pytest.approx(wilson_interval(50, 50))


def test_questions_without_pictures_are_independent() -> None:
    alone = [replace(one, image=None) for one in grouped(4, 10)]
    assert summarise(alone).overall.interval == wilson_interval(20, 40)


def test_results_of_an_older_version_have_the_plain_interval(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    tally = {"accuracy": 0.75, "correct": 3, "total": 4, "low": 0.3, "high": 0.95}
    old = {"overall": tally, "by_kind": {"colour": tally}, "gate_weights": {}, "seconds": 1.0, "rejects": 0}
    path.write_text(json.dumps(old), encoding="utf-8")
    result = EvaluationResult.load(path)
    assert result.overall.interval == wilson_interval(3, 4)
    assert result.asked is None and "by picture" not in result.table()


def test_wrong_answers_are_shown_on_one_line_each() -> None:
    wrong = [replace(prediction(9 - n, correct=False), question=f"line\n{n} \x1b[2J?") for n in range(5)]
    head, *lines = wrong_answers([*wrong, prediction(20), replace(prediction(0, correct=False), answer=" ")]).split(
        "\n"
    )
    assert head == "6 wrong, the first 3:"
    assert lines[0] == "  what colour is it ?  expected “red”, given nothing"
    assert lines[1:] == [f"  line {n} \ufffd[2J?  expected “red”, given “été”" for n in (4, 3)]
    assert wrong_answers([prediction(0)]) == ""
    assert "x…" in wrong_answers([replace(prediction(0, correct=False), answer="x" * 500)])


def test_the_table_ends_with_what_was_passed_over() -> None:
    table = summarise(MIXED, rejects={"truncated": 1, "missing": 3}).table()
    assert table.splitlines()[-1] == "4 records skipped: 3 missing image, 1 truncated image; rejects.jsonl lists them"


def test_results_of_an_older_version_have_only_the_count_of_what_was_passed_over(tmp_path: Path) -> None:
    summarise(MIXED, rejects={"missing": 2}).save(tmp_path / "results.json")
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert facts.pop("rejects_by_reason") == {"missing": 2}
    (tmp_path / "results.json").write_text(json.dumps(facts), encoding="utf-8")
    table = EvaluationResult.load(tmp_path / "results.json").table()
    assert table.splitlines()[-1] == "2 records skipped; rejects.jsonl lists them"


def test_results_are_read_as_they_were_saved(tmp_path: Path) -> None:
    result = summarise(MIXED, seconds=2.5, rejects={"missing": 1})
    result.save(tmp_path / "new" / "results.json")
    assert EvaluationResult.load(tmp_path / "new" / "results.json") == result
    facts = json.loads((tmp_path / "new" / "results.json").read_text(encoding="utf-8"))
    assert facts["overall"] == result.overall.facts()
    assert (facts["overall"]["pictures"], facts["overall"]["interval"]) == (4, "Wilson")
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
        assert path.read_bytes() == content[:end], "reading changes nothing: another process may be writing"
        drop_incomplete(path)
        assert path.read_bytes() == content[:start]
    path.write_bytes(content[:-1])  # only the final newline is missing
    assert list(read_predictions(path)) == [0, 1, 2, 3]
    drop_incomplete(path)
    assert path.read_bytes() == content
    drop_incomplete(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("damage", ["\0\0\0", "7", "null", "[]", '"text"', "{}", '{"record": 1}', "\udcff"])
def test_a_damaged_line_costs_only_itself(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "predictions.jsonl"
    lines = write(path, MIXED).splitlines(keepends=True)
    lines[1] = damage.encode(errors="surrogateescape") + b"\n"
    path.write_bytes(b"".join(lines))
    assert list(read_predictions(path)) == [0, 2, 3]
    drop_incomplete(path)
    assert path.read_bytes() == b"".join([lines[0], *lines[2:]])


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x1c", "\r", "\n"])
def test_line_ends_inside_a_text_are_part_of_it(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "predictions.jsonl"
    odd = replace(MIXED[0], question=f"what{mark}colour")
    content = write(path, [odd, MIXED[1]])
    assert read_predictions(path) == {0: odd, 1: MIXED[1]}
    drop_incomplete(path)
    assert path.read_bytes() == content
