"""Ratings of a record's answers, as in FineVision: answers rated too low are read, but not learned from."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.sample import Sample

RATINGS_SUFFIX = "_ratings"


class Lowest(NamedTuple):
    """The lowest ratings of answers that are learned from, by name, and whether every record must have them."""

    ratings: Mapping[str, float] = {}
    needed: bool = False

    def applied_to(self, sample: Sample, record: Mapping[str, Any]) -> Sample:
        """The sample as it is learned from; see `without_low_ratings`.

        Raises:
            RecordError: see `without_low_ratings`.
        """
        return without_low_ratings(sample, record, self.ratings, needed=self.needed) if self.ratings else sample


def without_low_ratings(
    sample: Sample, record: Mapping[str, Any], lowest: Mapping[str, float], *, needed: bool = True
) -> Sample:
    """The sample with the answers that are rated too low as context only.

    Args:
        sample: the sample of the record.
        record: has, for each name in `lowest`, a list with a rating of each answer, such as `relevance_ratings`.
        lowest: the lowest rating an answer is learned from, by name (`relevance`). An answer whose rating is missing
            (null) is not learned from.
        needed: whether a record must have each of these ratings; if not, those it lacks leave it unchanged.

    Raises:
        RecordError: `no_rating`, the record lacks the ratings; `rating`, they are not numbers or not as many as the
            answers; or `low_rating`, all answers are rated too low.
    """
    answers = range(1, len(sample.turns), 2)
    low: set[int] = set(sample.context)
    for name, least in lowest.items():
        field = name + RATINGS_SUFFIX
        ratings = record.get(field)
        if ratings is None and not needed:
            continue
        if ratings is None:
            raise RecordError("no_rating", f"the record has no `{field}`, which `min_ratings` in the recipe asks for")
        if not isinstance(ratings, list) or not all(_is_rating(one) for one in ratings):
            raise RecordError("rating", f"`{field}` must be a list of numbers, found {ratings!r:.80}")
        if len(ratings) != len(answers):
            raise RecordError("rating", f"`{field}` has {len(ratings)} ratings, but there are {len(answers)} answers")
        low.update(turn for turn, one in zip(answers, ratings, strict=True) if one is None or one < least)
    if len(low) == len(answers):
        asked = ", ".join(f"{name} {least:g}" for name, least in lowest.items())
        raise RecordError("low_rating", f"no answer has the ratings that `min_ratings` asks for ({asked})")
    return replace(sample, context=tuple(sorted(low)))


def _is_rating(found: object) -> bool:
    return found is None or (isinstance(found, int | float) and not isinstance(found, bool))
