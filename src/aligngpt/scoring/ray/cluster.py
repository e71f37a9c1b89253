"""The Ray cluster to score on: connecting to it, its capacity, and checking that its nodes see the same files."""

import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aligngpt.errors import AlignGPTError

CPUS_PER_ACTOR = 2
"""Number of CPUs per actor if there is no GPU."""

OBJECT_STORE = 256 * 2**20
"""Bytes of shared memory for a Ray that we start: only the description of the job goes through it."""

MARKER = ".shared-with-ray-"


class RayEngineError(AlignGPTError):
    """Ray cannot be used, or its actors die or differ."""


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The connected module `ray`, see `score_on_ray`; disconnects at the end unless it was connected before.

    Raises:
        RayEngineError: Ray is missing, or the cluster cannot be reached.
    """
    # By default, Ray would send usage statistics over the network.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise RayEngineError("the ray engine needs the package ray; run: pip install 'aligngpt[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        place = "on this machine" if address is None else f"at {address}"
        raise RayEngineError(
            f"no Ray {place}: {error}. Start a cluster with `ray start --head` and `ray start --address HEAD:6379` on "
            "the other nodes, or leave out the address to use this machine only"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


class Room(NamedTuple):
    """The number of actors, and the resources Ray reserves for each."""

    actors: int
    cpus: int
    gpus: float


def room_for(nodes: Sequence[Mapping[str, float]], actors: int | None, gpus: float | None) -> Room:
    """Choose the number of actors and the resources of each, so that all of them can be placed.

    Args:
        nodes: total resources of each node, as reported by Ray: `CPU`, `GPU`.
        actors: requested number of actors; None for as many as fit with a GPU each or, without GPUs, one per
            `CPUS_PER_ACTOR` CPUs.
        gpus: requested GPUs per actor; None for 1, or 0 if there is no GPU.

    Raises:
        RayEngineError: the nodes have too few resources.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    places = [int(node.get("GPU", 0) / gpus) for node in nodes] if gpus > 0 else cpus
    most = sum(places)
    usual = most if gpus > 0 else max(1, sum(have // CPUS_PER_ACTOR for have in cpus))
    count = usual if actors is None else actors
    if not 1 <= count <= most:
        each = f"{gpus:g} GPUs" if gpus > 0 else "a CPU"
        raise RayEngineError(
            f"{count} actors with {each} each were requested, but the nodes have room for {most}; request at least 1 "
            "and no more than there is room for, or a smaller share of a GPU for each"
        )
    if gpus > 0:
        share = min(have // place for have, place in zip(cpus, places, strict=True) if place)
    else:
        share = next(share for share in range(most // count, 0, -1) if sum(have // share for have in cpus) >= count)
    return Room(count, share, gpus)


@contextmanager
def shared_marker(out: Path) -> Iterator[Path]:
    """A marker file in `out`, by which an actor can check that it sees the same folder."""
    for leftover in out.glob(f"{MARKER}*"):
        leftover.unlink(missing_ok=True)
    path = out / f"{MARKER}{uuid.uuid4().hex}"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def last_line(error: Exception) -> str:
    """The sentence of Ray's long message about a dead actor that gives the reason."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].partition(". ")[0].rstrip(".")
