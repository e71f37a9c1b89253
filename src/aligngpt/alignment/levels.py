"""Alignment levels: similarity scores of image–caption pairs divided into N classes, from 1 (worst) to N (best).

This is section 3.2 of the paper (arXiv 2405.14129): sort the pairs by score and divide them into N buckets.
"""

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write

LevelMethod = Literal["quantile", "width"]
LEVEL_METHODS: tuple[str, ...] = get_args(LevelMethod)


class LevelsError(AlignGPTError):
    """Scores cannot be divided into levels, or a file does not contain levels."""


@dataclass(frozen=True)
class ScoreStatistics:
    """Statistics of the scores that the borders were fitted to, with the population standard deviation."""

    count: int
    mean: float
    standard_deviation: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class AlignmentLevels:
    """The borders between the levels.

    Attributes:
        borders: N - 1 scores in strictly ascending order; a score equal to a border belongs to the level above it.
        method: how the borders were found: `quantile` (levels of equal frequency) or `width` (of equal width).
        statistics: statistics of the scores that the borders were fitted to.
        rank_error: largest deviation of the share of scores below a border from its target, 0…1, for each border at
            99 % confidence and apart from what equal scores do to it; 0 if exact.

    Raises:
        LevelsError: there are no borders, they are not finite or not ascending, or the method is unknown.
    """

    borders: tuple[float, ...]
    method: LevelMethod
    statistics: ScoreStatistics
    rank_error: float = 0.0

    def __post_init__(self) -> None:
        if not self.borders or not all(map(math.isfinite, self.borders)):
            raise LevelsError(f"expected one or more finite borders, found {list(self.borders)}")
        if any(low >= high for low, high in pairwise(self.borders)):
            raise LevelsError(f"expected borders in strictly ascending order, found {list(self.borders)}")
        if self.method not in LEVEL_METHODS:
            raise LevelsError(f"the method must be one of {', '.join(LEVEL_METHODS)}, found {self.method!r}")

    @property
    def num_levels(self) -> int:
        """N."""
        return len(self.borders) + 1

    def assign(self, scores: ArrayLike) -> NDArray[np.int64]:
        """The level 1…N of each score, with the shape of `scores`.

        Raises:
            LevelsError: a score is NaN.
        """
        values = np.asarray(scores, dtype=np.float64)
        if np.isnan(values).any():
            raise LevelsError("a score is NaN and has no level; exclude such pairs")
        return np.searchsorted(self.borders, values, side="right").astype(np.int64) + 1

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, atomically; `load` returns exactly the same numbers."""
        with atomic_write(path) as file:
            json.dump(asdict(self), file, indent=2)
            file.write("\n")

    @classmethod
    def load(cls, path: str | Path) -> "AlignmentLevels":
        """Read a file written by `save`.

        Raises:
            LevelsError: the file cannot be read, or was not written by `save`.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(
                borders=tuple(_number(border) for border in content["borders"]),
                method=content["method"],
                statistics=_statistics(content["statistics"]),
                rank_error=_number(content.get("rank_error", 0.0)),
            )
        except OSError as error:
            raise LevelsError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, LevelsError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise LevelsError(f"{path} is not a levels file ({what}); write it again with `aligngpt levels`") from error


def fit_levels(scores: ArrayLike, num_levels: int = 8, method: LevelMethod = "quantile") -> AlignmentLevels:
    """Find the borders of N levels for these scores.

    `quantile`: every level gets as close to 1/N of the scores as possible. Equal scores are never split, so the counts
    of the levels differ by at most one if all scores differ, and by runs of equal scores at the borders otherwise.
    `width`: every level spans 1/N of the range from the lowest to the highest score, and may be empty.

    Args:
        scores: finite numbers, of any shape.
        num_levels: N, at least 2.
        method: `quantile`, as in the paper, or `width`.

    Raises:
        LevelsError: a score is NaN or infinite, or there are too few distinct scores for N levels.
    """
    values = np.sort(np.asarray(scores, dtype=np.float64), axis=None)
    if not values.size:
        raise LevelsError("there are no scores to divide into levels; score some pairs first")
    if unusable := int(np.count_nonzero(~np.isfinite(values))):
        raise LevelsError(f"{unusable} of {values.size} scores are NaN or infinite; exclude these pairs")
    borders = find_borders(values, num_levels, method)
    statistics = ScoreStatistics(
        count=values.size,
        mean=float(values.mean()),
        standard_deviation=float(values.std()),
        minimum=float(values[0]),
        maximum=float(values[-1]),
    )
    return AlignmentLevels(borders, method, statistics)


def find_borders(
    ordered: NDArray[np.float64], num_levels: int, method: LevelMethod, weights: NDArray[np.int64] | None = None
) -> tuple[float, ...]:
    """The borders that `fit_levels` uses.

    Args:
        ordered: finite scores in ascending order, `(scores,)`, at least one.
        num_levels: N, at least 2.
        method: see `fit_levels`.
        weights: multiplicity of each score, `(scores,)`; 1 if None.

    Raises:
        LevelsError: there are too few distinct scores for N levels, or an argument is invalid.
    """
    if num_levels < 2:
        raise LevelsError(f"at least 2 levels are needed, got {num_levels}")
    if method not in LEVEL_METHODS:
        raise LevelsError(f"the method must be one of {', '.join(LEVEL_METHODS)}, got {method!r}")
    if method == "width":
        return tuple(_width_borders(ordered, num_levels).tolist())
    return tuple(_quantile_borders(ordered, num_levels, weights).tolist())


def level_counts(levels: ArrayLike, num_levels: int) -> NDArray[np.int64]:
    """The number of pairs in each level, `(num_levels,)`: entry 0 is level 1.

    Raises:
        LevelsError: a level is not in 1…N.
    """
    found = np.asarray(levels, dtype=np.int64).ravel()
    if found.size and not (found.min() >= 1 and found.max() <= num_levels):
        raise LevelsError(f"expected levels 1 to {num_levels}, found {found.min()} to {found.max()}")
    return np.bincount(found - 1, minlength=num_levels).astype(np.int64)


def thin_levels(counts: ArrayLike) -> list[int]:
    """The levels 1…N that have too few pairs to train on well: less than a quarter of an equal share.

    Args:
        counts: number of pairs in each level, `(num_levels,)`.
    """
    found = np.asarray(counts, dtype=np.int64)
    return (np.flatnonzero(found < found.sum() / (4 * len(found))) + 1).tolist()


def roc_auc(scores: ArrayLike, is_right: ArrayLike) -> float:
    """Probability that a right pair scores higher than a wrong one; ties count half (Mann–Whitney U, by ranks).

    Args:
        scores: one score per pair, `(pairs,)`.
        is_right: whether each pair is right, `(pairs,)`.

    Raises:
        LevelsError: a score is NaN, the lengths differ, or all pairs are right or all are wrong.
    """
    values, right = np.asarray(scores, dtype=np.float64), np.asarray(is_right, dtype=bool)
    if values.shape != right.shape or values.ndim != 1 or np.isnan(values).any():
        raise LevelsError(
            f"expected one number and one truth value per pair, found shapes {values.shape} and {right.shape}"
        )
    rights = int(right.sum())
    wrongs = right.size - rights
    if not rights or not wrongs:
        raise LevelsError(f"both right and wrong pairs are needed, found {rights} right and {wrongs} wrong ones")
    _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(ties) - (ties - 1) / 2
    return float((mean_rank[place[right]].sum() - rights * (rights + 1) / 2) / (rights * wrongs))


def _quantile_borders(
    ordered: NDArray[np.float64], num_levels: int, weights: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """Borders as close to the N-quantiles of the scores as equal scores allow."""
    # A cut is only possible between two distinct scores; it is identified by the number of scores below it.
    places = np.flatnonzero(ordered[1:] > ordered[:-1]) + 1
    cuts = places if weights is None else np.cumsum(weights)[places - 1]
    total = ordered.size if weights is None else int(weights.sum())
    if cuts.size < num_levels - 1:
        raise _too_few(cuts.size + 1, num_levels)
    inner = np.arange(num_levels - 1)
    wanted = np.round((inner + 1) * (total / num_levels)).astype(np.int64)
    above = np.searchsorted(cuts, wanted).clip(max=cuts.size - 1)
    below = (above - 1).clip(min=0)
    chosen = np.where(wanted - cuts[below] < cuts[above] - wanted, below, above)
    # Long runs of equal scores attract several quantiles to the same cut: spread them over the neighbouring cuts.
    chosen = np.maximum.accumulate(chosen - inner) + inner
    chosen = np.minimum(chosen, cuts.size - (num_levels - 1) + inner)
    low, high = ordered[places[chosen] - 1], ordered[places[chosen]]
    middle = low / 2 + high / 2
    # Between adjacent floating-point numbers the midpoint is rounded, possibly down to the lower one.
    return np.where((low < middle) & (middle <= high), middle, high)


def _width_borders(ordered: NDArray[np.float64], num_levels: int) -> NDArray[np.float64]:
    borders = np.linspace(ordered[0], ordered[-1], num_levels + 1)
    if not (borders[1:] > borders[:-1]).all():
        raise _too_few(np.unique(ordered).size, num_levels)
    return borders[1:-1]


def _too_few(different: int, num_levels: int) -> LevelsError:
    return LevelsError(
        f"the scores have only {different} distinguishable values, too few for {num_levels} levels; ask for fewer "
        "levels or score more pairs"
    )


def _statistics(content: dict[str, Any]) -> ScoreStatistics:
    count = content["count"]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise LevelsError(f"`count` must be a number of scores, found {count!r}")
    return ScoreStatistics(
        count=count,
        **{name: _number(content[name]) for name in ("mean", "standard_deviation", "minimum", "maximum")},
    )


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise LevelsError(f"expected a finite number, found {value!r}")
    return float(value)
