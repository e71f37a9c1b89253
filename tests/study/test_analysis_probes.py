"""What levels do to captions, the gate, and the findings that would speak against the method."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simulated_study as simulated

from aligngpt.study.analysis.analysing import Analysis, analyse_results
from aligngpt.study.analysis.answer import answer
from aligngpt.study.analysis.loading import Condition, Results, check_rows
from aligngpt.study.analysis.probes import (
    LEVEL_DIFFERENCE,
    LIKELIHOOD,
    PICTURE_GAIN,
    POSTERIOR_LEVEL,
    area,
    detectors,
    dose_responses,
    encoder_detector,
    posterior_level,
    rank_correlation,
    slopes,
)
from aligngpt.study.page import write_findings
from aligngpt.study.plan import Run

ABOUT = simulated.questions()
SCORES = Condition("levels-scores", 0.6, simulated.LEVELS)
PLAIN = Condition("plain", 0.6, 2)


def study(truth: simulated.Truth, seeds: int = 6, arms: tuple[str, ...] = ("none", "adaptive", "placebo")) -> Results:
    return check_rows(simulated.rows(ABOUT, truth, arms=arms, noises=(0.6,), seeds=seeds, random=3), ABOUT)


@pytest.fixture(scope="module")
def steep() -> Results:
    """Levels that mean something, and an effect of the right ones."""
    return study(simulated.Truth({("adaptive", 0.6): 0.1}, slope=1.0), arms=("none", "adaptive", "placebo", "constant"))


@pytest.fixture(scope="module")
def flat() -> Analysis:
    """Levels that mean nothing, where a model without levels tells captions apart well."""
    truth = simulated.Truth({("adaptive", 0.6): -0.1}, slope=0.0, picture_gain=2.0)
    return analyse_results(study(truth))


def outcomes(analysis: Analysis) -> dict[str, str]:
    return {one.name: one.outcome for one in analysis.falsifiers}


def test_the_slope_over_levels_is_the_planted_one(steep: Results) -> None:
    found = {one.condition: one for one in dose_responses(steep)}
    # Pre-trainings of one level or none have no dose–response.
    assert found.keys() == {SCORES, replace_arm("levels-random")}
    scores = found[SCORES]
    assert len(scores.right) == len(scores.wrong) == simulated.LEVELS
    assert scores.right_slope.low < 1.0 < scores.right_slope.high and scores.right_slope.low > 0.9
    assert scores.wrong_slope.low < -0.5 < scores.wrong_slope.high
    assert scores.rank_correlation.value == 1
    # Level N adds three steps to what a pre-training without levels makes of the same captions.
    assert scores.gain is not None and scores.gain.low < 3.0 < scores.gain.high and scores.gain.seeds == 6
    dealt = found[replace_arm("levels-random")].right_slope
    assert dealt.low < 0 < dealt.high


def replace_arm(name: str) -> Condition:
    return SCORES._replace(arm=name)


def test_slopes_and_rank_correlations_are_those_computed_by_hand() -> None:
    np.testing.assert_allclose(slopes(np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0], [0.0, 3.0, 0.0]])), [2, 0, 0])
    assert rank_correlation([1, 2, 30]) == 1 and rank_correlation([3, 2, 1]) == -1
    assert rank_correlation([5, 5, 5]) == 0
    # Ranks 1, 3, 2, 4: 1 − 6 · 2 / (4 · 15).
    assert rank_correlation([0.1, 0.3, 0.2, 0.9]) == pytest.approx(0.8)


def test_the_area_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    right, wrong = rng.integers(0, 6, 15).astype(float), rng.integers(0, 5, 20).astype(float)
    pairs = [(one > other) + 0.5 * (one == other) for one in right for other in wrong]
    assert area(right, wrong) == pytest.approx(np.mean(pairs))


def test_every_score_is_a_detector(steep: Results) -> None:
    found = {(one.condition.arm, one.score): one for one in detectors(steep)}
    assert found.keys() == {
        ("plain", LIKELIHOOD),
        ("plain", PICTURE_GAIN),
        ("levels-constant", LIKELIHOOD),
        *((arm, score) for arm in ("levels-scores", "levels-random") for score in (LEVEL_DIFFERENCE, POSTERIOR_LEVEL)),
    }
    ours = found["levels-scores", LEVEL_DIFFERENCE]
    assert ours.auc.value > 0.99 and ours.by_kind.keys() == set(simulated.WRONG) and len(ours.by_seed) == 6
    assert found["levels-random", LEVEL_DIFFERENCE].auc.value == pytest.approx(0.5, abs=0.15)
    gain = found["plain", PICTURE_GAIN]
    one = steep.pretrainings[PLAIN][2]
    assert one.right is not None and one.wrong is not None
    assert one.right_blank is not None and one.wrong_blank is not None
    assert gain.by_seed[2] == area(one.right[0] - one.right_blank, one.wrong[0] - one.wrong_blank)


def test_the_dual_encoder_is_measured_beside(steep: Results) -> None:
    found, probe = encoder_detector(steep), ABOUT.probe
    assert found is not None and probe is not None
    assert found.auc.value == area(np.array(probe.right_score), np.array(probe.wrong_score))
    assert found.auc.low < found.auc.value < found.auc.high
    unknown = replace(ABOUT, probe=replace(probe, right_score=(), wrong_score=()))
    assert encoder_detector(replace(steep, questions=unknown)) is None


def test_the_posterior_level_is_the_mean_over_levels() -> None:
    table = np.log([[0.1, 0.2], [0.1, 0.6]]) - 2000
    np.testing.assert_allclose(posterior_level(table), [1.5, 1.75])


def test_the_gate_differs_by_kind_as_planted(steep: Results) -> None:
    gates = {one.condition.arm: one for one in analyse_results(steep).gates}
    assert gates.keys() == {"adaptive", "placebo"}
    assert gates["adaptive"].kinds == tuple(sorted(simulated.KINDS))
    np.testing.assert_allclose(gates["adaptive"].weights[1], [0.3, 0.5, 0.2])
    assert gates["adaptive"].spread.value == pytest.approx(0.2)


def test_nothing_speaks_against_levels_that_work(steep: Results) -> None:
    assert outcomes(analyse_results(steep)) == {"a": "not found", "b": "not found", "c": "not found"}


def test_everything_speaks_against_levels_that_do_not_work(flat: Analysis) -> None:
    assert outcomes(flat) == {"a": "found", "b": "found", "c": "found"}
    assert answer(flat).startswith("The levels carry no usable information here: all findings that would speak against")


def test_one_finding_against_the_levels_is_not_all(flat: Analysis) -> None:
    two = [flat.falsifiers[0]._replace(outcome="not found"), *flat.falsifiers[1:]]
    assert not answer(replace(flat, falsifiers=two)).startswith("The levels carry no usable information")


def test_too_few_seeds_are_no_finding_against_the_levels() -> None:
    analysis = analyse_results(study(simulated.Truth(slope=0.0), seeds=3))
    both = next(one for one in analysis.primary if one.second.arm == "placebo")
    points = both.accuracy.estimate
    assert points.low < analysis.bounds.accuracy < points.high
    assert outcomes(analysis)["a"] == "not found"


def test_one_seed_concludes_nothing() -> None:
    analysis = analyse_results(study(simulated.Truth({("adaptive", 0.6): 1.0}), seeds=1))
    assert outcomes(analysis) == {"a": "cannot be told", "b": "cannot be told", "c": "cannot be told"}
    assert {one.verdict for one in analysis.primary} == {"cannot be told"}
    assert answer(analysis).startswith("Nothing can be concluded: the primary contrasts have only one seed")


def test_no_common_seed_concludes_nothing(steep: Results) -> None:
    analysis = analyse_results(steep, pairs=[("oracle", "none")])
    assert answer(analysis).startswith("Nothing can be concluded: the primary contrasts have no seed")


def test_missing_runs_of_a_plan_are_named(steep: Results) -> None:
    planned = [Run("adaptive", 0.6, simulated.LEVELS, None, seed) for seed in range(8)]
    planned += [Run("oracle", 0.6, simulated.LEVELS, None, 0), Run("none", 0.6, 2, None, 0)]
    assert analyse_results(steep, planned=planned).missing == [
        "`adaptive` at 60% of bad captions, 4 levels, all answers: 6 of 8 seeds; missing: 6, 7.",
        "`oracle` at 60% of bad captions, 4 levels, all answers: 0 of 1 seeds; missing: 0.",
    ]


def test_results_of_several_versions_of_the_code_are_told(steep: Results) -> None:
    analysis = analyse_results(replace(steep, codes=("abc", "def")))
    assert analysis.missing == ["The results are from 2 versions of the code: abc, def."]


def test_of_data_of_ones_own_no_share_of_bad_captions_is_told(tmp_path: Path) -> None:
    many = simulated.rows(ABOUT, simulated.Truth({("adaptive", 0.0): 0.1}), noises=(0.0,), seeds=3)
    del many[-1]
    analysis = analyse_results(check_rows(many, ABOUT))
    assert answer(analysis).startswith("`adaptive` compared with `none` helps on the captions as they are (+0.")
    page = write_findings(analysis, tmp_path).read_text(encoding="utf-8")
    assert "0% of bad" not in page and "| 0% |" not in page


def test_without_probe_captions_the_rest_is_analysed() -> None:
    about = replace(ABOUT, probe=None)
    many = [
        row for row in simulated.rows(ABOUT, simulated.Truth(), noises=(0.6,), seeds=3) if "captions_right" not in row
    ]
    analysis = analyse_results(check_rows(many, about))
    assert not analysis.dose and not analysis.detectors and analysis.encoder is None
    assert outcomes(analysis)["b"] == outcomes(analysis)["c"] == "cannot be told"
