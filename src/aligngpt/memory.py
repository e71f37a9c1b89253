"""The main memory that this process may use, which can be far below that of the machine."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""The memory limit of a container, with control groups of version 2 and 1."""


def available_memory(meminfo: Path = MEMINFO, limits: Sequence[Path] = LIMITS) -> int | None:
    """Bytes of main memory that new processes can use; None if the system does not report it.

    This is the smaller of the machine's available memory and the limit of a container. Where only the total memory is
    known (macOS), that stands for what is available.

    Args:
        meminfo: the kernel's report on memory.
        limits: files with the limits of control groups, some of which may be missing.
    """
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = meminfo.read_text(encoding="utf-8").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in limits:
        # Without a limit the file says `max`, or has a number beyond any machine's memory.
        with suppress(OSError, ValueError):
            found.append(int(limit.read_text(encoding="utf-8")))
    return min(found, default=None)
