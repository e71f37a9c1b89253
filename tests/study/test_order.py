"""The order in which a study's runs are handed out, with threads in place of processes."""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import pytest

from aligngpt.study.order import in_turn
from aligngpt.study.plan import Plan, Run


class Watched:
    """Does runs by sleeping, and writes down which begin, end and are forgotten."""

    def __init__(self, workers: int, seed: int = 0, fails: str = "") -> None:
        self.workers, self._fails = workers, fails
        self.begun: list[str] = []
        self.clashes: list[str] = []
        self.forgotten: list[str] = []
        self._making: set[str] = set()
        self._made: set[str] = set()
        self._lock, self._random = Lock(), random.Random(seed)

    def all(self, runs: list[Run]) -> list[str]:
        with ThreadPoolExecutor(self.workers) as pool:
            return [run.id for run in in_turn(lambda run: pool.submit(self._do, run), self._forget, runs, self.workers)]

    def _do(self, run: Run) -> None:
        with self._lock:
            self.begun.append(f"{run.arm_name}{run.seed}")
            if run.pretraining_id in self._making:
                self.clashes.append(run.id)
            if run.pretraining_id not in self._made:
                self._making.add(run.pretraining_id)
            pause = self._random.random() / 100
        time.sleep(pause)
        if run.arm_name == self._fails:
            raise ValueError(f"{run.id} failed")
        with self._lock:
            self._making.discard(run.pretraining_id)
            self._made.add(run.pretraining_id)

    def _forget(self, run: Run) -> None:
        self.forgotten.append(run.pretraining_id)
        self._made.discard(run.pretraining_id)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_run_is_done_once_and_no_pretraining_is_made_twice(plan_of: Callable[..., Plan], workers: int) -> None:
    runs = plan_of({"arms": ["adaptive", "global", "mean", "none", "filter"], "seeds": 4}).runs()
    for seed in range(5):
        watched = Watched(workers, seed)
        assert Counter(watched.all(runs)) == Counter(run.id for run in runs)
        assert watched.clashes == []
        assert Counter(watched.forgotten) == Counter({run.pretraining_id: 1 for run in runs})


def test_a_run_waits_while_its_pretraining_is_being_made(plan_of: Callable[..., Plan]) -> None:
    watched = Watched(2)
    watched.all(plan_of({"arms": ["adaptive", "global", "none"], "seeds": 1}).runs())
    assert watched.begun == ["adaptive0", "none0", "global0"]


def test_one_cell_comes_after_the_other_and_a_seed_after_the_other(plan_of: Callable[..., Plan]) -> None:
    watched = Watched(1)
    watched.all(
        plan_of({"arms": ["none", "adaptive"], "seeds": 2}, {"arms": ["adaptive", "global"], "seeds": 2}).runs()
    )
    assert watched.begun == ["none0", "adaptive0", "none1", "adaptive1", "global0", "global1"]
    # What the second cell shares with the first is kept until it is done.
    assert watched.forgotten[-1].startswith("levels-scores")


def test_a_failed_run_ends_the_study(plan_of: Callable[..., Plan]) -> None:
    with pytest.raises(ValueError, match=r"filter-noise0-.* failed"):
        Watched(2, fails="filter").all(plan_of({"arms": ["none", "filter"], "seeds": 3}).runs())
