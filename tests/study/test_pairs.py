"""What each arm makes of the scores: the levels, the pairs and their order."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from aligngpt.study.arms import ARMS
from aligngpt.study.pairs import ScoredPair, StudyError, levels_of, write_pretraining

LEVELS = 4


@pytest.fixture(scope="module")
def pairs() -> list[ScoredPair]:
    """Forty pairs whose scores have nothing to do with their order, and three qualities."""
    scores = np.random.default_rng(3).permutation(40) / 40
    return [
        ScoredPair(f"p{place}", f"{place}.png", f"caption {place}", float(score), [1.0, 0.5, 0.0][place % 3])
        for place, score in enumerate(scores)
    ]


def read(path: object) -> list[dict]:
    return json.loads(Path(str(path)).read_text())


def captions(records: list[dict]) -> list[str]:
    return [record["conversations"][-1]["value"] for record in records]


def test_levels_follow_the_scores(pairs: list[ScoredPair]) -> None:
    levels = levels_of(ARMS["adaptive"], pairs, LEVELS, 0)
    order = np.argsort([pair.score for pair in pairs])
    assert levels[order].tolist() == [1] * 10 + [2] * 10 + [3] * 10 + [4] * 10


def test_the_placebo_has_the_same_levels_in_another_order_for_each_seed(pairs: list[ScoredPair]) -> None:
    real = levels_of(ARMS["adaptive"], pairs, LEVELS, 0)
    placebos = [levels_of(ARMS["placebo"], pairs, LEVELS, seed) for seed in (0, 1)]
    for placebo in placebos:
        assert sorted(placebo) == sorted(real)
        assert (placebo == real).mean() < 0.6
    assert (placebos[0] != placebos[1]).any()
    assert (levels_of(ARMS["placebo"], pairs, LEVELS, 0) == placebos[0]).all()


def test_the_oracle_never_puts_a_worse_caption_above_a_better_one(pairs: list[ScoredPair]) -> None:
    levels = levels_of(ARMS["oracle"], pairs, LEVELS, 0)
    quality = np.array([pair.quality for pair in pairs])
    assert np.bincount(levels)[1:].tolist() == [10, 10, 10, 10]
    for low, high in ((0.0, 0.5), (0.5, 1.0)):
        assert levels[quality == low].max() <= levels[quality == high].min()


def test_the_oracle_needs_every_quality(pairs: list[ScoredPair]) -> None:
    with pytest.raises(StudyError, match="quality of every caption; pair p0 has none"):
        levels_of(ARMS["oracle"], [replace(pairs[0], quality=None), *pairs[1:]], LEVELS, 0)


def test_scores_that_cannot_be_divided_are_told(pairs: list[ScoredPair]) -> None:
    with pytest.raises(StudyError, match="arm adaptive, 4 levels"):
        levels_of(ARMS["adaptive"], [replace(pair, score=0.5) for pair in pairs], LEVELS, 0)


@pytest.mark.parametrize("name", ["none", "constant", "adaptive", "placebo", "oracle"])
def test_arms_read_the_same_pairs_in_the_same_order(pairs: list[ScoredPair], tmp_path: Path, name: str) -> None:
    written = write_pretraining(ARMS[name], pairs, LEVELS, 0, tmp_path)
    records = read(written.data)
    assert [record["id"] for record in records] == [pair.id for pair in pairs]
    assert captions(records) == [pair.caption for pair in pairs]
    assert written.epochs == 1
    levels = levels_of(ARMS[name], pairs, LEVELS, 0)
    expected = [None] * 40 if levels is None else (levels - 1).tolist()
    assert [record.get("similarity") for record in records] == expected


def test_the_filter_keeps_the_better_half_and_reads_it_twice(pairs: list[ScoredPair], tmp_path: Path) -> None:
    written = write_pretraining(ARMS["filter"], pairs, LEVELS, 0, tmp_path)
    kept = {record["id"] for record in read(written.data)}
    assert kept == {pair.id for pair in pairs if pair.score >= 0.5}
    assert written.epochs * len(kept) == len(pairs)


def test_weights_rise_with_the_scores_and_leave_the_amount_as_it_is(pairs: list[ScoredPair], tmp_path: Path) -> None:
    written = write_pretraining(ARMS["weighted"], pairs, LEVELS, 0, tmp_path)
    of_id = {pair.id: pair.score for pair in pairs}
    sources = [([of_id[record["id"]] for record in read(source["data"])], source["weight"]) for source in written.data]
    assert sum(len(scores) for scores, _ in sources) == 40
    assert sum(len(scores) * weight for scores, weight in sources) == pytest.approx(40)
    for (low, light), (high, heavy) in pairwise(sources):
        assert max(low) < min(high) and light < heavy


def test_the_worst_pairs_come_first(pairs: list[ScoredPair], tmp_path: Path) -> None:
    of_id = {pair.id: pair.score for pair in pairs}
    records = read(write_pretraining(ARMS["ordered"], pairs, LEVELS, 0, tmp_path).data)
    scores = [of_id[record["id"]] for record in records]
    assert scores == sorted(of_id.values())


def test_an_appended_level_is_the_pairs_own(pairs: list[ScoredPair], tmp_path: Path) -> None:
    records = read(write_pretraining(ARMS["appended"], pairs, LEVELS, 0, tmp_path).data)
    levels = levels_of(ARMS["adaptive"], pairs, LEVELS, 0)
    assert captions(records) == [f"{pair.caption}, level {level}" for pair, level in zip(pairs, levels, strict=True)]
    assert not any("similarity" in record for record in records)


def test_the_plain_end_is_a_tenth_without_levels(pairs: list[ScoredPair], tmp_path: Path) -> None:
    written = write_pretraining(ARMS["plain-end"], pairs, LEVELS, 0, tmp_path)
    beginning, end = read(written.data), read(written.end)
    assert len(end) == 4 and not any("similarity" in record for record in end)
    assert all("similarity" in record for record in beginning)
    assert sorted(record["id"] for record in beginning + end) == sorted(pair.id for pair in pairs)
