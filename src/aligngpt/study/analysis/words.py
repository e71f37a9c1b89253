"""Numbers and tables of a study's page, as Markdown."""

import math
from collections.abc import Sequence

from aligngpt.study.analysis.student import Estimate

UNKNOWN = "–"


def number(value: float, decimals: int, *, factor: float = 1, signed: bool = False) -> str:
    """A number with a proper minus sign and no negative zero; a dash if it is not finite."""
    if not math.isfinite(value):
        return UNKNOWN
    text = f"{factor * value:+z.{decimals}f}" if signed else f"{factor * value:z.{decimals}f}"
    return text.replace("-", "−")


def mean_and_interval(found: Estimate, *, decimals: int, factor: float = 1, signed: bool = False) -> str:
    """A mean with its 95 % interval, `+0.12 (+0.02 to +0.22)`; says so if there is no interval."""
    value = number(found.value, decimals, factor=factor, signed=signed)
    if not found.is_known:
        return f"{value} (no interval)"
    return f"{value} ({interval((found.low, found.high), decimals=decimals, factor=factor, signed=signed)})"


def interval(ends: tuple[float, float], *, decimals: int, factor: float = 1, signed: bool = False) -> str:
    """The two ends of an interval; a dash if it is not known."""
    if not all(map(math.isfinite, ends)):
        return UNKNOWN
    return " to ".join(number(end, decimals, factor=factor, signed=signed) for end in ends)


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def seeds_in_words(number: int) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} seed{'' if number == 1 else 's'}"


def p_value(value: float) -> str:
    """A p-value of three decimals; a dash if it was not computed."""
    if math.isnan(value):
        return UNKNOWN
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in GitHub-flavoured Markdown; text in cells cannot break it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
