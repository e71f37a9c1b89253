"""What levels do to captions, the gate, and the findings that would speak against the method."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simulated_study as simulated

from aligngpt.study.analysis.analysing import Analysis, analyse_results
from aligngpt.study.analysis.answer import answer, numbers
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
from aligngpt.study.pairs import StudyError
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
    about = simulated.questions(captions=240)
    return analyse_results(check_rows(simulated.rows(about, truth, noises=(0.6,), random=3), about))


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
    assert outcomes(analysis) == {"a": "cannot be told", "b": "cannot be told", "c": "cannot be told"}


def test_too_few_seeds_are_no_finding_against_levels_that_work() -> None:
    """A small true effect of the levels, hidden by the noise of a few captions."""
    many = simulated.rows(small := simulated.questions(captions=4), simulated.Truth(slope=0.08), seeds=3)
    analysis = analyse_results(check_rows(many, small))
    slope = next(one for one in analysis.dose if one.condition.arm == "levels-scores").right_slope
    assert slope.low < 0 < slope.high
    assert "found" not in outcomes(analysis).values()


def test_levels_that_mislead_are_not_levels_without_effect() -> None:
    analysis = analyse_results(study(simulated.Truth(slope=-1.0)))
    last = analysis.falsifiers[-1]
    assert (last.name, last.outcome) == ("c", "not found") and "less likely" in last.why


def test_areas_are_of_the_seeds_that_both_have(steep: Results) -> None:
    runs = {condition: dict(by_seed) for condition, by_seed in steep.pretrainings.items()}
    for condition, by_seed in runs.items():
        if condition.arm == "plain":
            del by_seed[0]
    (found,) = (one for one in analyse_results(replace(steep, pretrainings=runs)).falsifiers if one.name == "b")
    numbers = [float(text.replace("−", "-")) for text in re.findall(r"[−+]?\d\.\d{3}", found.why)]
    assert numbers[0] - numbers[1] == pytest.approx(numbers[2], abs=1.1e-3) and "5 seeds" in found.why


def test_what_was_predicted_is_told() -> None:
    """Levels that work, the more the noisier; the same for the other ways to mix them; filter as good."""
    effects = {("adaptive", 0.6): 0.2, ("global", 0.6): 0.2, ("mean", 0.6): 0.3, ("filter", 0.6): 0.21}
    arms = ("none", "adaptive", "global", "mean", "filter")
    truth = simulated.Truth(effects, run_noise=0.002)
    many = simulated.rows(ABOUT, truth, arms=arms, seeds=8)
    more = simulated.Truth({("adaptive", 0.6): 0.5})
    few = simulated.rows(ABOUT, more, arms=("none", "adaptive"), noises=(0.6,), random=1)
    few = [row | {"answers": 500} for row in few if "captions_right" not in row]
    found = {one.number: one for one in analyse_results(check_rows([*many, *few], ABOUT)).predictions}
    assert {number: one.outcome for number, one in found.items()} == {
        "1": "in part",  # At 0 % of bad captions these levels gain as much.
        "2a": "as predicted",
        "2b": "as predicted",
        "3": "as predicted",
        "4": "not as predicted",
        "5": "as predicted",
    }
    assert "+0.033 nats" in found["2a"].why and "+0.3" in found["2b"].why and "3 of 3 steps" in found["3"].why
    assert "`adaptive` − `mean` is −0.08" in found["4"].why and "`adaptive` − `filter` is −0.0" in found["5"].why


def test_what_was_predicted_may_not_come_out() -> None:
    effects = {("adaptive", 0.6): -0.2, ("global", 0.6): 0.2, ("filter", 0.6): -0.5}
    arms = ("none", "adaptive", "global", "filter")
    many = simulated.rows(ABOUT, simulated.Truth(effects, slope=-1.0), arms=arms)
    found = {one.number: one.outcome for one in analyse_results(check_rows(many, ABOUT)).predictions}
    assert found == dict.fromkeys(("1", "2a", "3", "4", "5"), "not as predicted")


def test_of_predictions_only_those_that_were_run_are_told(steep: Results) -> None:
    assert [one.number for one in analyse_results(steep).predictions] == ["1", "3"]


def test_one_seed_shows_no_prediction() -> None:
    many = simulated.rows(ABOUT, simulated.Truth(), arms=("none", "adaptive", "global", "filter"), seeds=1)
    found = analyse_results(check_rows(many, ABOUT)).predictions
    assert {one.outcome for one in found} == {"cannot be told"} and "(1 seed)" in found[0].why


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
    assert answer(analyse_results(steep, planned=planned)).startswith("So far, with 7 of 10 runs done, compared with")


def test_results_of_several_versions_of_the_code_are_told(steep: Results) -> None:
    analysis = analyse_results(replace(steep, codes=("abc", "def")))
    assert analysis.missing == ["The results are from 2 versions of the code: abc, def."]


def test_of_data_of_ones_own_no_share_of_bad_captions_is_told(tmp_path: Path) -> None:
    many = simulated.rows(ABOUT, simulated.Truth({("adaptive", 0.0): 0.1}), noises=(0.0,), seeds=3)
    del many[-1]
    analysis = analyse_results(check_rows(many, ABOUT))
    assert answer(analysis).startswith(
        "Compared with `none` and `placebo`, `adaptive` helps on the captions as they are."
    )
    assert numbers(analysis).startswith("On the captions as they are, `adaptive` − `none` is +0.")
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
