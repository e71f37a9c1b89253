"""What `levels` says about scores before anyone trains on levels made from them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aligngpt.levels.making import make_levels
from aligngpt.scoring.manifest import read_manifest

COUNT = 60


@pytest.fixture
def scored(write_scores: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A folder of scores with the given standard deviation and outcome."""

    def make(deviation: float, **outcome: object) -> Path:
        source = tmp_path / "pairs.json"
        source.write_text(json.dumps([{"id": str(index)} for index in range(COUNT)]))
        scores = 0.3 + deviation * np.linspace(-np.sqrt(3), np.sqrt(3), COUNT)
        folder = write_scores(source, dict(enumerate(scores.tolist())), COUNT)
        replace(read_manifest(folder), **outcome).write(folder)  # type: ignore[arg-type]
        return folder

    return make


def test_ordinary_scores_need_no_remark(scored: Callable[..., Path]) -> None:
    made = make_levels(scored(0.05), num_levels=2)
    assert (made.notes, made.warnings) == ((), ())


def test_scores_that_hardly_differ_are_warned_about(scored: Callable[..., Path], tmp_path: Path) -> None:
    folder = scored(0.003)
    made = make_levels(folder, num_levels=2)
    assert [warning.partition(",")[0] for warning in made.warnings] == [
        "the scores hardly differ (standard deviation 0.0031)"
    ]
    # Their own borders, given again, say nothing about the scores.
    made.levels.save(tmp_path / "borders.json")
    assert make_levels(folder, borders=tmp_path / "borders.json").warnings == ()


@pytest.mark.parametrize(("auc", "warned"), [(0.81, False), (0.52, True)])
def test_it_says_how_well_the_scores_tell_pairs_from_shuffled_ones(
    auc: float, warned: bool, scored: Callable[..., Path]
) -> None:
    made = make_levels(scored(0.05, auc=auc), num_levels=2)
    assert made.notes == (
        f"the scores tell your pairs from shuffled ones in {100 * auc:.1f}% of the cases (AUC; 50% is guessing)",
    )
    assert bool(made.warnings) == warned


def test_the_first_pairs_alone_are_not_taken_for_all(scored: Callable[..., Path]) -> None:
    assert make_levels(scored(0.05, limit=60), num_levels=2).notes == (
        "only the first 60 records of the source were scored (--limit), so only they have levels",
    )
