"""The main memory that this process may use, which can be far below that of the machine."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from aligngpt.control_groups import CGROUPS, OWN_CGROUP, groups

MEMINFO = Path("/proc/meminfo")


def available_memory(meminfo: Path = MEMINFO, cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int | None:
    """Bytes of main memory that new processes can use; None if the system does not report it.

    This is the smallest of the machine's available memory and what its control groups leave of their limits: that of a
    container, or of SLURM's `--mem`. Where only the total memory is known (macOS), that stands for what is available.

    Args:
        meminfo: the kernel's report on memory.
        cgroups: where the control groups, of version 1 or 2, are mounted.
        own: the file that names the control groups of this process.
    """
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = meminfo.read_text(encoding="utf-8").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for group in groups("memory", cgroups, own):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            # Without a limit the file says `max`, or has a number beyond any machine's memory.
            with suppress(OSError, ValueError):
                found.append(max(0, int((group / limit).read_text()) - _used(group, used)))
    return min(found, default=None)


def _used(group: Path, name: str) -> int:
    """Bytes that the processes of a control group use, less the cached files, which the kernel drops when needed."""
    try:
        used = int((group / name).read_text())
    except (OSError, ValueError):
        return 0
    counts = _counts(group / "memory.stat")
    # Version 1 has the sums with the groups inside under a name of their own.
    cached = [counts.get(f"total_{kind}", counts.get(kind, 0)) for kind in ("active_file", "inactive_file")]
    return max(0, used - sum(cached))


def _counts(path: Path) -> Mapping[str, int]:
    """The numbers of a file of lines `name number`; none if it cannot be read."""
    with suppress(OSError, ValueError):
        return {name: int(count) for name, count in (line.split() for line in path.read_text().splitlines())}
    return {}
