"""`aligngpt doctor`: what this machine and this installation have, what is missing, and what that costs."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import Version

from aligngpt.cache import cache_folder
from aligngpt.cache_entries import size_text
from aligngpt.cpus import usable_cpus
from aligngpt.memory import available_memory

State = Literal["ok", "note", "problem"]

TESTED_PYTHON = ("3.11", "3.13")
TESTED = {
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "peft": "0.21.2",
    "torch": "2.13.0",
    "transformers": "5.24.0",
}
"""The newest versions that the tests have run with."""

COSTS = {
    "quickstart": "aligngpt quickstart cannot read the weights of its models",
    "scenes": "scenes cannot be drawn",
    "study": "aligngpt study cannot analyse its runs",
    "ray": "aligngpt score cannot run on a Ray cluster",
    "gguf": "aligngpt export --gguf cannot write files for llama.cpp",
    "timm": "vision towers of timm cannot be loaded",
    "torchao": "no 8-bit optimiser for weights in bfloat16",
    "bits": "no 4-bit weights and no 8-bit optimiser in training",
    "chat": "aligngpt chat has no editing, history or completion",
    "remote": "data at addresses such as s3:// cannot be read",
    "serve": "aligngpt serve cannot start",
    "web": "aligngpt web cannot start",
    "lmms": "the model cannot be run in lmms-eval",
}
"""What does not work without an extra."""

DEVELOPMENT = ("dev", "docs", "lint", "test")
LITTLE_MEMORY, LITTLE_DISK = 5 * 10**9, 5 * 10**9
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
YES = ("1", "on", "true", "yes")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        found: what it is, in a few words.
        state: `problem` if commands cannot work with it, `note` if something is worth knowing.
        advice: what that costs and what to do; empty if `ok`.
    """

    name: str
    found: str
    state: State = "ok"
    advice: str = ""


def examine() -> list[Finding]:
    """Look at the Python, the packages, the device, memory, disk and the Hugging Face hub's settings.

    Nothing is downloaded, and the network is not used.
    """
    return [
        python(sys.version_info[:2]),
        *system(platform.system()),
        *packages(_requirements()),
        *device(),
        processors(),
        memory(),
        disk(),
        hub(),
    ]


def python(version: Sequence[int]) -> Finding:
    """The version of Python, major and minor number."""
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    first, last = (tuple(map(int, text.split("."))) for text in TESTED_PYTHON)
    if tuple(version) < first:
        return Finding("Python", found, "problem", f"aligngpt needs Python {TESTED_PYTHON[0]} or newer; install one")
    if tuple(version) > last:
        return Finding("Python", found, "note", f"newer than the versions that were tested, up to {TESTED_PYTHON[1]}")
    return Finding("Python", found)


def system(name: str) -> Iterator[Finding]:
    """The operating system, as Python names it, if it is not the one that the tests run on."""
    if name == "Windows":
        yield Finding("system", name, "problem", "use Linux, or the Windows Subsystem for Linux (WSL)")
    elif name != "Linux":
        yield Finding(
            "system", name, "note", "untested; ALIGNGPT_DEVICE=cpu leaves an Apple GPU out, if it fails there"
        )


def packages(requirements: Sequence[str]) -> Iterator[Finding]:
    """The required packages, then one finding per extra.

    Args:
        requirements: as in the metadata of an installed package; those of an extra end in `; extra == "name"`.
    """
    parsed = [Requirement(text) for text in requirements]
    if not parsed:
        advice = "its metadata is missing, so versions were not compared; install it with pip install -e ."
        yield Finding("aligngpt", "not installed as a package", "note", advice)
    for one in parsed:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            yield _package(one)
    extras: dict[str, list[Requirement]] = {}
    for one in parsed:
        for extra in _extras_of(one):
            extras.setdefault(extra, []).append(one)
    for extra, wanted in extras.items():
        if extra in DEVELOPMENT:
            continue
        missing = [str(one.name) for one in wanted if _package(one).state == "problem"]
        if missing:
            cost = COSTS.get(extra, "what it is for does not work")
            advice = f"{cost}; run: pip install 'aligngpt[{extra}]'"
            yield Finding(f"extra {extra}", f"{', '.join(missing)} missing or too old", "note", advice)
        else:
            yield Finding(f"extra {extra}", "installed")


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("aligngpt") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _extras_of(requirement: Requirement) -> list[str]:
    """The extras that a requirement belongs to; none if it is always required or lists other extras."""
    if requirement.marker is None or requirement.name == "aligngpt" or requirement.marker.evaluate({"extra": ""}):
        return []
    names = {text for text in str(requirement.marker).replace("'", '"').split('"')[1::2]}
    return sorted(name for name in names if requirement.marker.evaluate({"extra": name}))


def _package(wanted: Requirement) -> Finding:
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(wanted.name, "missing", "problem", f"run: pip install '{wanted.name}{wanted.specifier}'")
    if not wanted.specifier.contains(version, prereleases=True):
        advice = f"aligngpt needs {wanted.specifier}; run: pip install '{wanted.name}{wanted.specifier}'"
        return Finding(wanted.name, version, "problem", advice)
    tested = TESTED.get(wanted.name)
    if tested is not None and Version(version).release[:2] > Version(tested).release[:2]:
        return Finding(wanted.name, version, "note", f"newer than the version that was tested, {tested}")
    return Finding(wanted.name, version)


def device() -> Iterator[Finding]:
    """The device that commands choose, its memory and its faster precision."""
    try:
        import torch

        from aligngpt.device import DeviceError, resolve_device, supports_bfloat16
    # A damaged installation may raise anything, missing shared libraries above all.
    except Exception as error:
        advice = f"torch cannot be imported ({_reason(error)}); install it again"
        yield Finding("device", "unknown", "problem", advice)
        return
    try:
        chosen = resolve_device()
        precision = "bfloat16" if supports_bfloat16(chosen) else "float32"
    except (DeviceError, RuntimeError) as error:
        yield Finding("device", "a GPU that cannot be used", "problem", _reason(error))
        return
    if chosen.type != "cuda":
        card_without_torch = chosen.type == "cpu" and shutil.which("nvidia-smi") is not None
        advice = f"there is an NVIDIA driver, but torch {torch.__version__} does not use it; install the CUDA build"
        yield Finding(
            "device",
            f"{chosen.type}, faster in {precision}",
            "note" if card_without_torch else "ok",
            advice if card_without_torch else "",
        )
        return
    for number in range(torch.cuda.device_count()):
        try:
            name = torch.cuda.get_device_name(number)
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            yield Finding(f"device cuda:{number}", "cannot be used", "problem", _reason(error))
            continue
        found = f"{name}, {size_text(free)} of {size_text(total)} free, faster in {precision}"
        yield Finding(f"device cuda:{number}", found)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def processors() -> Finding:
    """The CPUs that this process may use."""
    usable, there = usable_cpus(), os.cpu_count() or 1
    return Finding("CPUs", str(usable) if usable == there else f"{usable} of the machine's {there}")


def memory() -> Finding:
    """The main memory that is available, or the limit of the container if that is smaller."""
    available = available_memory()
    if available is None:
        return Finding("main memory", "not reported by this system")
    if available < LITTLE_MEMORY:
        advice = f"the quickstart needs {size_text(LITTLE_MEMORY)}; close other programs or use a larger machine"
        return Finding("main memory", f"{size_text(available)} available", "note", advice)
    return Finding("main memory", f"{size_text(available)} available")


def disk() -> Finding:
    """The free space where derived data is cached."""
    folder = cache_folder("samples").parent
    there = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(there).free
    found = f"{size_text(free)} free in {folder}"
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("cache", found, "note", "it cannot be written; set ALIGNGPT_CACHE to a writable folder")
    if free < LITTLE_DISK:
        advice = "see what takes space with: aligngpt cache; or set ALIGNGPT_CACHE to another folder"
        return Finding("cache", found, "note", advice)
    return Finding("cache", found)


def hub() -> Finding:
    """Whether models and data may be downloaded from the Hugging Face hub."""
    offline = [name for name in OFFLINE if os.environ.get(name, "").lower() in YES]
    if offline:
        advice = "only local folders and downloads of before can be used; unset it to download"
        return Finding("Hugging Face hub", f"offline ({', '.join(offline)} is set)", "note", advice)
    return Finding("Hugging Face hub", "downloads are allowed (the connection was not tried)")


def report(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings for `--json`: `working`, and a list of all of them."""
    return {"working": not any(one.state == "problem" for one in findings), "findings": [vars(one) for one in findings]}
