"""Plans: which runs they mean, and what they refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from aligngpt.study.arms import ARMS
from aligngpt.study.plan import PlanError, load_plan

CONTENT: dict[str, Any] = {
    "output": "runs/study",
    "scenes": {},
    "pretrain": {"batch_size": 4},
    "instruct": {"batch_size": 4},
    "cells": [{"arms": ["none", "adaptive"], "noise": [0.0, 0.3], "seeds": 2}],
}


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        path = tmp_path / "plan.yaml"
        content = {name: value for name, value in (CONTENT | changes).items() if value is not None}
        path.write_text(yaml.safe_dump(content))
        return load_plan(path)

    return make


def test_the_runs_are_all_combinations_and_the_first_seed_comes_first(plan_of: Callable) -> None:
    runs = plan_of().runs()
    assert {(run.arm_name, run.noise, run.seed) for run in runs} == {
        (arm, noise, seed) for arm in ("none", "adaptive") for noise in (0.0, 0.3) for seed in (0, 1)
    }
    assert [run.seed for run in runs] == [0] * 4 + [1] * 4
    assert len({run.id for run in runs}) == len(runs)


def test_a_run_in_two_cells_is_done_once(plan_of: Callable) -> None:
    cells = [*CONTENT["cells"], {"arms": ["adaptive", "placebo"], "noise": [0.3], "seeds": 3}]
    assert len(plan_of(cells=cells).runs()) == 8 + 1 + 3


def test_the_number_of_levels_only_multiplies_arms_that_have_levels(plan_of: Callable) -> None:
    cells = [{"arms": ["none", "constant", "filter", "adaptive", "appended"], "levels": [2, 4, 8], "seeds": 1}]
    runs = plan_of(cells=cells).runs()
    assert sorted((run.arm_name, run.levels) for run in runs) == [
        *[("adaptive", 2), ("adaptive", 4), ("adaptive", 8)],
        *[("appended", 2), ("appended", 4), ("appended", 8)],
        *[("constant", 2), ("filter", 2), ("none", 2)],
    ]


def test_arms_that_differ_only_in_instruction_tuning_share_their_pretraining(plan_of: Callable) -> None:
    names = list(ARMS)
    runs = {run.arm_name: run for run in plan_of(cells=[{"arms": names, "noise": [0.3], "seeds": 1}]).runs()}
    after = ("global", "local", "average", "mean", "adaptive", "fresh-table")
    shared = {runs[name].pretraining_id for name in after}
    assert len(shared) == 1
    others = [name for name in names if name not in after]
    assert len({runs[name].pretraining_id for name in others} | shared) == len(others) + 1


def test_the_quick_study_is_a_part_with_a_folder_of_its_own(plan_of: Callable) -> None:
    plan = plan_of(cells=[{"arms": ["none", "filter"], "noise": [0.0, 0.6], "seeds": 10}], commit="abc")
    assert plan.quick().commit is None
    quick = plan.quick()
    assert quick.output == "runs/study-quick"
    assert {(run.arm_name, run.noise, run.answers) for run in quick.runs()} == {
        ("none", 0.6, 1500),
        ("adaptive", 0.6, 1500),
        ("placebo", 0.6, 1500),
    }
    assert len(quick.runs()) == 12
    assert plan.scenes is not None and quick.scenes is not None
    assert quick.scenes.captions < plan.scenes.captions and quick.scenes.seed == plan.scenes.seed
    assert quick.quick().scenes == quick.scenes, "never more pictures than the plan has"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": [{"arms": ["adaptve"]}]}, "there is no arm adaptve"),
        ({"cells": [{"arms": ["none"], "noise": [1.5]}]}, r"cells\.0\.noise"),
        ({"cells": [{"arms": ["none"], "noise": [0.0, 0.004]}]}, "noise must be in whole percents, .* found 0.004"),
        ({"pretrain": {"max_steps": 250}}, "max_steps: arms would read unequal amounts of data; give epochs"),
        ({"pretrain": {"epochs": 1, "minutes": 2}}, "minutes: arms would read unequal"),
        ({"scenes": None}, "name scenes, clipart or files"),
        ({"seeds": 3}, "seeds"),
        (
            {"scenes": None, "files": {"captions": "a", "scores": "b", "questions": "c", "tests": {"t": "d"}}},
            "share of bad captions can only be chosen for scenes",
        ),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(plan_of: Callable, changes: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_of(**changes)


def test_an_oracle_needs_generated_data(plan_of: Callable) -> None:
    files = {"captions": "a", "scores": "b", "questions": "c", "tests": {"t": "d"}}
    with pytest.raises(PlanError, match="oracle needs the true quality"):
        plan_of(scenes=None, files=files, cells=[{"arms": ["oracle"]}])


@pytest.mark.parametrize("text", ["- a", "cells: [", "", "seeds: 2\nseeds: 3"])
def test_a_file_that_is_no_plan_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(PlanError, match=r"plan\.yaml"):
        load_plan(tmp_path / "plan.yaml")
