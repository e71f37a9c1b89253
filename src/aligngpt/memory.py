"""How much memory a piece of work took."""

import sys
from contextlib import suppress
from pathlib import Path


def reset_peak_memory() -> None:
    """Start measuring anew: what `peak_memory` gives next is since this call, where the system can tell (Linux)."""
    # Writing 5 resets the kernel's high-water mark of the resident set; containers may forbid it.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most memory this process has held at once, in bytes; 0 where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with suppress(ImportError):
        import resource

        # Bytes on macOS, kibibytes elsewhere.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0
