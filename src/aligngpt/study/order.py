"""The order in which the runs of a study go to its workers."""

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from aligngpt.study.plan import Run


def in_turn(
    submit: Callable[[Run], Future[None]], forget: Callable[[Run], None], runs: Sequence[Run], workers: int
) -> Iterator[Run]:
    """Hand runs out in their order, and yield each as it is done.

    A run whose pre-training is being made for another one is passed over until it is there.

    Args:
        submit: begins a run.
        forget: removes the pre-training of a run, which no other run needs any more.
        runs: what is to be done.
        workers: runs at once.

    Raises:
        Exception: that of a run that failed.
    """
    waiting, busy = list(runs), dict[Future[None], Run]()
    made: set[str] = set()
    while waiting or busy:
        while len(busy) < workers and (run := _next(waiting, busy.values(), made)) is not None:
            waiting.remove(run)
            busy[submit(run)] = run
        for future in wait(busy, return_when=FIRST_COMPLETED).done:
            run = busy.pop(future)
            future.result()
            made.add(run.pretraining_id)
            if all(other.pretraining_id != run.pretraining_id for other in (*waiting, *busy.values())):
                forget(run)
            yield run


def _next(waiting: Sequence[Run], busy: Collection[Run], made: set[str]) -> Run | None:
    unmade = {run.pretraining_id for run in busy} - made
    return next((run for run in waiting if run.pretraining_id not in unmade), None)
