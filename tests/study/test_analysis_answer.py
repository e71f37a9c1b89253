"""The first sentences of the page."""

from dataclasses import replace
from pathlib import Path

import simulated_study as simulated

from aligngpt.study.analysis.analysing import Analysis, analyse_results
from aligngpt.study.analysis.answer import answer, numbers
from aligngpt.study.analysis.loading import Results, check_rows
from aligngpt.study.page import write_findings

ABOUT = simulated.questions()


def test_one_finding_against_the_levels_is_not_all(flat: Analysis) -> None:
    two = [flat.falsifiers[0]._replace(outcome="not found"), *flat.falsifiers[1:]]
    assert not answer(replace(flat, falsifiers=two)).startswith("The levels carry no usable information")


def test_one_seed_concludes_nothing() -> None:
    analysis = analyse_results(simulated.results(simulated.Truth({("adaptive", 0.6): 1.0}), seeds=1))
    assert {one.outcome for one in analysis.falsifiers} == {"inconclusive"}
    assert {one.verdict for one in analysis.primary} == {"inconclusive"}
    assert answer(analysis).startswith("Nothing can be concluded: the primary contrasts have only one seed")


def test_no_common_seed_concludes_nothing(steep: Results) -> None:
    analysis = analyse_results(steep, pairs=[("oracle", "none")])
    assert answer(analysis).startswith("Nothing can be concluded: the primary contrasts have no seed")


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
