"""What was predicted, and what came out."""

import pytest
import simulated_study as simulated

from aligngpt.study.analysis.analysing import analyse_results
from aligngpt.study.analysis.contrasts import BOUNDS
from aligngpt.study.analysis.loading import Results, check_rows
from aligngpt.study.analysis.predictions import predictions
from aligngpt.study.analysis.probes import DoseResponse
from aligngpt.study.analysis.student import estimate

ABOUT = simulated.questions()


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
    assert {one.outcome for one in found} == {"inconclusive"} and "(1 seed)" in found[0].why


@pytest.mark.parametrize(
    ("without_noise", "outcome"),
    [
        ((0.01, 0.02, 0.0), "as predicted"),
        ((1.0, 2.0, 0.0), "inconclusive"),  # 0 is within the interval, and so is twice the gain with noise.
        ((0.5, 0.6, 0.4), "in part"),
    ],
)
def test_no_difference_is_shown_by_an_interval_within_bounds(without_noise: tuple[float, ...], outcome: str) -> None:
    results = check_rows(simulated.rows(ABOUT, simulated.Truth(), seeds=3), ABOUT)
    gains = {0.6: (0.51, 0.52, 0.5), 0.0: without_noise}
    flat = estimate([0.0, 0.1])
    dose = [
        DoseResponse(results.pretraining("adaptive", noise), (flat,), (flat,), flat, flat, flat, estimate(of_seeds))
        for noise, of_seeds in gains.items()
    ]
    first = predictions(results, dose, BOUNDS)[0]
    assert first.outcome == outcome and "within ±0.06 nats" in first.rule
    assert first.why.count("(3 seeds)") == 2
