"""Tests of the quickstart's messages about its result and about slow machines."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aligngpt.evaluation.results import EvaluationResult, Tally
from aligngpt.quickstart.pipeline import NotLearntError, Run, _say_when_slow, run_quickstart


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """A run whose steps are all finished, with the given numbers of correct answers out of 200."""

    def make(right: int, *, prior: int = 130, shuffled: int = 118, dual_encoder: float = 16.0) -> Path:
        folder = tmp_path / "run"
        for name, correct in (("test", right), ("shuffled", shuffled)):
            EvaluationResult(Tally(correct, 200)).save(folder / "evaluation" / name / "results.json")
        (folder / "baselines.json").write_text(json.dumps({"Text only": {"correct": prior, "total": 200}}))
        (folder / "separation.json").write_text(json.dumps({"roc_auc": 0.99, "pairs": 10}))
        (folder / "captions.json").write_text(json.dumps([{"similarity": 0, "caption_quality": "wrong"}]))
        measured = {"seconds": 1.0, "peak_memory": 1}
        Run(folder, 12, 0, {"Dual encoder": measured | {"seconds": dual_encoder}, "Report": measured}).save()
        return folder

    return make


def test_a_model_that_sees_is_a_success(finished: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_quickstart(finished(190)) == finished(190)
    assert "accuracy=0.950 prior=0.650 shuffled=0.590" in capsys.readouterr().out


@pytest.mark.parametrize(("right", "prior", "shuffled"), [(69, 130, 60), (135, 130, 60), (110, 60, 105)])
def test_a_model_no_better_than_its_baselines_is_a_failure_that_says_so(
    finished: Callable[..., Path], capsys: pytest.CaptureFixture[str], right: int, prior: int, shuffled: int
) -> None:
    folder = finished(right, prior=prior, shuffled=shuffled)
    with pytest.raises(NotLearntError, match=rf"learnt too little: {right / 2:.1f}%.*--minutes 24"):
        run_quickstart(folder)
    assert f"accuracy={right / 200:.3f}" in capsys.readouterr().out


def test_a_slow_machine_is_told_early(finished: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    for seconds, said in ((16.0, False), (64.0, True)):
        _say_when_slow(Run.open(finished(190, dual_encoder=seconds), 12, 0))
        assert ("takes 4.0 times as long" in " ".join(capsys.readouterr().err.split())) is said
