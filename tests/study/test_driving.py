"""A whole study: its runs go to workers, and it resumes where it was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from aligngpt.errors import AlignGPTError
from aligngpt.study.claiming import check_file, claim_folder
from aligngpt.study.data import StudyData
from aligngpt.study.driving import collect, run_study
from aligngpt.study.pairs import StudyError
from aligngpt.study.plan import PlanError, load_plan
from aligngpt.study.results import read_rows, settings_in, write_row

pytestmark = pytest.mark.medium


@pytest.fixture
def plan_path(
    tmp_path: Path,
    data: Path,
    study_data: StudyData,
    language_folder: Callable,
    tower_folder: Callable,
    write_scores: Callable,
) -> Path:
    """A plan on files: two arms with two seeds; every third caption is wrong and has a low score."""
    records = [
        {
            "id": pair.id,
            "image": pair.image,
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": pair.caption}],
        }
        for pair in study_data.pairs(0.0)
    ]
    captions = data / "scored.json"
    captions.write_text(json.dumps(records))
    scores = write_scores(captions, {place: pair.score for place, pair in enumerate(study_data.pairs(0.0))}, 12)
    stage = {"batch_size": 4, "learning_rate": 0.01, "precision": "float32", "max_length": 64}
    content = {
        "output": str(tmp_path / "study"),
        "files": {
            "captions": str(captions),
            "scores": str(scores),
            "questions": str(study_data.questions),
            "tests": {"test": str(study_data.tests["test"])},
            "probe": str(data / "right.json"),
        },
        "model": dict(study_data.model),
        "pretrain": stage,
        "instruct": stage | {"max_steps": 3},
        "cells": [{"arms": ["none", "adaptive"], "levels": [2], "seeds": 2}],
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def same(one: Path, other: Path) -> None:
    """The results are equal but for the time they took."""
    rows, others = read_rows(one), read_rows(other)
    assert [row["run"] for row in rows] == [row["run"] for row in others]
    for row, expected in zip(rows, others, strict=True):
        for name in row.keys() - {"training_cpu_seconds", "cpu_seconds", "wall_seconds"}:
            assert np.array_equal(row[name], expected[name]), (row["run"], name)


@pytest.mark.slow
def test_a_study_is_the_same_with_one_worker_and_two_and_after_a_kill(plan_path: Path, tmp_path: Path) -> None:
    plan = load_plan(plan_path)
    alone = run_study(plan, workers=1)
    rows = read_rows(alone)
    assert sum(row["answers"] is None and row["arm"] in ("none", "adaptive") for row in rows) == 4
    assert len(rows) == 8

    together = plan.model_copy(update={"output": str(tmp_path / "killed")})
    killed_plan = tmp_path / "killed.yaml"
    killed_plan.write_text(yaml.safe_dump(yaml.safe_load(plan_path.read_text()) | {"output": together.output}))
    process = subprocess.Popen(
        [sys.executable, "-m", "aligngpt", "study", str(killed_plan)], start_new_session=True, stderr=subprocess.PIPE
    )
    results = Path(together.output) / "results"
    while process.poll() is None and len(list(results.glob("*-answers*.parquet"))) < 1:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.read_bytes() for path in results.glob("*.parquet")}
    assert len(done) > 0
    same(run_study(together, workers=2), alone)
    # What was done before the kill was kept as it was.
    assert all((results / name).read_bytes() == content for name, content in done.items())

    elsewhere = plan.model_copy(update={"output": str(tmp_path / "elsewhere")})
    same(run_study(elsewhere, workers=1, done=alone), alone)
    assert not list(Path(elsewhere.output).glob("work/worker-*.log"))
    other = elsewhere.model_copy(update={"output": str(tmp_path / "other"), "pretrain": plan.pretrain | {"epochs": 3}})
    with pytest.raises(StudyError, match=r"settings \(pretrain\.epochs\)"):
        run_study(other, done=alone)
    # As after another training of the dual encoder.
    questions = alone.with_name("questions.json")
    content = json.loads(questions.read_text())
    next(iter(content["splits"].values()))["image"][0] += 1
    questions.write_text(json.dumps(content))
    another = plan.model_copy(update={"output": str(tmp_path / "another")})
    with pytest.raises(StudyError, match=r"the questions or the scores of the captions that were made here are not"):
        run_study(another, done=alone)
    assert not list(Path(another.output).glob("results/*"))


def test_ctrl_c_ends_the_workers_and_says_how_to_go_on(plan_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "aligngpt", "study", str(plan_path)], stderr=subprocess.PIPE, text=True
    )
    work = Path(load_plan(plan_path).output) / "work"
    while process.poll() is None and len(list(work.glob("worker-*.log"))) < 2:
        time.sleep(0.05)
    workers = [int(path.stem.partition("-")[2]) for path in work.glob("worker-*.log")]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes where it stopped" in said
    for worker in workers:
        # A killed process may remain as a zombie of a parent that is gone, for a moment.
        for _ in range(100):
            if not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2]:
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"worker {worker} is still alive")


def test_another_commit_is_refused(plan_path: Path) -> None:
    plan = load_plan(plan_path).model_copy(update={"commit": "0000000"})
    with pytest.raises(PlanError, match="the plan is for commit 0000000 of the code and this is"):
        run_study(plan)


def test_a_language_model_that_is_not_there_is_told_before_data_are_made(plan_path: Path) -> None:
    plan = load_plan(plan_path)
    plan = plan.model_copy(update={"model": {**plan.model, "language_model": "studies/of/mine"}})
    with pytest.raises(StudyError, match=r"the language model studies/of/mine of the plan cannot be loaded: no such"):
        run_study(plan)
    assert not Path(plan.output).exists()


def test_scores_of_other_captions_are_refused(plan_path: Path, data: Path) -> None:
    records = json.loads((data / "scored.json").read_text())
    records[0]["conversations"][1]["value"] = "a caption that was not scored"
    (data / "scored.json").write_text(json.dumps(records))
    with pytest.raises(AlignGPTError, match=r"scored\.json"):
        run_study(load_plan(plan_path))


def test_a_folder_keeps_one_study(plan_path: Path, data: Path) -> None:
    plan = load_plan(plan_path)
    folder = Path(plan.output)
    claim_folder(plan, folder)
    claim_folder(plan.model_copy(update={"cells": plan.cells[:1], "commit": "abc"}), folder)
    with pytest.raises(StudyError, match=r"other settings \(pretrain\.learning_rate\)"):
        claim_folder(plan.model_copy(update={"pretrain": plan.pretrain | {"learning_rate": 0.02}}), folder)
    with pytest.raises(StudyError, match=r"other settings \(instruct\.epochs\)"):
        run_study(plan.model_copy(update={"instruct": plan.instruct | {"epochs": 3}}))
    questions = json.loads((data / "asked.json").read_text())
    (data / "asked.json").write_text(json.dumps(questions[:-1]))
    with pytest.raises(StudyError, match=r"other settings \(contents\.questions"):
        claim_folder(plan, folder)


def test_other_weights_in_the_same_folder_are_another_study(plan_path: Path, tmp_path: Path) -> None:
    plan = load_plan(plan_path)
    copy = shutil.copytree(plan.model["language_model"], tmp_path / "copy")
    plan = plan.model_copy(update={"model": plan.model | {"language_model": str(copy)}})
    claim_folder(plan, Path(plan.output))
    claim_folder(plan, Path(plan.output))
    (weights,) = copy.glob("*.safetensors")
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(StudyError, match=r"other settings \(contents\.language_model 0 .*\.safetensors\)"):
        claim_folder(plan, Path(plan.output))


def test_results_are_not_collected_for_another_plan(plan_path: Path, tmp_path: Path) -> None:
    plan = load_plan(plan_path)
    folder = Path(plan.output)
    claim_folder(plan, folder)
    write_row(folder / "results" / f"{plan.runs()[0].id}.parquet", {"run": "one"})
    merged = collect(plan, folder)
    check_file(plan.model_copy(update={"cells": plan.cells[:1]}), merged)
    check_file(plan, folder / "results")
    other = plan.model_copy(update={"pretrain": plan.pretrain | {"learning_rate": 0.02}})
    with pytest.raises(StudyError, match=r"other settings \(pretrain\.learning_rate\); its runs are not those"):
        collect(other, folder)
    assert settings_in(merged)["pretrain"]["learning_rate"] == plan.pretrain["learning_rate"]
    with pytest.raises(StudyError, match=r"other settings than those of the plan \(pretrain\.learning_rate\); give"):
        check_file(other, merged)
    with pytest.raises(StudyError, match=r"is not a results\.parquet"):
        check_file(plan, plan_path)


def test_results_are_collected_from_what_is_done(plan_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no run of the study in .* is done yet"):
        collect(load_plan(plan_path), Path(load_plan(plan_path).output))
