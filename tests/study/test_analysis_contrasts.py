"""Contrasts of arms, in studies whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
import simulated_study as simulated

from aligngpt.study.analysis.analysing import analyse_results
from aligngpt.study.analysis.answer import answer
from aligngpt.study.analysis.contrasts import (
    PRIMARY,
    Bounds,
    Contrast,
    Difference,
    contrast,
    parts_of,
    primary_contrasts,
    secondary_contrasts,
)
from aligngpt.study.analysis.loading import Answered, Condition, Results, check_rows
from aligngpt.study.analysis.outcomes import SQUARED_ERROR, calibration_error
from aligngpt.study.analysis.student import Estimate, holm
from aligngpt.study.pairs import StudyError
from aligngpt.study.plan import Run

ABOUT = simulated.questions()
EFFECT = 0.08
HELPS = simulated.Truth({("adaptive", 0.6): EFFECT})


@pytest.fixture(scope="module")
def planted() -> Results:
    """A study in which `adaptive` is 0.08 nats better at 60 % of bad captions, and nothing else is different."""
    arms = ("none", "adaptive", "placebo", "global")
    return check_rows(simulated.rows(ABOUT, HELPS, arms=arms, seeds=8, random=1), ABOUT)


def without(results: Results, arm: str, noise: float, seeds: set[int]) -> Results:
    """The results without some seeds of an arm."""
    runs = dict(results.runs)
    condition = results.condition(arm, noise)
    runs[condition] = {seed: run for seed, run in runs[condition].items() if seed not in seeds}
    if not runs[condition]:
        del runs[condition]
    return Results(results.questions, runs, results.pretrainings, results.codes)


def test_a_planted_effect_is_found_where_it_is(planted: Results) -> None:
    found, absent = primary_contrasts(planted, PRIMARY, Bounds())
    assert not absent and len(found) == 4
    by_place = {(one.second.arm, one.first.noise): one for one in found}
    for other in ("none", "placebo"):
        there, elsewhere = by_place[other, 0.6], by_place[other, 0.0]
        first = there.log_probability
        assert there.verdict == "helps" and there.seeds == tuple(range(8))
        assert first.estimate.low < EFFECT < first.estimate.high
        assert 0 < first.resampled[0] < first.estimate.value < first.resampled[1] < 2 * EFFECT
        assert first.adjusted_p < 0.01 < 0.5 < first.equivalence_p
        means = [
            [run.answers["test"].log_probability.mean() for run in planted.runs[one].values()]
            for one in (there.first, there.second)
        ]
        assert there.correlation == pytest.approx(np.corrcoef(means)[0, 1])
        assert elsewhere.verdict != "helps" and elsewhere.log_probability.adjusted_p > 0.05
    assert [one.log_probability.adjusted_p for one in found] == pytest.approx(
        holm([one.log_probability.estimate.p for one in found])
    )


def test_an_effect_to_the_worse_harms() -> None:
    worse = simulated.Truth({("adaptive", 0.6): -0.2})
    found, _ = primary_contrasts(check_rows(simulated.rows(ABOUT, worse, noises=(0.6,)), ABOUT), PRIMARY, Bounds())
    assert [one.verdict for one in found] == ["harms", "harms"]


def test_no_difference_is_a_finding_if_there_are_seeds_enough(planted: Results) -> None:
    wide = Bounds(nats=0.05, accuracy=0.2)
    found, _ = primary_contrasts(planted, PRIMARY, wide)
    verdicts = {one.first.noise: one.verdict for one in found}
    assert verdicts == {0.0: "makes no difference that matters", 0.6: "helps"}


def test_a_certain_difference_within_the_bounds_does_not_matter() -> None:
    known = Estimate(0.001, 0.0005, 0.0015, 0.0001, 0.0002, 10)
    small = Difference(known, adjusted_p=0.001, equivalence_p=0.001)
    condition = Condition("adaptive", 0.6, 4)
    both = Contrast(condition, condition, (0, 1), small, small, known, known, 0.0)
    assert both.verdict == "makes no difference that matters"
    # Both outcomes must be equivalent.
    assert replace(both, accuracy=replace(small, equivalence_p=0.2)).verdict == "helps"


@pytest.mark.medium
def test_an_effect_is_found_in_about_5_of_100_studies_without_one() -> None:
    about, null = simulated.questions(number=12, captions=2), simulated.Truth()
    wrong = []
    for study in range(100):
        shares = (0.0, 0.2, 0.4, 0.6)
        many = simulated.rows(about, null, arms=("none", "adaptive"), noises=shares, seeds=4, random=study)
        found, _ = primary_contrasts(check_rows(many, about), [("adaptive", "none")], Bounds(), draws=2)
        wrong.append(any(one.log_probability.adjusted_p < 0.05 for one in found))
    # 5 % with three binomial standard errors; without Holm's correction it would be 19 %.
    assert 0 < np.mean(wrong) <= 0.115


def test_only_common_seeds_are_compared(planted: Results) -> None:
    fewer = without(without(planted, "adaptive", 0.6, {0, 1}), "none", 0.6, {7})
    both = contrast(fewer, fewer.condition("adaptive", 0.6), fewer.condition("none", 0.6))
    assert both is not None and both.seeds == (2, 3, 4, 5, 6) and both.log_probability.estimate.seeds == 5
    analysis = analyse_results(fewer)
    assert "`adaptive` at 60% of bad captions, 4 levels, all answers: 6 of 8 seeds." in analysis.missing
    assert "`none` at 60% of bad captions, all answers: 7 of 8 seeds." in analysis.missing


def test_a_missing_arm_is_named_and_cannot_be_told(planted: Results) -> None:
    analysis = analyse_results(without(planted, "placebo", 0.6, set(range(8))))
    assert analysis.absent == [("adaptive", "placebo", 0.6)]
    assert "No seed has both `adaptive` and `placebo` at 60% of bad captions" in analysis.missing[0]
    said = "`adaptive` neither clearly helps nor harms at 0% of bad captions and has no seed in common with it at 60%"
    assert said in answer(analysis)
    # What is missing is one of the tests that are corrected for.
    smallest = min(analysis.primary, key=lambda one: one.log_probability.estimate.p).log_probability
    assert len(analysis.primary) == 3 and smallest.adjusted_p == pytest.approx(4 * smallest.estimate.p)
    assert {one.name: one.outcome for one in analysis.falsifiers}["a"] == "inconclusive"


def test_a_pair_is_only_expected_where_it_is_planned(planted: Results) -> None:
    fewer = without(planted, "placebo", 0.0, set(range(8)))
    assert "has no seed in common with it at 0% of bad captions" in answer(analyse_results(fewer))
    plan = [Run(arm, noise, 2, None, 0) for arm in ("adaptive", "none") for noise in (0.0, 0.6)]
    plan.append(Run("placebo", 0.6, 4, None, 0))
    analysis = analyse_results(fewer, planned=plan)
    assert not analysis.absent and len(analysis.primary) == 3 and "no seed in common" not in answer(analysis)


def test_an_arm_without_any_run_is_a_missing_contrast(planted: Results) -> None:
    analysis = analyse_results(planted, pairs=[("adaptive", "none"), ("adaptive", "oracle")])
    assert [pair for *pair, _ in analysis.absent] == [["adaptive", "oracle"]] * 2


def test_secondary_contrasts_are_of_every_other_condition(planted: Results) -> None:
    found = secondary_contrasts(planted, "none")
    assert {(one.first.arm, one.first.noise) for one in found} == {
        (arm, noise) for arm in ("adaptive", "placebo", "global") for noise in (0.0, 0.6)
    }
    assert all(np.isnan(one.log_probability.adjusted_p) for one in found)
    # Those that are primary are not told twice.
    assert {one.first.arm for one in analyse_results(planted).secondary} == {"placebo", "global"}


def test_parts_are_scopes_kinds_and_other_tests(planted: Results) -> None:
    found, _ = primary_contrasts(planted, [("adaptive", "none")], Bounds())
    there = next(one for one in found if one.first.noise == 0.6)
    parts = {part.what: part for part in parts_of(planted, there)}
    kinds = {f"kind: {kind}" for kind in simulated.KINDS}
    assert parts.keys() == {"scope: part", "scope: whole", "test: shift", *kinds}
    assert sum(parts[kind].questions for kind in kinds) == 60 and parts["test: shift"].questions == 6
    mean = np.mean([parts[kind].log_probability.value for kind in kinds])
    assert mean == pytest.approx(there.log_probability.estimate.value)


def test_calibration_and_brier_are_those_computed_by_hand() -> None:
    confidence, hit = np.array([0.95, 0.91, 0.15, 0.15]), np.array([1.0, 0.0, 0.0, 0.0])
    run = Answered(np.zeros(4), hit, confidence, hit)
    # Bins 0.9…1 (mean 0.93, half right) and 0.1…0.2 (mean 0.15, none right), two questions each.
    assert calibration_error(run) == pytest.approx(0.5 * 0.43 + 0.5 * 0.15)
    assert SQUARED_ERROR.of(run).mean() == pytest.approx((0.05**2 + 0.91**2 + 2 * 0.15**2) / 4)
    certain = Answered(np.zeros(1), np.ones(1), np.ones(1), np.ones(1))
    assert calibration_error(certain) == 0


def test_primary_pairs_must_be_known_arms(planted: Results) -> None:
    with pytest.raises(StudyError, match="unknown arm magic"):
        analyse_results(planted, pairs=[("magic", "none")])
    with pytest.raises(StudyError, match="names no primary pair"):
        analyse_results(planted, pairs=[])
