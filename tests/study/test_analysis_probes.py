"""What levels do to captions, and the gate by kind of question."""

from dataclasses import replace

import numpy as np
import pytest
import simulated_study as simulated

from aligngpt.study.analysis import figures, tables
from aligngpt.study.analysis.analysing import analyse_results
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

ABOUT = simulated.questions()
SCORES = Condition("levels-scores", 0.6, simulated.LEVELS)
PLAIN = Condition("plain", 0.6, 2)


def replace_arm(name: str) -> Condition:
    return SCORES._replace(arm=name)


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


def test_pretrainings_are_in_the_order_of_their_numbers_of_levels() -> None:
    many = simulated.rows(ABOUT, simulated.Truth(), arms=("adaptive",), noises=(0.6,), seeds=1)
    numbers = (32, 4, 16, 2)
    of_levels = []
    for levels in numbers:
        table = np.zeros(levels * len(ABOUT.probe.kind)) if ABOUT.probe else None
        for row in many:
            measured = {"captions_right": table, "captions_wrong": table} if "captions_right" in row else {}
            of_levels.append(row | {"levels": levels} | measured)
    results = check_rows(of_levels, ABOUT)
    assert [one.condition.levels for one in dose_responses(results)] == sorted(numbers)
    assert list(dict.fromkeys(one.condition.levels for one in detectors(results))) == sorted(numbers)


def test_a_pretraining_with_one_constant_level_is_shown_as_one_without_levels(steep: Results) -> None:
    analysis = analyse_results(steep)
    assert "| `levels-constant` | 60% | – | log p(c \\| I) |" in tables.detectors(analysis)
    figure = figures.detector_areas(analysis)
    assert figure is not None
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert f"levels-constant: {LIKELIHOOD}" in shown and f"levels-scores: {POSTERIOR_LEVEL}" in shown


def test_the_gate_differs_by_kind_as_planted(steep: Results) -> None:
    gates = {one.condition.arm: one for one in analyse_results(steep).gates}
    assert gates.keys() == {"adaptive", "placebo"}
    assert gates["adaptive"].kinds == tuple(sorted(simulated.KINDS))
    np.testing.assert_allclose(gates["adaptive"].weights[1], [0.3, 0.5, 0.2])
    assert gates["adaptive"].spread.value == pytest.approx(0.2)
