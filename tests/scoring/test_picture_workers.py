"""Picture workers: how far they run ahead, and how many there may be."""

from collections.abc import Iterator

import pytest

from aligngpt.data.pictures import Picture
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.picture_workers import PICTURES_PER_TASK, PictureWorkers, Refused


def test_pictures_are_not_read_far_ahead_of_the_model(clip_scorer: PairScorer) -> None:
    given: list[int] = []

    def endless() -> Iterator[Picture]:
        while True:
            given.append(1)
            yield Picture("nothing", content=b"")

    with PictureWorkers(clip_scorer, 0) as workers:
        results = workers.prepare(endless())
        assert next(results) == Refused("empty", "nothing is empty")
        assert len(given) <= 2 * PICTURES_PER_TASK
        results.close()


def test_a_negative_number_of_workers_is_refused(clip_scorer: PairScorer) -> None:
    with pytest.raises(ValueError, match="expected 0 or more workers, found -1"):
        PictureWorkers(clip_scorer, -1)
