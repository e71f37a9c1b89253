"""`aligngpt evaluate --benchmarks pope-levels`: figures by level, resuming, wrong combinations."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import benchmark_layouts as layouts
import numpy as np
import pytest
from typer.testing import CliRunner

from aligngpt.cli import app
from aligngpt.evaluation.alignment_measures.likelihoods import Level, MeasureError
from aligngpt.evaluation.alignment_measures.yes_no import measure_yes_no, yes_no_table
from aligngpt.evaluation.results import EvaluationError, summarise
from aligngpt.evaluation.results_folder import save_results
from aligngpt.inference.requests import Likelihood, Request

COUNT = 12


class Biased:
    """Says yes to dogs; to cats as well below level 3, where it is less sure; stops after `limit` calls."""

    def __init__(self, limit: int = 1000) -> None:
        self.calls, self.limit = 0, limit

    def likelihood(
        self, request: Request, answers: Sequence[str], *, levels: Sequence[Level] | None = None
    ) -> list[list[Likelihood]]:
        if self.calls >= self.limit:
            raise KeyboardInterrupt
        self.calls += 1
        assert list(answers) == ["Yes", "No"]
        is_dog = "dog" in str(request.messages)
        found = []
        for level in levels or ():
            yes = 0.9 if is_dog else 0.2 if level in (None, 3) else 0.6
            # Half of the probability is for other answers.
            found.append([Likelihood(float(np.log(one / 2)), 2, True) for one in (yes, 1 - yes)])
        return found


def test_figures_of_each_level(tmp_path: Path) -> None:
    layouts.pope(tmp_path)
    result = measure_yes_no(Biased(), tmp_path, tmp_path / "o", model="m", levels=3)
    assert list(result["levels"]) == ["gate", "1", "2", "3"] and result["questions"] == COUNT
    gate, low = result["levels"]["gate"], result["levels"]["1"]
    assert (gate["yes_ratio"], gate["f1"], gate["accuracy"]["value"]) == (0.5, 1, 1)
    assert (low["yes_ratio"], low["accuracy"]["value"]) == (1, 0.5) and low["f1"] == pytest.approx(2 / 3)
    assert gate["brier"] == pytest.approx((0.1**2 + 0.2**2) / 2) and gate["ece"] == pytest.approx(0.15)
    assert low["ece"] == pytest.approx((0.1 + 0.6) / 2)
    assert result["levels"]["3"] == gate
    assert json.loads((tmp_path / "o/results.json").read_text()) == [result]
    assert yes_no_table(result).splitlines()[1].split()[:4] == ["gate", "50.0%", "100.0%", "100.0%"]
    assert "| 1 | 100.0% | 66.7% | 50.0% (" in (tmp_path / "o/table.md").read_text()


def test_results_of_the_evaluation_of_a_file_are_left_alone(tmp_path: Path) -> None:
    layouts.pope(tmp_path)
    path, engine = tmp_path / "o/results.json", Biased()
    summarise([]).save(path)
    before = path.read_bytes()
    with pytest.raises(EvaluationError, match="is of the evaluation of a file of questions; choose another folder"):
        measure_yes_no(engine, tmp_path, tmp_path / "o", model="m", levels=2)
    assert path.read_bytes() == before and not engine.calls


def test_results_on_captions_are_left_alone(tmp_path: Path) -> None:
    layouts.pope(tmp_path)
    path, engine = tmp_path / "o/results.json", Biased()
    save_results(path, [{"name": "winoground", "model": "m"}])
    with pytest.raises(EvaluationError, match="has results of winoground; choose another folder"):
        measure_yes_no(engine, tmp_path, tmp_path / "o", model="m", levels=2)
    assert json.loads(path.read_text()) == [{"name": "winoground", "model": "m"}] and not engine.calls


def test_figures_are_kept_while_another_command_holds_the_folder(tmp_path: Path, held: Callable) -> None:
    layouts.pope(tmp_path)
    out = tmp_path / "o"
    with (
        held(out),
        pytest.raises(EvaluationError, match=r"the figures are in .*pope-levels.results\.json; .* in use by"),
    ):
        measure_yes_no(Biased(), tmp_path, out, model="m", levels=2)
    kept = json.loads((out / "pope-levels/results.json").read_text())
    assert not (out / "results.json").exists() and not (out / "table.md").exists()
    assert kept == [measure_yes_no(Biased(0), tmp_path, out, model="m", levels=2)] and (out / "table.md").exists()


def test_a_stopped_run_rates_only_the_rest(tmp_path: Path) -> None:
    layouts.pope(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        measure_yes_no(Biased(5), tmp_path, tmp_path / "o", model="m", levels=2)
    engine = Biased()
    result = measure_yes_no(engine, tmp_path, tmp_path / "o", model="m", levels=2)
    assert engine.calls == COUNT - 5
    assert result == measure_yes_no(Biased(), tmp_path, tmp_path / "p", model="m", levels=2)
    with pytest.raises(MeasureError, match="likelihoods with other questions; choose another folder"):
        measure_yes_no(engine, tmp_path, tmp_path / "o", model="m", levels=2, limit=3)


def test_the_command_rates_a_model(model_folder: Path, tmp_path: Path) -> None:
    layouts.pope(tmp_path)
    options = ["--benchmarks", "pope-levels", "--data", str(tmp_path), "--out", str(tmp_path / "o"), "--limit", "2"]
    ended = CliRunner().invoke(app, ["evaluate", str(model_folder), *options, "--device", "cpu"])
    assert ended.exit_code == 0, ended.output
    (result,) = json.loads((tmp_path / "o/results.json").read_text())
    assert result["questions"] == 2 and len(result["levels"]) > 2 and "calibration error" in ended.stdout


def test_it_runs_by_itself(model_folder: Path, tmp_path: Path) -> None:
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "o"), "--benchmarks", "pope-levels,mme"]
    ended = CliRunner().invoke(app, ["evaluate", str(model_folder), *options])
    words = " ".join(ended.output.replace("│", " ").split())
    assert ended.exit_code == 2 and "pope-levels is rated, not asked; run mme by itself" in words
