"""The machine that a recipe is for: device, memory, CPUs and disk."""

import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from aligngpt.cache import cache_folder
from aligngpt.cpus import usable_cpus
from aligngpt.memory import available_memory
from aligngpt.training.memory_plan import device_memory

GIGABYTE = 10**9

Device = Literal["cpu", "cuda", "mps"]


class Machine(NamedTuple):
    """What a recipe may use.

    Attributes:
        device: to train on.
        name: of the device, for people.
        memory: bytes on the device: of one GPU, or available main memory; None if the system does not report it.
        main_memory: bytes of available main memory; None if the system does not report it.
        cpus: number of CPUs that this process may use.
        disk: free bytes where the run is written.
        cache_disk: free bytes where features are cached; None if that is on the same disk.
    """

    device: Device
    name: str
    memory: int | None
    main_memory: int | None
    cpus: int
    disk: int
    cache_disk: int | None = None

    def text(self) -> str:
        """The machine in one line."""
        memory = "an unknown amount of" if self.memory is None else f"{self.memory / GIGABYTE:.1f} GB of"
        main = (
            ""
            if self.device != "cuda" or self.main_memory is None
            else (f", {self.main_memory / GIGABYTE:.1f} GB of main memory")
        )
        cpus = "1 CPU" if self.cpus == 1 else f"{self.cpus} CPUs"
        return f"{self.name} with {memory} memory{main}, {cpus}, {self.disk / GIGABYTE:.0f} GB of free disk"


def this_machine(output: Path) -> Machine:
    """The machine that this process runs on; `output` is on the disk whose space is reported."""
    main = available_memory()
    device: Device
    on_device: int | None
    if torch.cuda.is_available():
        memory = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
        device, name, on_device = "cuda", torch.cuda.get_device_name(0), min(memory)
    elif torch.backends.mps.is_available():
        device, name, on_device = "mps", "an Apple GPU", device_memory(torch.device("mps"))
    else:
        device, name, on_device = "cpu", "a CPU", main
    place, cache = _existing(output), _existing(cache_folder("features"))
    cache_disk = None if cache.stat().st_dev == place.stat().st_dev else shutil.disk_usage(cache).free
    return Machine(device, name, on_device, main, usable_cpus(), shutil.disk_usage(place).free, cache_disk)


def _existing(place: Path) -> Path:
    """The innermost existing folder of a path."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return place
