"""Likelihoods of captions and of yes and no, at chosen alignment levels: what all of alignment's measures rest on."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aligngpt.data.images.reference import Picture
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.alignment_measures.caption_sets import CaptionSet
from aligngpt.inference.requests import Likelihood, Request
from aligngpt.progress import Meter

DESCRIBE = "Describe this image."
YES, NO = "Yes", "No"

Level = int | None
"""A level 1…N to force; None for the gate."""

Numbers = NDArray[np.float64]


class MeasureError(AlignGPTError):
    """A measure cannot be computed from what was given."""


class Rating(Protocol):
    """What rates answers: `Engine`, or anything with its method."""

    def likelihood(
        self, request: Request, answers: Sequence[str], *, levels: Sequence[Level] | None = None
    ) -> list[list[Likelihood]]:
        """Per level, one entry per answer."""
        ...


def caption_likelihoods(
    engine: Rating,
    sets: Sequence[CaptionSet],
    levels: Sequence[Level] = (None,),
    prompt: str = DESCRIBE,
    on_rated: Callable[[int, Numbers], None] = lambda _, __: None,
) -> list[Numbers]:
    """The log-probability of every caption of a set for each of its pictures.

    Args:
        engine: the model.
        sets: pictures and captions.
        levels: levels to force one after another, None for the gate.
        prompt: what the captions answer.
        on_rated: called with the number of each set and its table as soon as it is rated.

    Returns:
        Per set, natural logarithms `(levels, pictures, captions)`, summed over the tokens and the end of the turn.

    Raises:
        ImageError: a picture is missing or cannot be decoded.
        EngineError: the model does not have a level.
    """
    found = []
    with Meter("rating captions", len(sets), unit="sets") as meter:
        for one in sets:
            pictures = [
                [
                    [item.log_probability for item in row]
                    for row in _rate(engine, prompt, picture.open(), one.captions, levels)
                ]
                for picture in one.pictures
            ]
            found.append(np.array(pictures, dtype=np.float64).swapaxes(0, 1))
            on_rated(len(found) - 1, found[-1])
            meter.advance(1)
    return found


def yes_probabilities(
    engine: Rating,
    questions: Sequence[tuple[str, Picture]],
    levels: Sequence[Level] = (None,),
    on_rated: Callable[[int, Numbers], None] = lambda _, __: None,
) -> Numbers:
    """The probability of "Yes" among "Yes" and "No", each with the end of the turn.

    Args:
        engine: the model.
        questions: each with its picture.
        levels: levels to force one after another, None for the gate.
        on_rated: called with the number of each question and its probabilities, `(levels,)`, as soon as it is rated.

    Returns:
        `(levels, questions)`, 0…1.

    Raises:
        ImageError: a picture is missing or cannot be decoded.
        EngineError: the model does not have a level.
    """
    found = np.empty((len(levels), len(questions)))
    with Meter("rating yes and no", len(questions), unit="questions") as meter:
        for place, (question, picture) in enumerate(questions):
            for level, (yes, no) in enumerate(_rate(engine, question, picture.open(), (YES, NO), levels)):
                # The smaller exponent is taken, which does not overflow.
                gap = yes.log_probability - no.log_probability
                small = np.exp(-abs(gap))
                found[level, place] = (1.0 if gap >= 0 else small) / (1.0 + small)
            on_rated(place, found[:, place])
            meter.advance(1)
    return found


def _rate(
    engine: Rating, prompt: str, picture: Image.Image, answers: Sequence[str], levels: Sequence[Level]
) -> list[list[Likelihood]]:
    return engine.likelihood(Request.ask(prompt, picture), answers, levels=levels)
