"""The number of CPUs that this process may use, which can be far below that of the machine."""

import os
from contextlib import suppress
from pathlib import Path

from aligngpt.control_groups import CGROUPS, OWN_CGROUP, groups


def usable_cpus(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Number of CPUs that this process may use, at least 1.

    This is the smallest of the machine's CPUs, the CPUs that the process may run on (set by `taskset` and by SLURM's
    `--cpus-per-task`) and the CPU quota of its control groups (set by containers), rounded up.

    Args:
        cgroups: where the control groups, of version 1 or 2, are mounted.
        own: the file that names the control groups of this process.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        with suppress(OSError):
            count = min(count, len(os.sched_getaffinity(0)))
    for group in groups("cpu", cgroups, own):
        if (quota := _quota_of(group)) is not None:
            # A quota of 1.5 CPUs still keeps two workers busy for most of the time.
            count = min(count, int(-(-quota // 1)))
    return max(1, count)


def _quota_of(folder: Path) -> float | None:
    """The quota of a control group in CPUs; None if it has none."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota = (folder / "cpu.cfs_quota_us").read_text()
        period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    return None
