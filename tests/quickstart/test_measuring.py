"""Tests of the measurements of scores by kind of bad caption, and of text-only baselines on several splits."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aligngpt.quickstart.measuring import measure_separation, text_only_baselines

# Quality, kind and score of the captions of four pictures, two each.
CAPTIONS = [
    ("right", "clean", 0.9),
    ("vague", "tags", 0.85),
    ("right", "clean", 0.8),
    ("wrong", "other-scene", 0.1),
    ("right", "clean", 0.7),
    ("wrong", "exchanged-name", 0.75),
    ("right", "clean", 0.3),
    ("wrong", "other-scene", 0.2),
]


class Scores:
    """The scores of `CAPTIONS` in two batches, the later records first."""

    def __init__(self, folder: Path) -> None:
        assert folder.name == "scores"

    def batches(self) -> Iterator[Any]:
        for numbers in (np.arange(4, 8), np.arange(4)):
            yield SimpleNamespace(numbers=numbers, scores=np.array([CAPTIONS[number][2] for number in numbers]))


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("aligngpt.quickstart.measuring.ScoredPairs", Scores)
    records = [
        {"image": f"{place // 2}.png", "caption_quality": quality, "noise": kind}
        for place, (quality, kind, _) in enumerate(CAPTIONS)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(records))
    return measure_separation(tmp_path / "pairs.json", tmp_path / "scores")


def test_each_kind_of_bad_caption_is_compared_with_all_right_ones(measured: dict[str, Any]) -> None:
    found = {kind: (one["roc_auc"], one["captions"]) for kind, one in measured["by_kind"].items()}
    assert found == {"exchanged-name": (0.5, 1), "other-scene": (1.0, 2), "tags": (0.25, 1)}


def test_vague_captions_are_not_counted_as_wrong(measured: dict[str, Any]) -> None:
    assert measured["pairs"] == 8
    assert measured["pictures"] == 3 and measured["paired"]["share"] == pytest.approx(2 / 3)
    # Of 4 × 3 comparisons, the exchanged name at 0.75 wins two.
    assert measured["roc_auc"] == pytest.approx(10 / 12)


def test_each_split_has_its_text_only_baseline(tmp_path: Path) -> None:
    def write(name: str, *answers: str) -> Path:
        records = [
            {
                "image": f"{place}.png",
                "conversations": [{"from": "human", "value": "<image>\nhow many?"}, {"from": "gpt", "value": answer}],
            }
            for place, answer in enumerate(answers)
        ]
        (tmp_path / name).write_text(json.dumps(records))
        return tmp_path / name

    train = write("train.json", "two", "two", "one")
    tests = {"test": write("test.json", "one", "two", "two"), "test_hand": write("hand.json", "one", "two")}
    found = text_only_baselines(train, tests)
    assert list(found) == ["Text only", "Text only, test_hand"]
    assert [(one["correct"], one["total"]) for one in found.values()] == [(2, 3), (1, 2)]
    # Only the main split is compared question by question.
    assert found["Text only"]["right"] == [1, 2] and "right" not in found["Text only, test_hand"]
