"""The answer of a study in one sentence, by fixed rules, and the numbers behind it in the next."""

from collections.abc import Sequence

from aligngpt.study.analysis.analysing import Analysis
from aligngpt.study.analysis.contrasts import Contrast, Verdict
from aligngpt.study.analysis.words import interval, listed, number

_WORDS: dict[Verdict, str] = {
    "helps": "helps",
    "harms": "harms",
    "makes no difference that matters": "makes no difference that matters",
    "inconclusive": "neither clearly helps nor harms",
}


def answer(analysis: Analysis) -> str:
    """The first sentence of the page.

    1. Without a primary contrast of two seeds or more, nothing can be concluded.
    2. If every finding that would speak against the method was made, the levels carry no usable information.
    3. For each primary pair of arms: where it helps, harms, makes no difference that matters, or is inconclusive; see
       `Contrast.verdict`. Pairs of which the same is said are put together.
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
    others: dict[tuple[str, str], list[str]] = {}
    for one, other in analysis.pairs:
        others.setdefault((one, _clauses(analysis, one, other)), []).append(f"`{other}`")
    parts += [f"compared with {listed(names)}, `{one}` {clauses}" for (one, clauses), names in others.items()]
    sentence = "; ".join(parts) + "."
    if analysis.undone:
        done = analysis.planned - analysis.undone
        sentence = f"so far, with {done:,} of {analysis.planned:,} runs done, {sentence}"
    if analysis.quick:
        return f"This study is too small to conclude anything; in it, {sentence}"
    return sentence[0].upper() + sentence[1:]


def numbers(analysis: Analysis) -> str:
    """The second sentence: the primary contrasts at the highest share of bad captions; empty if none has two seeds."""
    highest = analysis.results.noises[-1]
    found = [
        f"`{one.first.arm}` − `{one.second.arm}` is {_measured(one)}"
        for one in analysis.primary
        if one.first.noise == highest and one.log_probability.estimate.is_known
    ]
    if not found:
        return ""
    place = analysis.results.place(highest)
    return f"{place[0].upper()}{place[1:]}, {listed(found)} (with 95 % intervals over seeds)."


def _clauses(analysis: Analysis, one: str, other: str) -> str:
    """What is said of a pair of arms."""
    contrasts = [each for each in analysis.primary if (each.first.arm, each.second.arm) == (one, other)]
    clauses = []
    for verdict, words in _WORDS.items():
        if noises := [each.first.noise for each in contrasts if each.verdict == verdict]:
            clauses.append(f"{words} {_places(analysis, noises)}")
    if absent := [noise for first, second, noise in analysis.absent if (first, second) == (one, other)]:
        clauses.append(f"has no seed in common with it {_places(analysis, absent)}")
    return listed(clauses) if clauses else "was not planned or not run"


def _places(analysis: Analysis, noises: Sequence[float]) -> str:
    """Several shares of bad captions in a sentence."""
    if not analysis.results.has_shares:
        return analysis.results.place(noises[0])
    return f"at {listed([f'{noise:.0%}' for noise in noises])} of bad captions"


def _measured(one: Contrast) -> str:
    """Both outcomes of a contrast."""
    nats, points = one.log_probability.estimate, one.accuracy.estimate
    of_first = f"{number(nats.value, 3, signed=True)} nats"
    of_second = f"{number(points.value, 2, factor=100, signed=True)} points"
    if nats.is_known:
        of_first += f" ({interval((nats.low, nats.high), decimals=3, signed=True)})"
    if points.is_known:
        of_second += f" ({interval((points.low, points.high), factor=100, decimals=2, signed=True)})"
    return f"{of_first} and {of_second}"
