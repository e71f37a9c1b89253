"""What is missing from a study, in sentences."""

from collections.abc import Iterable, Sequence

from aligngpt.study.analysis.loading import Condition, Results
from aligngpt.study.arms import ARMS
from aligngpt.study.plan import Run


def describe(results: Results, condition: Condition) -> str:
    """A condition in words, for a reader."""
    answers = "all answers" if condition.answers is None else f"{condition.answers:,} answers"
    levels = f"{condition.levels} levels, " if ARMS[condition.arm].has_levels else ""
    return f"`{condition.arm}` {results.place(condition.noise)}, {levels}{answers}"


def gaps(results: Results, absent: Iterable[tuple[str, str, float]], planned: Sequence[Run]) -> list[str]:
    """Name what is missing.

    Args:
        results: of the study so far.
        absent: primary pairs of arms, and the share of bad captions, that have no seed in common.
        planned: the runs of the plan, if it is known; without, conditions are compared with the one that has the most
            seeds.
    """
    found = [
        f"No seed has both `{one}` and `{other}` {results.place(noise)}; this primary contrast is missing."
        for one, other, noise in absent
    ]
    found += [
        f"{describe(results, condition)}, seed {seed}: left out, because {reason}."
        for condition, by_seed in results.failed.items()
        for seed, reason in sorted(by_seed.items())
    ]
    if planned:
        found += _unfinished(results, planned)
    else:
        most = max(map(len, results.runs.values()))
        found += [
            f"{describe(results, condition)}: {len(runs)} of {most} seeds."
            for condition, runs in results.runs.items()
            if len(runs) < most
        ]
    if len(results.codes) > 1:
        found.append(f"The results are from {len(results.codes)} versions of the code: {', '.join(results.codes)}.")
    return found


def _unfinished(results: Results, planned: Sequence[Run]) -> list[str]:
    wanted: dict[Condition, set[int]] = {}
    for run in planned:
        condition = Condition(run.arm_name, round(run.noise, 6), run.levels, run.answers)
        wanted.setdefault(condition, set()).add(run.seed)
    sentences = []
    for condition, seeds in wanted.items():
        missing = seeds - results.runs.get(condition, {}).keys() - results.failed.get(condition, {}).keys()
        if missing:
            done = len(seeds) - len(missing)
            names = ", ".join(map(str, sorted(missing)))
            sentences.append(f"{describe(results, condition)}: {done} of {len(seeds)} seeds; missing: {names}.")
    return sentences
