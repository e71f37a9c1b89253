"""Which device computes, in which precision, and how much memory this process has used."""

import math
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from aligngpt.errors import AlignGPTError

TRIALS, ROWS, WIDTH = 12, 256, 1024
CLEARLY = 1.5
"""How many times faster bfloat16 must be to be worth its rounding, and not to be taken for it by mistake."""

HOPELESS, HOPELESS_AFTER = 2.0, 2
"""How many times slower after how many trials ends them: where it is emulated, one takes a second."""


class DeviceError(AlignGPTError):
    """The device asked for is not there."""


def resolve_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is a CUDA GPU, else Apple's, else the CPU.

    Raises:
        DeviceError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"the device {name!r} cannot be used: {reason}; use --device cpu or auto") from error
    return device


def supports_bfloat16(device: torch.device) -> bool:
    """Whether the device computes faster in bfloat16 than in float32.

    A CPU is tried: whether it has instructions for bfloat16 does not tell, some that have are slower with them. Near
    the border another process may still come to another answer, so work that is resumed must note what it began in.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_is_faster_in_bfloat16()


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision called `name`: `float32`, `bfloat16`, or `auto` for bfloat16 where it is faster.

    Raises:
        DeviceError: the name is none of these.
    """
    if name == "auto":
        return torch.bfloat16 if supports_bfloat16(device) else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise DeviceError(f"the precision {name!r} is none of auto, {', '.join(known)}")
    return known[name]


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second that the device reaches in a product of large square matrices."""
    width = 8192 if device.type == "cuda" else 1024
    matrix = torch.ones(width, width, dtype=dtype, device=device)
    fastest = math.inf
    for _ in range(TRIALS):
        started = time.perf_counter()
        # Reading a number waits for a device that computes on its own.
        torch.mm(matrix, matrix)[0, 0].item()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * width**3 / fastest


@cache
def _cpu_is_faster_in_bfloat16() -> bool:
    """Time matrix products of the size of a small language model's, by turns; a tie goes to the exacter float32.

    On one thread, and in time that this thread computes: what else runs on the machine then has little say.
    """
    fastest = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for trial in range(TRIALS):
            for dtype in fastest:
                left, right = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
                started = time.thread_time()
                torch.mm(left, right)
                fastest[dtype] = min(fastest[dtype], time.thread_time() - started)
            if trial >= HOPELESS_AFTER and fastest[torch.bfloat16] > HOPELESS * fastest[torch.float32]:
                return False
    finally:
        torch.set_num_threads(threads)
    return CLEARLY * fastest[torch.bfloat16] < fastest[torch.float32]


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
