"""Starting a job again looks at each file of its folder once, however many there are."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from listed_pairs import ListedPairs, draw_pictures, random_captions

from aligngpt.scoring import resuming
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.scoring.score_files import part_path


@pytest.fixture
def finished(clip_scorer: PairScorer, tmp_path: Path) -> Callable[[int], tuple[ListedPairs, Path]]:
    """A source of as many shards as asked, two pairs each, and its finished scores."""

    def make(shards: int) -> tuple[ListedPairs, Path]:
        rows = list(zip(random_captions(2 * shards), draw_pictures(tmp_path, 2 * shards), strict=True))
        source, out = ListedPairs(rows, tmp_path, 2), tmp_path / f"out-{shards}"
        assert score_source(source, clip_scorer, out, workers=0).finished
        return source, out

    return make


class Calls:
    """Counts the listings of a folder and the openings of each file while it is active."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.listed = 0
        self.opened: Counter[str] = Counter()
        scandir, listdir, open_path = os.scandir, os.listdir, Path.open

        def counted(call: Callable) -> Callable:
            def counting(path: Any = ".") -> Any:
                self.listed += Path(path) == folder
                return call(path)

            return counting

        def counted_open(path: Path, *args: Any, **kwargs: Any) -> Any:
            self.opened[path.name] += 1
            return open_path(path, *args, **kwargs)

        monkeypatch.setattr(os, "scandir", counted(scandir))
        monkeypatch.setattr(os, "listdir", counted(listdir))
        monkeypatch.setattr(Path, "open", counted_open)


def test_a_restart_lists_the_folder_a_fixed_number_of_times_and_opens_each_part_once(
    finished: Callable, clip_scorer: PairScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []
    for shards in (3, 12):
        source, out = finished(shards)
        with monkeypatch.context() as patch:
            calls = Calls(patch, out)
            assert score_source(source, clip_scorer, out, workers=0).finished
        parts = {name: count for name, count in calls.opened.items() if name.startswith("part-")}
        assert parts == {part_path(out, index).name: 1 for index in range(shards)}
        listed.append(calls.listed)
    assert listed[0] == listed[1] < 10


def test_a_slow_check_shows_its_progress_and_a_fast_one_does_not(
    finished: Callable, clip_scorer: PairScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = finished(3)
    capsys.readouterr()
    score_source(source, clip_scorer, out, workers=0)
    assert "checking" not in capsys.readouterr().err
    monkeypatch.setattr(resuming, "SECONDS_UNSEEN", -1.0)
    score_source(source, clip_scorer, out, workers=0)
    assert "checking the parts of an earlier run: 3/3" in capsys.readouterr().err
