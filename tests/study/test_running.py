"""One run after another: arms differ where they should and nowhere else, and a run that was done is not done again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aligngpt.study import running
from aligngpt.study.analysis.loading import load_results
from aligngpt.study.arms import ARMS
from aligngpt.study.data import StudyData
from aligngpt.study.driving import questions_of
from aligngpt.study.plan import Plan, Run
from aligngpt.study.results import merge_files, read_rows
from aligngpt.study.running import Runner

pytestmark = pytest.mark.medium


@pytest.fixture
def runner(plan_of: Callable[..., Plan], study_data: StudyData, tmp_path: Path) -> Runner:
    plan = plan_of({"arms": list(ARMS), "levels": [2], "seeds": 1})
    return Runner(plan, study_data, tmp_path / "study", "code")


def run_of(arm: str, **changes: object) -> Run:
    return Run(**{"arm_name": arm, "noise": 0.0, "levels": 2, "answers": None, "seed": 0, **changes})


@pytest.mark.slow
def test_every_arm_runs_and_leaves_one_small_file(runner: Runner, study_data: StudyData) -> None:
    for run in runner.plan.runs():
        runner.do(run)
    rows = {row["run"]: row for row in read_rows(runner.folder / "results")}
    for run in runner.plan.runs():
        path = runner.result_path(run.id)
        assert path.stat().st_size < 100_000
        row = rows[run.id]
        assert (row["arm"], row["seed"], row["steps"]) == (run.arm_name, 0, 4)
        assert len(row["test_log_probability"]) == 24 and np.isfinite(row["test_log_probability"]).all()
        assert (row.get("gate_by_kind") is not None) == (run.arm.alignment in ("adaptive", "local"))
    # All modes of instruction tuning went on from one pre-training; each other way of pre-training has its own.
    pretrainings = [path for path in (runner.folder / "results").iterdir() if not path.stem.startswith(tuple(ARMS))]
    assert {path.stem for path in pretrainings} >= {"plain-noise0-levels2-seed0", "levels-scores-noise0-levels2-seed0"}
    assert len({run.pretraining_id for run in runner.plan.runs()}) == len(
        {path.stem for path in (runner.folder / "results").iterdir()} - {run.id for run in runner.plan.runs()}
    )
    # What an arm does to pre-training shows in what it is measured by afterwards.
    answers = {run.arm_name: rows[run.id]["test_log_probability"] for run in runner.plan.runs()}
    # Of two levels, the gate weighs only one.
    del answers["average"]
    for one in answers:
        for other in answers:
            assert one == other or not np.array_equal(answers[one], answers[other]), (one, other)
    assert [path.name for path in (runner.folder / "work").glob("*-answers*-seed0*")] == []


def test_a_run_is_repeated_exactly(runner: Runner, tmp_path: Path) -> None:
    again = Runner(runner.plan, runner.data, tmp_path / "again", "code")
    for one in (runner, again):
        one.do(run_of("adaptive"))
    first, second = (read_rows(one.result_path(run_of("adaptive").id))[0] for one in (runner, again))
    for name in ("test_log_probability", "test_right", "test_confidence"):
        assert np.array_equal(first[name], second[name]), name
    assert first["gate_by_kind"] == second["gate_by_kind"]


def test_a_run_that_is_done_is_left_alone(runner: Runner) -> None:
    runner.do(run_of("none"))
    before = {path: path.stat().st_mtime_ns for path in (runner.folder / "results").iterdir()}
    runner.do(run_of("none"))
    assert {path: path.stat().st_mtime_ns for path in (runner.folder / "results").iterdir()} == before


def test_a_run_that_learns_nothing_is_left_out_and_the_next_is_done(
    plan_of: Callable[..., Plan], study_data: StudyData, tmp_path: Path
) -> None:
    wild = {"learning_rate": 1e30, "batch_size": 4, "max_grad_norm": 1e30, "precision": "float32", "max_steps": 4}
    runner = Runner(plan_of({"arms": ["none"]}, instruct=wild), study_data, tmp_path / "study", "code")
    runner.do(run_of("none"))
    assert runner.is_done(run_of("none"))
    replace(runner, plan=plan_of({"arms": ["none"]})).do(run_of("none", seed=1))
    rows = {row["seed"]: row for row in read_rows(runner.folder / "results") if row["arm"] == "none"}
    assert "after step" in rows[0]["failed"] and rows[0].get("test_right") is None
    assert rows[1].get("failed") is None and len(rows[1]["test_right"]) == 24
    assert not (runner.folder / "work" / run_of("none").id).exists()
    merge_files(sorted((runner.folder / "results").iterdir()), tmp_path / "all.parquet", {})
    questions_of(study_data).save(tmp_path / "all.parquet")
    results = load_results(tmp_path / "all.parquet")
    assert [list(by_seed) for by_seed in results.failed.values()] == [[0]]
    assert [list(by_seed) for by_seed in results.runs.values()] == [[1]]


def test_a_pretraining_that_comes_to_nothing_is_not_tried_by_every_run(
    plan_of: Callable[..., Plan], study_data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = {"learning_rate": 1e30, "batch_size": 4, "max_grad_norm": 1e30, "precision": "float32", "epochs": 2}
    runner = Runner(plan_of({"arms": ["none"]}, pretrain=wild), study_data, tmp_path / "study", "code")
    for run in (run_of("adaptive"), run_of("global")):
        runner.do(run)
        monkeypatch.setattr(Runner, "_train_pretraining", lambda *_: pytest.fail("is tried again"))
    rows = read_rows(runner.folder / "results")
    assert [row["arm"] for row in rows] == ["adaptive", "global"]
    assert len({row["failed"] for row in rows}) == 1 and rows[0]["failed"].startswith("in pre-training the loss is")


def test_a_pretraining_outlives_a_run_that_comes_to_nothing(
    plan_of: Callable[..., Plan], study_data: StudyData, tmp_path: Path
) -> None:
    wild = {"learning_rate": 1e30, "batch_size": 4, "max_grad_norm": 1e30, "precision": "float32", "max_steps": 4}
    runner = Runner(plan_of({"arms": ["none"]}, instruct=wild), study_data, tmp_path / "study", "code")
    runner.do(run_of("adaptive"))
    assert (runner.folder / "work" / run_of("global").pretraining_id / "aligned.safetensors").is_file()


@pytest.mark.parametrize("arm", ["none", "plain-end"])
def test_a_pretraining_that_a_kill_leaves_unmeasured_is_not_trained_again(
    arm: str, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(arm)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(running, "_remove", killed)
        runner._pretrain(run)
    folder = runner.folder / "work" / run.pretraining_id
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_train_pretraining", lambda *_: pytest.fail("is trained again"))
        path = runner._pretrain(run)
    (row,) = read_rows(runner.folder / "results")
    assert row["steps"] > 0 and row["wall_seconds"] > 0
    weights = load_file(path)
    # Without its figures, it is trained again, although what is left of its stages says that they are finished.
    runner.result_path(run.pretraining_id).unlink()
    (folder / running.TRAINED).unlink()
    again = load_file(runner._pretrain(run))
    assert again.keys() == weights.keys() and all(again[name].equal(weights[name]) for name in weights)


def test_a_pretraining_whose_weights_are_gone_keeps_its_results(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("adaptive")
    runner._pretrain(run)
    path = runner.result_path(run.pretraining_id)
    content = path.read_bytes()
    runner.forget(run)
    assert runner._pretrain(run).is_file()
    assert path.read_bytes() == content
    assert f"{run.pretraining_id} is trained again: loss " in capsys.readouterr().out


def test_the_fresh_table_is_another_and_all_else_is_not(runner: Runner) -> None:
    run = run_of("fresh-table")
    pretrained = runner._pretrain(run)
    fresh = load_file(runner._starting_point(run, pretrained))
    kept = load_file(pretrained)
    assert fresh.keys() == kept.keys()
    assert [name for name in kept if not fresh[name].equal(kept[name])] == ["model.alignment.levels"]


def test_fewer_answers_are_a_part_of_more(runner: Runner) -> None:
    from aligngpt.data.sources.json import read_records

    (runner.folder / "work").mkdir(parents=True)
    ids = [
        {record["id"] for _, record in read_records(runner._answers(run_of("none", answers=answers)))}
        for answers in (5, 10)
    ]
    assert len(ids[0]) == 5 and len(ids[1]) == 10 and ids[0] < ids[1]


def test_all_arms_begin_with_the_same_warm_start(
    plan_of: Callable[..., Plan], study_data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of({"arms": ["none"], "levels": [2], "seeds": 1})
    cold = Runner(plan, study_data, tmp_path / "cold", "code")
    warm_plan = plan.model_copy(update={"pretrain": plan.pretrain | {"warm_start": {"steps": 5, "batch_size": 4}}})
    warm = Runner(warm_plan, study_data, tmp_path / "warm", "code")
    begun, made = [], []

    def train(recipe: dict, stage: str) -> object:
        assert recipe[stage].get("warm_start") is None
        if stage == "pretrain" and "pretrained" in recipe[stage]:
            begun.append(load_file(recipe[stage]["pretrained"]))
        return trained(recipe, stage)

    def write(recipe: dict, path: Path) -> None:
        made.append(path)
        write_warm_start(recipe, path)

    trained, write_warm_start = running._trained, running.write_warm_start
    monkeypatch.setattr(running, "_trained", train)
    monkeypatch.setattr(running, "write_warm_start", write)
    for arm in ("none", "filter", "adaptive"):
        warm.do(run_of(arm))
    assert len(made) == 1 and len(begun) == 3
    plain, filtered, levels = begun
    assert len(levels) == len(plain) + 1
    for name, tensor in plain.items():
        assert torch.equal(filtered[name], tensor) and torch.equal(levels[name], tensor)
    cold.do(run_of("none"))
    one, other = (read_rows(runner.result_path(run_of("none").pretraining_id))[0] for runner in (cold, warm))
    assert one["loss"] != other["loss"]
