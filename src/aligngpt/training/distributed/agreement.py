"""Whether all processes that train together read the same files."""

import socket

from aligngpt.training.distributed.processes import gather, rank
from aligngpt.training.recipe import RecipeError

COPIES = "complete the copies on each machine, or name a folder that all machines share"


def check_same(what: str, value: str, advice: str = COPIES) -> None:
    """Check that a value is the same in all processes; all of them must call it.

    Machines with copies of the data of their own would otherwise train on without a word where one copy differs: each
    process takes its rows from its own order, so that samples are seen twice or never.

    Args:
        what: what has the value, for the message.
        value: the value in this process.
        advice: end of the message, what to do.

    Raises:
        RecipeError: it differs; raised in every process.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for value_there, host, rank_there in gather([(value, socket.gethostname(), rank())]):
        found.setdefault(value_there, []).append((host, rank_there))
    if len(found) == 1:
        return
    differing = "; ".join(
        f"{value_there} in rank {', '.join(str(rank_there) for _, rank_there in places)} "
        f"({', '.join(sorted({host for host, _ in places}))})"
        for value_there, places in found.items()
    )
    raise RecipeError(f"the processes differ in {what}: {differing}. All must read the same files: {advice}")
