"""The findings that would speak against the method."""

import re
from dataclasses import replace

import pytest
import simulated_study as simulated

from aligngpt.study.analysis.analysing import Analysis, analyse_results
from aligngpt.study.analysis.answer import answer
from aligngpt.study.analysis.contrasts import BOUNDS
from aligngpt.study.analysis.falsifiers import falsifiers
from aligngpt.study.analysis.loading import Results, check_rows
from aligngpt.study.analysis.probes import LEVEL_DIFFERENCE, PICTURE_GAIN, Detector
from aligngpt.study.analysis.student import estimate

ABOUT = simulated.questions()


def outcomes(analysis: Analysis) -> dict[str, str]:
    return {one.name: one.outcome for one in analysis.falsifiers}


def test_nothing_speaks_against_levels_that_work(steep: Results) -> None:
    assert outcomes(analyse_results(steep)) == {"a": "not found", "b": "not found", "c": "not found"}


def test_everything_speaks_against_levels_that_do_not_work(flat: Analysis) -> None:
    assert outcomes(flat) == {"a": "found", "b": "found", "c": "found"}
    assert answer(flat).startswith("The levels carry no usable information here: all findings that would speak against")


def test_too_few_seeds_are_no_finding_against_the_levels() -> None:
    analysis = analyse_results(simulated.results(simulated.Truth(slope=0.0), seeds=3))
    both = next(one for one in analysis.primary if one.second.arm == "placebo")
    points = both.accuracy.estimate
    assert points.low < analysis.bounds.accuracy < points.high
    assert outcomes(analysis) == {"a": "inconclusive", "b": "inconclusive", "c": "inconclusive"}


def test_too_few_seeds_are_no_finding_against_levels_that_work() -> None:
    """A small true effect of the levels, hidden by the noise of a few captions."""
    many = simulated.rows(small := simulated.questions(captions=4), simulated.Truth(slope=0.08), seeds=3)
    analysis = analyse_results(check_rows(many, small))
    slope = next(one for one in analysis.dose if one.condition.arm == "levels-scores").right_slope
    assert slope.low < 0 < slope.high
    assert "found" not in outcomes(analysis).values()


def test_levels_that_mislead_are_not_levels_without_effect() -> None:
    analysis = analyse_results(simulated.results(simulated.Truth(slope=-1.0)))
    last = analysis.falsifiers[-1]
    assert (last.name, last.outcome) == ("c", "not found") and "less likely" in last.why


def test_an_area_above_that_without_levels_by_less_than_matters_is_a_finding(steep: Results) -> None:
    ours, theirs = (
        Detector(steep.pretraining(arm, 0.6), score, estimate([0.5]), {}, dict(enumerate(areas)))
        for arm, score, areas in (
            ("adaptive", LEVEL_DIFFERENCE, (0.710, 0.711, 0.709)),
            ("none", PICTURE_GAIN, (0.7, 0.7, 0.7)),
        )
    )
    found = falsifiers(steep, [], [ours, theirs], BOUNDS)[1]
    assert "+0.010 (+0.008 to +0.012)" in found.why and found.outcome == "found"
    more = ours._replace(by_seed={seed: area + 0.02 for seed, area in ours.by_seed.items()})
    assert falsifiers(steep, [], [more, theirs], BOUNDS)[1].outcome == "not found"


def test_areas_are_of_the_seeds_that_both_have(steep: Results) -> None:
    runs = {condition: dict(by_seed) for condition, by_seed in steep.pretrainings.items()}
    for condition, by_seed in runs.items():
        if condition.arm == "plain":
            del by_seed[0]
    (found,) = (one for one in analyse_results(replace(steep, pretrainings=runs)).falsifiers if one.name == "b")
    numbers = [float(text.replace("−", "-")) for text in re.findall(r"[−+]?\d\.\d{3}", found.why)]
    assert numbers[0] - numbers[1] == pytest.approx(numbers[2], abs=1.1e-3) and "5 seeds" in found.why


def test_without_probe_captions_the_rest_is_analysed() -> None:
    about = replace(ABOUT, probe=None)
    many = [
        row for row in simulated.rows(ABOUT, simulated.Truth(), noises=(0.6,), seeds=3) if "captions_right" not in row
    ]
    analysis = analyse_results(check_rows(many, about))
    assert not analysis.dose and not analysis.detectors and analysis.encoder is None
    assert outcomes(analysis)["b"] == outcomes(analysis)["c"] == "inconclusive"
