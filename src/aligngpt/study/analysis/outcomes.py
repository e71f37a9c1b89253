"""What a run is measured by: the likelihood of right answers, the share of right answers, and calibration."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from aligngpt.study.analysis.loading import Answered, Floats

ECE_BINS = 10


class Outcome(NamedTuple):
    """An outcome.

    Attributes:
        name: as on the page.
        of: the value of each question, `(questions,)`, whose mean is the outcome.
    """

    name: str
    of: Callable[[Answered], Floats]


LOG_PROBABILITY = Outcome("log-probability of the right answer", lambda run: run.log_probability)
ACCURACY = Outcome("accuracy", lambda run: run.right)
SQUARED_ERROR = Outcome("squared error of the confidence", lambda run: (run.confidence - run.first_right) ** 2)
"""Of the confidence in the first token, that of the most likely one. It is no proper score: of a calibrated model it is
p · (1 − p), so that below one half a less accurate model has less of it."""


def calibration_error(run: Answered, bins: int = ECE_BINS) -> float:
    """The expected calibration error of the first token, 0…1; lower is better.

    Σ over bins of equal width of (share of questions in it) · |mean confidence − share right| (Guo et al., "On
    calibration of modern neural networks", ICML 2017).
    """
    places = np.minimum((run.confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(places, run.confidence - run.first_right, bins)
    return float(np.abs(gaps).sum() / len(places))
