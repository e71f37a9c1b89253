"""The answer of a study in one sentence, by fixed rules."""

from aligngpt.study.analysis.analysing import Analysis
from aligngpt.study.analysis.contrasts import Contrast, Verdict
from aligngpt.study.analysis.words import interval, listed, number

_ORDER: tuple[Verdict, ...] = ("helps", "harms", "makes no difference that matters", "cannot be told")


def answer(analysis: Analysis) -> str:
    """The first sentence of the page.

    1. Without a primary contrast of two seeds or more, nothing can be concluded.
    2. If every finding that would speak against the method was made, the levels carry no usable information.
    3. For each primary pair of arms: where it helps, harms, makes no difference that matters, or cannot be told; see
       `Contrast.verdict`.
    """
    known = [one for one in analysis.primary if one.log_probability.estimate.is_known]
    if not known:
        most = max((len(one.seeds) for one in analysis.primary), default=0)
        seeds = "no seed" if most == 0 else "only one seed" if most == 1 else "no spread over seeds"
        return f"Nothing can be concluded: the primary contrasts have {seeds}, so their uncertainty is unknown."
    parts = []
    if all(one.outcome == "found" for one in analysis.falsifiers):
        parts.append(
            "the levels carry no usable information here: all findings that would speak against them were made"
        )
    parts += [_pair(analysis, one, other) for one, other in analysis.pairs]
    sentence = "; ".join(parts) + "."
    if analysis.quick:
        return f"This study is too small to conclude anything; in it, {sentence}"
    return sentence if sentence.startswith("`") else sentence[0].upper() + sentence[1:]


def _pair(analysis: Analysis, one: str, other: str) -> str:
    contrasts = [each for each in analysis.primary if (each.first.arm, each.second.arm) == (one, other)]
    absent = [noise for first, second, noise in analysis.absent if (first, second) == (one, other)]
    clauses = []
    for verdict in _ORDER:
        places = [_place(analysis, each) for each in contrasts if each.verdict == verdict]
        if verdict == "cannot be told":
            places += [f"{analysis.results.place(noise)} (no common seed)" for noise in absent]
        if places:
            words = "cannot be told to help or not" if verdict == "cannot be told" else verdict
            clauses.append(f"{words} {listed(places)}")
    return f"`{one}` compared with `{other}` {listed(clauses or ['was not planned or not run'])}"


def _place(analysis: Analysis, one: Contrast) -> str:
    """Where a contrast is, with both outcomes."""
    nats, points = one.log_probability.estimate, one.accuracy.estimate
    of_first = f"{number(nats.value, 3, signed=True)} nats"
    of_second = f"{number(points.value, 2, factor=100, signed=True)} points of accuracy"
    if nats.is_known:
        of_first += f", {interval((nats.low, nats.high), decimals=3, signed=True)}"
    if points.is_known:
        of_second += f", {interval((points.low, points.high), factor=100, decimals=2, signed=True)}"
    return f"{analysis.results.place(one.first.noise)} ({of_first}; {of_second})"
