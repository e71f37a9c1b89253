"""The columns that scores come from: one, or several with weights; and what a list of ratings in a column means."""

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aligngpt.scoring.score_files import ScoresError

ScoreColumns = str | Mapping[str, float] | None
"""A score column, several with their weights, or None for the default one."""

NEAR_NAMES = 3


def parse_columns(given: Sequence[str]) -> ScoreColumns:
    """The columns in values of `--score-column`: one `NAME`, or several `NAME=WEIGHT`.

    The weight stands after the last equals sign, so a name may contain others. A single value is always a name.

    Raises:
        ScoresError: several values without weights, a weight that is not a finite number or is 0, a column given
            twice, or weights that differ too much for their shares to be computed.
    """
    if len(given) < 2:
        return given[0] if given else None
    weights: dict[str, float] = {}
    for text in given:
        name, equals, number = text.rpartition("=")
        if not equals or not name:
            raise ScoresError(
                f"several score columns need a weight each, as in --score-column {text.strip('=')}=0.5; found "
                f"--score-column {text}"
            )
        if name in weights:
            raise ScoresError(f"the score column {name} is given twice; give each column once, with its whole weight")
        weights[name] = _weight(number, name)
    check_weights(weights)
    return weights


def check_weights(weights: Mapping[str, float]) -> None:
    """Check the weights of several columns.

    Raises:
        ScoresError: there are fewer than two, one is 0 or not finite, or they add up to infinity.
    """
    if len(weights) < 2:
        raise ScoresError(f"weights are for two or more score columns, found {len(weights)}; name the column alone")
    for name, weight in weights.items():
        _weight(str(weight), name)
    if not math.isfinite(sum(map(abs, weights.values()))):
        raise ScoresError("the weights of the score columns are too large to add up; use numbers such as 0.7 and 0.3")


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """A question in brackets that suggests existing names like a given one; empty if there are none."""
    lower = {other.lower(): other for other in names}
    near = [lower[one] for one in difflib.get_close_matches(name.lower(), lower, NEAR_NAMES)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def is_ratings(type: pa.DataType) -> bool:
    """Whether a column contains lists of numbers, such as a rating of each turn of a conversation."""
    is_list = pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)
    return bool(is_list and is_number(type.value_type))


def is_number(type: pa.DataType) -> bool:
    """Whether a column contains numbers."""
    return bool(pa.types.is_floating(type) or pa.types.is_integer(type) or pa.types.is_decimal(type))


def scores_of(column: pa.Array) -> NDArray[np.float64]:
    """The score of each row, `(rows,)`; NaN or infinite for none. That of a list is its `lowest_rating`."""
    if is_ratings(column.type):
        return np.array([lowest_rating(ratings) for ratings in column.to_pylist()], dtype=np.float64)
    found: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return found


def lowest_rating(ratings: Sequence[float | None] | None) -> float:
    """The score of a record whose turns are rated one by one: the lowest rating, as in FineVision's `relevance_min`.

    A record is trained on as a whole, so a bad turn must not hide behind good ones.

    Returns:
        NaN if there is no rating or one is missing: the missing one might be the lowest.
    """
    if not ratings:
        return math.nan
    found = [math.nan if one is None else float(one) for one in ratings]
    return min(found) if all(map(math.isfinite, found)) else math.nan


def _weight(text: str, name: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        raise ScoresError(
            f"the weight of the score column {name} must be a number other than 0, such as 0.5 (or -0.5 where lower is "
            f"better), found {text!r}"
        )
    return weight
