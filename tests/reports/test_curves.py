"""The curves of a run, and those of a reference run behind them."""

import json
from pathlib import Path

import pytest

from aligngpt.reports.curves import CurveError, accuracy_curve_of, logged, loss_curve_of, read_reference
from aligngpt.reports.report import ReportData, build_report
from aligngpt.training.recipe import recipe_path

LINES = [
    {"step": 10, "seconds": 30.0, "loss": 4.0},
    {"step": 12, "seconds": 60.0, "validation_accuracy": 0.25},
    {"step": 20, "seconds": 90.0, "loss": 2.0},
    {"step": 20, "seconds": 120.0, "validation_accuracy": 0.75},
    {"train_runtime": 90.0},
]


def write_lines(path: Path, lines: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_a_run_and_a_file_of_its_curves_are_the_same_reference(tmp_path: Path) -> None:
    write_lines(tmp_path / "other" / "instruct" / "metrics.jsonl", LINES)
    write_lines(tmp_path / "c.jsonl", [{"about": "somebody's"}, *({"stage": "instruct", **line} for line in LINES)])
    run, file = read_reference(tmp_path / "other"), read_reference(tmp_path / "c.jsonl")
    assert run.stages.keys() == {"instruct"}
    assert (run.about, file.about) == ("the run other", "somebody's")
    for reference in (run, file):
        curve = loss_curve_of("instruct", "stage", LINES[:1], reference)
        assert (curve.steps, curve.losses) == ([10], [4.0])
        assert curve.reference is not None
        assert (curve.reference.places, curve.reference.values) == ([10, 20], [4.0, 2.0])
        growth = accuracy_curve_of("instruct", "questions", LINES, reference)
        assert growth is not None and growth.reference is not None
        assert (growth.reference.places, growth.reference.values) == ([1, 2], [0.25, 0.75])
    assert loss_curve_of("pretrain", "stage", LINES, run).reference is None
    assert accuracy_curve_of("instruct", "questions", LINES[:1], run) is None


def test_the_page_says_whose_the_dashed_curve_is(tmp_path: Path) -> None:
    write_lines(tmp_path / "instruct" / "metrics.jsonl", LINES)
    reference = read_reference(tmp_path)
    curves = [loss_curve_of("instruct", "stage", LINES[:1], reference), loss_curve_of("instruct", "alone", LINES)]
    growth = accuracy_curve_of("instruct", "questions", LINES, reference)
    report = ReportData(curves=curves, growth=growth)
    build_report(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count(f"Dashed: the reference, the run {tmp_path.name}.") == 2
    assert "Training loss of stage. It goes from 4.00 to 4.00. The reference goes from 4.00 to 2.00." in page
    assert page.count("The reference goes") == 1 and "Training loss of alone. It goes from 4.00 to 2.00." in page
    assert "The reference: from 25% to 75%." in page


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"step": 1, "loss": 2.0}], "c.jsonl has no training log; give a run folder"),
        ([3, "text", {"stage": "pretrain", "seconds": 9}], "has no training log"),
        ([{"stage": "pretrain", "loss": 2.0}], "a line of pretrain has no numeric field step"),
        ([{"stage": "instruct", "seconds": 1, "validation_accuracy": "high"}], "no numeric field validation_accuracy"),
    ],
)
def test_what_is_no_reference_says_so(tmp_path: Path, lines: list, message: str) -> None:
    write_lines(tmp_path / "c.jsonl", lines)
    with pytest.raises(CurveError, match=message):
        read_reference(tmp_path / "c.jsonl")


def test_a_missing_reference_is_named(tmp_path: Path) -> None:
    with pytest.raises(CurveError, match=r"gone\.jsonl cannot be read"):
        read_reference(tmp_path / "gone.jsonl")
    with pytest.raises(CurveError, match="has no training log"):
        read_reference(tmp_path)


def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, LINES)
    path.write_text(path.read_text(encoding="utf-8") + '{"step": 30, "lo', encoding="utf-8")
    assert logged(path) == LINES


@pytest.mark.parametrize("path", sorted(recipe_path("quickstart").parent.glob("curves/*")), ids=lambda path: path.name)
def test_packaged_curves_are_of_packaged_recipes(path: Path) -> None:
    assert path.suffix == ".jsonl" and recipe_path(path.stem).is_file()
    reference = read_reference(path)
    assert reference.stages.keys() <= {"pretrain", "instruct"}
    assert all(reference.losses(stage) for stage in reference.stages)
