"""What is missing of a study."""

from dataclasses import replace

import pytest
import simulated_study as simulated

from aligngpt.study.analysis.analysing import analyse_results
from aligngpt.study.analysis.answer import answer
from aligngpt.study.analysis.loading import Results, check_rows
from aligngpt.study.pairs import StudyError
from aligngpt.study.plan import Run

ABOUT = simulated.questions()


def test_a_run_that_stopped_is_named(steep: Results) -> None:
    many = simulated.rows(ABOUT, simulated.Truth(), seeds=3)
    gone = next(row for row in many if row["arm"] == "adaptive" and row["noise"] == 0.6 and row["seed"] == 1)
    facts = ("run", "arm", "noise", "levels", "answers", "seed", "code")
    many[many.index(gone)] = {name: gone[name] for name in facts} | {"failed": "the loss is nan after step 7"}
    planned = [Run("adaptive", 0.6, simulated.LEVELS, None, seed) for seed in range(3)]
    analysis = analyse_results(check_rows(many, ABOUT), pairs=[("adaptive", "none")], planned=planned)
    assert analysis.missing == [
        "`adaptive` at 60% of bad captions, 4 levels, all answers, seed 1: left out, because the loss is nan after "
        "step 7."
    ]
    with pytest.raises(StudyError, match="every run stopped because its loss was not a number"):
        check_rows([one for one in many if "failed" in one], ABOUT)


def test_missing_runs_of_a_plan_are_named(steep: Results) -> None:
    planned = [Run("adaptive", 0.6, simulated.LEVELS, None, seed) for seed in range(8)]
    planned += [Run("oracle", 0.6, simulated.LEVELS, None, 0), Run("none", 0.6, 2, None, 0)]
    assert analyse_results(steep, planned=planned).missing == [
        "`adaptive` at 60% of bad captions, 4 levels, all answers: 6 of 8 seeds; missing: 6, 7.",
        "`oracle` at 60% of bad captions, 4 levels, all answers: 0 of 1 seeds; missing: 0.",
    ]
    assert answer(analyse_results(steep, planned=planned)).startswith("So far, with 7 of 10 runs done, compared with")


def test_results_of_several_versions_of_the_code_are_told(steep: Results) -> None:
    analysis = analyse_results(replace(steep, codes=("abc", "def")))
    assert analysis.missing == ["The results are from 2 versions of the code: abc, def."]
