"""What was expected before the study was run, and whether it came out so."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from aligngpt.study.analysis.contrasts import SIGNIFICANT, Bounds, Contrast, contrast
from aligngpt.study.analysis.falsifiers import SLOPE
from aligngpt.study.analysis.gates import gates
from aligngpt.study.analysis.loading import Results, RunResult
from aligngpt.study.analysis.outcomes import LOG_PROBABILITY
from aligngpt.study.analysis.probes import DoseResponse
from aligngpt.study.analysis.student import Estimate, equivalence, estimate
from aligngpt.study.analysis.words import listed, mean_and_interval, seeds_in_words

Outcome = Literal["as predicted", "in part", "not as predicted", "inconclusive"]


class Prediction(NamedTuple):
    """One of these expectations.

    Attributes:
        number: of the prediction.
        rule: what was expected.
        outcome: what came out.
        why: the numbers, in a sentence.
    """

    number: str
    rule: str
    outcome: Outcome
    why: str


def predictions(results: Results, dose: Sequence[DoseResponse], bounds: Bounds) -> list[Prediction]:
    """Those whose runs are there; the others are left out."""
    made: list[Callable[[], Prediction | None]] = [
        lambda: _captions_gain(results, dose),
        lambda: _grows_with_noise(results),
        lambda: _shrinks_with_answers(results),
        lambda: _monotone(results, dose),
        lambda: _gate_is_constant(results, bounds),
        lambda: _filter_is_as_good(results, bounds),
    ]
    return [found for make in made if (found := make()) is not None]


def _captions_gain(results: Results, dose: Sequence[DoseResponse]) -> Prediction | None:
    highest, lowest = results.noises[-1], results.noises[0]
    gains = {
        one.condition.noise: one.gain
        for one in dose
        if one.condition == results.pretraining("adaptive", one.condition.noise)
    }
    most, least = gains.get(highest), gains.get(lowest)
    if most is None or (least is None and lowest < highest):
        return None
    rule = (
        "After pre-training, right captions are more likely under level N of a model with levels than under one "
        f"without, {results.place(highest)}"
    )
    why = f"{results.place(highest).capitalize()} the difference is {_nats(most)} ({seeds_in_words(most.seeds)})"
    held = [_above(most)]
    if least is not None and lowest < highest:
        # From the first level to the last, the smallest slope that matters adds up to this.
        bound = SLOPE * (results.levels - 1)
        rule += f"; {results.place(lowest)} there is no difference: the 95 % interval is within ±{bound:.2g} nats"
        why += f", {results.place(lowest)} {_nats(least)} ({seeds_in_words(least.seeds)})"
        held.append(_none(least, bound))
    return Prediction("1", f"{rule}.", _together(held), f"{why}.")


def _grows_with_noise(results: Results) -> Prediction | None:
    noises = results.noises
    by_noise = [_gain_by_seed(results, noise, results.answers) for noise in noises]
    seeds = sorted(set.intersection(*(set(one) for one in by_noise)))
    if len(noises) < 2 or not seeds:
        return None
    gains = np.array([[one[seed] for one in by_noise] for seed in seeds])
    centred = np.array(noises) - np.mean(noises)
    # Per 10 points of the share, which is easier to imagine than per 100.
    slope = estimate(0.1 * gains @ centred / (centred @ centred))
    return Prediction(
        "2a",
        "The gain of `adaptive` over `none` grows with the share of bad captions.",
        _together([_above(slope)]),
        f"Per 10 points more of bad captions it changes by {_nats(slope)} ({seeds_in_words(len(seeds))}).",
    )


def _shrinks_with_answers(results: Results) -> Prediction | None:
    highest = results.noises[-1]
    usual = _gain_by_seed(results, highest, results.answers)
    numbers = {condition.answers for condition in results.runs if condition.answers is not None} - {results.answers}
    few = min((number for number in numbers if number is not None), default=None)
    if few is None or (results.answers is not None and few >= results.answers):
        return None
    gains = _gain_by_seed(results, highest, few)
    seeds = sorted(usual.keys() & gains.keys())
    if not seeds:
        return None
    change = estimate([gains[seed] - usual[seed] for seed in seeds])
    all_of_them = "all" if results.answers is None else f"{results.answers:,}"
    return Prediction(
        "2b",
        "The gain of `adaptive` over `none` shrinks with the number of answers in instruction tuning.",
        _together([_above(change)]),
        f"{results.place(highest).capitalize()} the gain with {few:,} answers minus that with {all_of_them} is "
        f"{_nats(change)} ({seeds_in_words(len(seeds))}).",
    )


def _monotone(results: Results, dose: Sequence[DoseResponse]) -> Prediction | None:
    highest = results.noises[-1]
    one = next((one for one in dose if one.condition == results.pretraining("adaptive", highest)), None)
    if one is None:
        return None
    means = [level.value for level in one.right]
    rises = sum(later > earlier for earlier, later in pairwise(means))
    outcome = _together([_above(one.right_slope)])
    if outcome == "as predicted" and rises < len(means) - 1:
        outcome = "in part"
    return Prediction(
        "3",
        "The likelihood of right captions rises at every step of the forced level, from 1 to N.",
        outcome,
        f"{results.place(highest).capitalize()} it rises at {rises} of {len(means) - 1} steps, by "
        f"{_nats(one.right_slope)} per level ({seeds_in_words(one.right_slope.seeds)}).",
    )


def _gate_is_constant(results: Results, bounds: Bounds) -> Prediction | None:
    highest = results.noises[-1]
    ours = results.condition("adaptive", highest)
    pairs = {other: contrast(results, ours, results.condition(other, highest)) for other in ("global", "mean")}
    found = {other: both for other, both in pairs.items() if both is not None}
    if not found:
        return None
    held = [_equal(both, bounds) for both in found.values()]
    spread = next((one.spread for one in gates(results) if one.condition == ours), None)
    of_gate = (
        ""
        if spread is None
        else " The mean weight of a level differs between kinds of question by up to "
        f"{mean_and_interval(spread, decimals=2)}, for which the prediction has no bound."
    )
    numbers = ", ".join(
        f"`adaptive` − `{other}` is {_nats(both.log_probability.estimate)} and "
        f"{mean_and_interval(both.accuracy.estimate, factor=100, decimals=2, signed=True)} points "
        f"({seeds_in_words(len(both.seeds))})"
        for other, both in found.items()
    )
    return Prediction(
        "4",
        f"After instruction tuning {listed([f'`{one}`' for one in ('adaptive', *found)])} do not differ: the gate "
        "is close to a constant.",
        _together(held),
        f"{results.place(highest).capitalize()} {numbers}.{of_gate}",
    )


def _filter_is_as_good(results: Results, bounds: Bounds) -> Prediction | None:
    highest = results.noises[-1]
    both = contrast(results, results.condition("adaptive", highest), results.condition("filter", highest))
    if both is None:
        return None
    nats = both.log_probability.estimate
    held = None if not nats.is_known else True if nats.high < bounds.nats else False if nats.low > 0 else None
    return Prediction(
        "5",
        f"`filter` is at least as good as levels: `adaptive` is not better by {bounds.nats:g} nats or more.",
        _together([held]),
        f"{results.place(highest).capitalize()} `adaptive` − `filter` is {_nats(nats)} "
        f"({seeds_in_words(len(both.seeds))}).",
    )


def _gain_by_seed(results: Results, noise: float, answers: int | None) -> dict[int, float]:
    """The mean log-probability of `adaptive` minus that of `none`, by seed."""
    ours, theirs = (results.condition(arm, noise)._replace(answers=answers) for arm in ("adaptive", "none"))
    one, other = results.runs.get(ours, {}), results.runs.get(theirs, {})
    return {seed: _mean(results, one[seed]) - _mean(results, other[seed]) for seed in one.keys() & other.keys()}


def _mean(results: Results, run: RunResult) -> float:
    return float(LOG_PROBABILITY.of(run.answers[results.questions.first]).mean())


def _equal(both: Contrast, bounds: Bounds) -> bool | None:
    """Whether two arms are equivalent; False if the first outcome differs; None if neither is shown."""
    nats, points = both.log_probability.estimate, both.accuracy.estimate
    if max(equivalence(nats, bounds.nats), equivalence(points, bounds.accuracy)) < SIGNIFICANT:
        return True
    return False if nats.p < SIGNIFICANT else None


def _above(found: Estimate) -> bool | None:
    """Whether a mean is above 0; None if its interval contains 0."""
    return None if found.low <= 0 <= found.high else found.low > 0


def _none(found: Estimate, bound: float) -> bool | None:
    """Whether a mean is within ±`bound`; False if it is not 0 and may be beyond; None if neither is shown."""
    if -bound < found.low and found.high < bound:
        return True
    return None if found.low <= 0 <= found.high else False


def _together(held: Sequence[bool | None]) -> Outcome:
    if any(one is False for one in held):
        return "in part" if any(held) else "not as predicted"
    return "as predicted" if all(held) else "inconclusive"


def _nats(found: Estimate) -> str:
    value, _, interval = mean_and_interval(found, decimals=3, signed=True).partition(" ")
    return f"{value} nats {interval}"
