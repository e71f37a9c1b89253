"""What the machine is, and how fast it can be at most."""

import datetime
import os
import platform
import subprocess

import torch
import transformers

import aligngpt
from gpu_parts.run import Run, seconds_of

DATASHEET = {"H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12}
"""FLOP/s of dense bfloat16 products by the makers' data sheets, by a part of the card's name; the first that fits."""


def facts(run: Run) -> None:
    """Card, driver, versions and date."""
    on_gpu = run.device.type == "cuda"
    name = torch.cuda.get_device_name(run.device) if on_gpu else platform.processor() or platform.machine()
    run.results["device"] = name
    run.add(
        device=name,
        capability=".".join(map(str, torch.cuda.get_device_capability(run.device))) if on_gpu else None,
        memory_gib=torch.cuda.get_device_properties(run.device).total_memory / 2**30 if on_gpu else None,
        driver=_driver() if on_gpu else None,
        cuda=torch.version.cuda,
        torch=torch.__version__,
        transformers=transformers.__version__,
        aligngpt=aligngpt.__version__,
        python=platform.python_version(),
        cores=os.cpu_count(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def ceilings(run: Run) -> None:
    """FLOP/s of a large matrix product in bfloat16 and bytes/s of a copy, which reads and writes each byte."""
    side, size = (256, 1 << 20) if run.rehearse else (8192, 1 << 32)
    # Random: a product of zeros needs less power, and so runs at a higher clock.
    one, other = (torch.randn(side, side, device=run.device, dtype=torch.bfloat16) for _ in range(2))
    run.peak = 2 * side**3 / seconds_of(run, lambda: one @ other, repeats=10)
    source = torch.empty(size, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    run.bandwidth = 2 * size / seconds_of(run, lambda: target.copy_(source), repeats=10)
    known = datasheet(run)
    run.add(
        product_tflops=run.peak / 1e12,
        copy_tb_s=run.bandwidth / 1e12,
        datasheet_tflops=known / 1e12 if known else None,
    )


def datasheet(run: Run) -> float | None:
    """The card's FLOP/s by its data sheet; None if it is not known here."""
    name = run.results.get("device", "")
    return next((flops for part, flops in DATASHEET.items() if part in name), None)
