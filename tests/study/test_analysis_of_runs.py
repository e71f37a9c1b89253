"""Real runs, however small, are analysed as they were written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aligngpt.study.analysis.analysing import analyse
from aligngpt.study.analysis.probes import LEVEL_DIFFERENCE, PICTURE_GAIN
from aligngpt.study.analysis.questions import ProbeCaptions, Questions, Split
from aligngpt.study.data import StudyData
from aligngpt.study.page import write_findings
from aligngpt.study.plan import Plan
from aligngpt.study.running import Runner

pytestmark = pytest.mark.medium


def test_runs_of_two_arms_become_a_page(plan_of: Callable[..., Plan], study_data: StudyData, tmp_path: Path) -> None:
    plan = plan_of({"arms": ["none", "adaptive"], "levels": [2], "seeds": 2})
    runner = Runner(plan, study_data, tmp_path / "study", "code")
    for run in plan.runs():
        runner.do(run)
    assert study_data.probe is not None
    asked = range(24)
    split = Split(
        tuple(("colour", "presence")[place % 2] for place in asked),
        ("part",) * 24,
        tuple(place // 2 for place in asked),
    )
    results = tmp_path / "study" / "results"
    # As `aligngpt study` keeps it: beside the folder of results.
    Questions({"test": split}, ProbeCaptions(study_data.probe.kinds)).save(results.parent)
    analysis = analyse(results, pairs=[("adaptive", "none")], planned=plan.runs())
    assert [one.seeds for one in analysis.primary] == [(0, 1)] and not analysis.missing
    assert {(one.condition.arm, one.score) for one in analysis.detectors} >= {
        ("levels-scores", LEVEL_DIFFERENCE),
        ("plain", PICTURE_GAIN),
    }
    assert {one.condition.arm: one.kinds for one in analysis.gates} == {"adaptive": ("colour", "presence")}
    assert analysis.cost.runs == 4 and analysis.cost.total > 0
    page = write_findings(analysis, tmp_path / "page").read_text(encoding="utf-8")
    assert "Compared with `none`, `adaptive` " in page and "every run of the plan is done" in page
