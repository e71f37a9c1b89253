"""Results are checked before they are analysed: what is wrong is an error that names the run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulated_study as simulated

from aligngpt.study.analysis.loading import Condition, check_rows, load_results
from aligngpt.study.analysis.questions import ProbeCaptions, Questions, Split
from aligngpt.study.pairs import StudyError
from aligngpt.study.results import merge_files

ABOUT = simulated.questions(number=12, captions=6)


def small(**changes: Any) -> list[dict[str, Any]]:
    found = simulated.rows(ABOUT, simulated.Truth(), noises=(0.6,), seeds=2, **changes)
    return found


def test_questions_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = ABOUT.save(tmp_path)
    assert path == tmp_path / "questions.json"
    assert Questions.load(tmp_path) == ABOUT
    assert list(Questions.load(tmp_path).splits) == ["test", "shift"] and ABOUT.first == "test"
    # Beside a file of results, too.
    assert Questions.load(tmp_path / "results.parquet") == ABOUT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[]", "dict"),
        ('{"splits": {}}', "at least one test"),
        ('{"splits": {"t": {"kind": ["a"], "scope": ["whole"], "image": []}}}', r"splits\.t.*1, 1 and 0"),
    ],
)
def test_a_broken_questions_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "questions.json").write_text(content)
    with pytest.raises(StudyError, match=message) as error:
        Questions.load(tmp_path)
    assert str(tmp_path / "questions.json") in str(error.value)


def test_a_missing_questions_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"questions\.json cannot be read"):
        Questions.load(tmp_path)


def test_scores_must_be_of_all_probe_captions() -> None:
    with pytest.raises(ValueError, match="2 scores of right"):
        ProbeCaptions(("a", "b"), (0.1, 0.2), (0.1,))
    with pytest.raises(ValueError, match="one entry per question"):
        Split((), (), ())


def test_a_folder_and_a_merged_file_give_the_same(tmp_path: Path) -> None:
    folder = simulated.write(tmp_path / "results", ABOUT, small())
    (tmp_path / "merged").mkdir()
    merged = tmp_path / "merged" / "study.parquet"
    merge_files(sorted(folder.glob("*.parquet")), merged, {})
    ABOUT.save(merged)
    one, other = load_results(folder), load_results(merged)
    assert one.runs.keys() == other.runs.keys() and one.pretrainings.keys() == other.pretrainings.keys()
    condition = Condition("adaptive", 0.6, simulated.LEVELS)
    first, second = one.runs[condition][1], other.runs[condition][1]
    np.testing.assert_array_equal(first.answers["test"].log_probability, second.answers["test"].log_probability)
    scored = Condition("levels-scores", 0.6, simulated.LEVELS)
    table = one.pretrainings[scored][0].right
    assert table is not None and table.shape == (simulated.LEVELS, 6)
    np.testing.assert_array_equal(table, other.pretrainings[scored][0].right)


def test_usual_levels_and_shares() -> None:
    found = check_rows(small(), ABOUT)
    assert found.noises == [0.6] and found.levels == simulated.LEVELS and found.answers is None
    assert found.condition("none", 0.6) == Condition("none", 0.6, 2)
    assert found.pretraining("adaptive", 0.6) == Condition("levels-scores", 0.6, simulated.LEVELS)


@pytest.mark.parametrize("first", [None, 500])
def test_all_answers_are_more_than_any_number(first: int | None) -> None:
    many = [row for row in small() if "captions_right" not in row]
    other = 500 if first is None else None
    both = [row | {"answers": answers} for answers in (first, other) for row in many]
    assert check_rows(both, ABOUT).answers is None
    fewer = [row | {"answers": 200} for row in many] + [row | {"answers": 500} for row in many]
    assert check_rows(fewer, ABOUT).answers == 500


def run_row(many: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in many if row["arm"] == "adaptive")


def pretraining_row(many: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in many if row["arm"] == "levels-scores")


@pytest.mark.parametrize("column", ["test_log_probability", "test_confidence", "shift_log_probability"])
def test_a_value_that_is_not_a_number_names_the_run(column: str) -> None:
    many = small()
    row = run_row(many)
    row[column] = np.where(np.arange(len(row[column])) == 3, np.nan, row[column])
    with pytest.raises(StudyError, match=f"run {row['run']}: {column} has a value that is missing or not finite"):
        check_rows(many, ABOUT)


def test_a_caption_that_is_not_a_number_names_the_pretraining() -> None:
    many = small()
    pretraining_row(many)["captions_wrong"][1, 2] = -np.inf
    with pytest.raises(
        StudyError, match="levels-scores-noise60-levels4-seed0: captions_wrong has a value that is missing"
    ):
        check_rows(many, ABOUT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_right": None}, "has no test_right"),
        ({"test_right": np.ones(11, dtype=bool)}, "11 values; expected 12"),
        ({"test_right": np.array([None] * 12)}, "missing or not finite"),
        ({"test_right": ["yes"] * 12}, "missing or not finite"),
        ({"test_log_probability": np.full(12, 0.5)}, "probability above 1"),
        ({"test_confidence": np.full(12, 1.5)}, r"must be in 0…1"),
        ({"seed": None}, "seed is missing"),
        ({"seed": 1}, "twice"),
        ({"arm": "magic"}, "no arm magic"),
        ({"gate_by_kind": "{"}, "not JSON"),
        ({"gate_by_kind": '{"a": [0.5, 0.5], "b": [1]}'}, "different lengths"),
        ({"gate_by_kind": '{"a": [NaN, 0.5]}'}, "not finite"),
    ],
)
def test_a_run_that_cannot_be_used_is_an_error_that_names_it(change: dict[str, Any], message: str) -> None:
    many = small()
    row = run_row(many)
    row |= change
    with pytest.raises(StudyError, match=message) as error:
        check_rows(many, ABOUT)
    assert "adaptive-noise60" in str(error.value)


def test_probe_captions_of_another_number_are_an_error() -> None:
    many = small()
    pretraining_row(many)["captions_right"] = np.zeros(7, dtype=np.float16)
    with pytest.raises(StudyError, match="7 values; expected 6 captions at 1 or 4 levels"):
        check_rows(many, ABOUT)


def test_results_of_another_study_are_an_error() -> None:
    about = Questions({"other": ABOUT.splits["test"]}, ABOUT.probe)
    with pytest.raises(StudyError, match="no answers to the tests other"):
        check_rows(small(), about)


def test_pretrainings_alone_are_an_error() -> None:
    with pytest.raises(StudyError, match="only pre-trainings"):
        check_rows([pretraining_row(small())], ABOUT)
