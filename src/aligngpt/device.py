"""Choice of device and precision, and the peak memory of this process."""

import gc
import math
import os
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from aligngpt.errors import AlignGPTError

TRIALS, ROWS, WIDTH = 12, 256, 1024
CLEARLY = 1.5
"""Required speedup of bfloat16: enough to be worth its rounding, and more than measurement noise."""

HOPELESS, HOPELESS_AFTER = 2.0, 2
"""Stop timing once bfloat16 is this many times slower after this many trials: emulated, one trial takes a second."""


DEVICE_VARIABLE, DEVICES = "ALIGNGPT_DEVICE", ("cpu", "cuda", "mps")
"""Environment variable with the device that `auto` chooses, and its values."""


class DeviceError(AlignGPTError):
    """The requested device or precision is not available."""


def resolve_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is that of `ALIGNGPT_DEVICE`, else a CUDA GPU, an Apple GPU or the CPU.

    Raises:
        DeviceError: this machine has no such device.
    """
    chosen = name == "auto"
    if chosen:
        name = os.environ.get(DEVICE_VARIABLE) or _fastest()
        if name not in DEVICES:
            raise DeviceError(f"{DEVICE_VARIABLE} is {name!r}; set it to one of {', '.join(DEVICES)}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"the device {name!r} cannot be used: {reason}; {_instead(name, chosen)}") from error
    return device


def _fastest() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _instead(name: str, chosen: bool) -> str:
    """What to use instead of a device, which `auto` may have chosen."""
    if not chosen:
        return "use --device cpu or auto"
    # Not all commands have the option.
    return f"use --device cpu where the command has it, or set {DEVICE_VARIABLE}=cpu"


def supports_bfloat16(device: torch.device) -> bool:
    """Whether the device computes faster in bfloat16 than in float32.

    On a CPU this is measured: some CPUs with bfloat16 instructions are slower with them. Close to the threshold,
    another process may get a different answer, so resumable work must record the precision that it started with.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_is_faster_in_bfloat16()


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision called `name`: `float32`, `bfloat16`, or `auto` for bfloat16 if it is faster, else float32.

    Raises:
        DeviceError: `name` is not one of these.
    """
    if name == "auto":
        return torch.bfloat16 if supports_bfloat16(device) else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise DeviceError(f"the precision must be one of auto, {', '.join(known)}, got {name!r}")
    return known[name]


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second that the device reaches in a product of large square matrices."""
    width = 8192 if device.type == "cuda" else 1024
    matrix = torch.ones(width, width, dtype=dtype, device=device)
    fastest = math.inf
    for _ in range(TRIALS):
        started = time.perf_counter()
        # Reading a value waits for an asynchronous device to finish.
        torch.mm(matrix, matrix)[0, 0].item()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * width**3 / fastest


@cache
def _cpu_is_faster_in_bfloat16() -> bool:
    """Time matrix products as in a small language model, alternating precisions; a tie goes to float32 as more precise.

    Measured on one thread in that thread's CPU time, so that other processes hardly affect it.
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


def release_memory() -> None:
    """Free what is no longer used, also where objects refer to each other, as a trainer and its model do.

    Memory of a GPU that runs short does not make Python look for them.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device | None = None) -> bool:
    """Reset the peak that `peak_memory` returns, and that of a GPU.

    Returns:
        Whether the system allowed the former: Linux does, but not in every container.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # Writing 5 resets the kernel's high-water mark of the resident set; containers may forbid it.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def peak_device_memory(device: torch.device) -> int | None:
    """The peak of the memory that tensors took on a GPU, in bytes; None for other devices.

    torch holds somewhat more, and the GPU's own context comes on top.
    """
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def peak_memory() -> int:
    """The peak resident memory of this process, in bytes; 0 if the system does not report it."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with suppress(ImportError):
        import resource

        # Bytes on macOS, kibibytes elsewhere.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0
