"""Which device computes, and in which precision."""

from pathlib import Path

import torch

from aligngpt.errors import AlignGPTError


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
    """Whether the device multiplies bfloat16 matrices natively, so that it is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())
    return False


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision called `name`: `float32`, `bfloat16`, or `auto` for bfloat16 where the device computes it natively.

    Raises:
        DeviceError: the name is none of these.
    """
    if name == "auto":
        return torch.bfloat16 if supports_bfloat16(device) else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise DeviceError(f"the precision {name!r} is none of auto, {', '.join(known)}")
    return known[name]


def _cpu_flags() -> set[str]:
    """What the processor can do, as Linux tells; empty elsewhere, which means float32."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))
