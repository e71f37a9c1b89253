"""Tests of a quickstart run's outcome: differences on the same questions, and levels that keep their places."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aligngpt.alignment.levels import fit_levels
from aligngpt.evaluation.results import AskedAbout, EvaluationResult, Prediction, Tally, summarise
from aligngpt.quickstart.outcome import NotLearntError, check_learnt, key_figures, print_outcome, wrong_shares
from aligngpt.reports.separation import separation

QUESTIONS, EACH = 400, 10


def answered(record: int, *, correct: bool) -> Prediction:
    picture = f"images/test/{record // EACH}.png"
    return Prediction(
        str(record), record, None, "what ?", "red", "red" if correct else "blue", correct, picture, picture, None
    )


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """A run that answers the questions of the first `right` pictures, and baselines that answer fewer of them."""
    run = tmp_path / "[v2]"

    def make(right: int, *, shuffled: int, prior: int) -> Path:
        for name, pictures, count in (("test", right, QUESTIONS), ("shuffled", shuffled, QUESTIONS // 2)):
            answers = [answered(record, correct=record // EACH < pictures) for record in range(count)]
            evaluation = run / "evaluation" / name
            asked = AskedAbout("model", "questions", str(run), name == "shuffled")
            summarise(answers, asked=asked).save(evaluation / "results.json")
            (evaluation / "predictions.jsonl").write_text("".join(json.dumps(one.__dict__) + "\n" for one in answers))
        known = list(range(prior * EACH))
        pictures_of_all = [record // EACH for record in range(QUESTIONS)]
        tally = Tally.of_answers([record in known for record in range(QUESTIONS)], pictures_of_all)
        facts = tally.facts() | {"note": "prior", "right": known}
        (run / "baselines.json").write_text(json.dumps({"Text only": facts}))
        found = separation([1, 0, 0.5, 0.2], [True, False] * 2, ["a", "a", "b", "b"])
        (run / "separation.json").write_text(json.dumps(found.facts() | {"pairs": 4}))
        captions = [
            {"similarity": 0, "caption_quality": "wrong", "image": "0.png"},
            {"similarity": 2, "caption_quality": "right", "image": "1.png"},
        ]
        (run / "captions.json").write_text(json.dumps(captions))
        fit_levels([0.1, 0.2, 0.3], 3).save(run / "scores" / "levels.json")
        return run

    return make


def test_a_clear_lead_in_many_pictures_is_learning(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(36, shuffled=10, prior=12)
    check_learnt(folder, 12)
    figures = key_figures(folder, {"Scores": {"seconds": 60, "peak_memory": 2e9}})
    assert (figures["accuracy"], figures["prior"], figures["minutes"], figures["peak_gb"]) == (0.9, 0.3, 1, 2)
    unknown = {"Scores": {"seconds": 60, "peak_memory": 2e9}, "Training": {"seconds": 60, "peak_memory": None}}
    assert "peak_gb" not in key_figures(folder, unknown)
    print_outcome(folder, figures, title="easy-VQA", question="what shape ?")
    out = capsys.readouterr().out
    assert "easy-VQA, test split " in out and '0.png "what shape ?" --show-alignment' in out
    assert f"report: {folder / 'report.html'}\n" in out
    assert " 95 % interval " in out and "The intervals count pictures" in out
    assert "AlignGPT minus AlignGPT, images shuffled, on the 200 questions that both answered: +50.0 percentage" in out
    assert "AlignGPT minus Text only, on the 400 questions that both answered: +60.0 percentage points" in out
    assert "the right caption beats the wrong one of the same image in 100.0% of 2 (95 % interval" in out
    assert "wrong captions in level 1 to N (95 % interval): 100% (21%–100%), empty, 0% (0%–79%)" in out


def test_a_lead_of_two_pictures_is_chance(run: Callable[..., Path]) -> None:
    """Twenty of 400 questions more are significant if they are independent, but not if they are about two pictures."""
    with pytest.raises(
        NotLearntError, match=r"55.0% of its answers .* 50.0% of Text only.*interval, by picture, -.*24"
    ):
        check_learnt(run(22, shuffled=2, prior=20), 12)


def test_other_splits_and_kinds_of_noise_are_shown_and_do_not_decide(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The text-only baseline of another split may be better than the model's own accuracy on the test split."""
    folder = run(36, shuffled=10, prior=12)
    baselines = {"Text only, test_hand": {"correct": 99, "total": 100, "note": "prior"}}
    (folder / "baselines-shifts.json").write_text(json.dumps(baselines))
    EvaluationResult(Tally(70, 100)).save(folder / "evaluation" / "test_hand" / "results.json")
    measured = json.loads((folder / "separation.json").read_text())
    kinds = {
        "category": {"roc_auc": 0.8, "low": 0.7, "high": 0.9, "captions": 5},
        "tags": {"roc_auc": 0.9, "low": 0.85, "high": 0.95, "captions": 5},
    }
    (folder / "separation.json").write_text(json.dumps(measured | {"by_kind": kinds}))
    check_learnt(folder, 12)
    steps = {"Scores": {"seconds": 60, "peak_memory": 2e9}}
    print_outcome(folder, key_figures(folder, steps), title="Scenes", question="how many ?")
    out = capsys.readouterr().out
    assert "Scenes, test splits " in out
    shown = [[cell.strip() for cell in line.split("│")[1:4]] for line in out.splitlines() if "test_hand" in line]
    assert shown == [["AlignGPT, test_hand", "70.0%", "70/100"], ["Text only, test_hand", "99.0%", "99/100"]]
    assert "of bad caption (95 % interval): tags 0.900 (0.850–0.950), category 0.800 (0.700–0.900)\n" in out


def test_an_empty_level_keeps_its_place(run: Callable[..., Path]) -> None:
    shares = [one.value for one in wrong_shares(run(36, shuffled=10, prior=12))]
    assert shares[0] == 1.0 and shares[1] != shares[1] and shares[2] == 0.0
