"""The folder of one quickstart run: its settings, and the measurements of its finished steps."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

import aligngpt
from aligngpt.device import peak_memory, reset_peak_memory
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.progress import console

RUN_FILE = "run.json"


class QuickstartError(AlignGPTError):
    """The quickstart cannot be run with the given arguments."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run, which a resumed run must share.

    Attributes:
        minutes: time budget of the whole run.
        seed: random seed of all steps.
        data: name of the data set.
        material: where its pictures come from; empty for a data set that leaves no choice.
    """

    minutes: float
    seed: int
    data: str = "easy-vqa"
    material: str = ""

    def __str__(self) -> str:
        """As in an error message: "12 minutes with seed 0 on easy-vqa"."""
        material = f" (material {self.material})" if self.material else ""
        return f"{self.minutes:g} minutes with seed {self.seed} on {self.data}{material}"


@dataclass
class Run:
    """The folder of one quickstart run, and the measurements of its finished steps.

    Attributes:
        folder: contains all files of the run.
        settings: what the run was started with.
        steps: seconds, samples and peak memory (bytes) by step name.
        training_minutes: set once when training begins, and kept by a resumed run.
    """

    folder: Path
    settings: Settings
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    training_minutes: float | None = None

    @classmethod
    def open(cls, folder: Path, settings: Settings) -> "Run":
        """Start a run, or resume the one in the folder.

        Raises:
            QuickstartError: the folder contains a run with other settings.
        """
        path = folder / RUN_FILE
        if not path.is_file():
            return cls(folder, settings)
        content = json.loads(path.read_text(encoding="utf-8"))
        # A run of an older version names no data: there was only one.
        found = Settings(**{name: content[name] for name in asdict(settings) if name in content})
        if found != settings:
            raise QuickstartError(
                f"{folder} contains a run of {found}, not of {settings}; use the same settings, or another folder "
                "with --out"
            )
        return cls(folder, settings, content["steps"], content["training_minutes"])

    def save(self) -> None:
        """Write run.json."""
        settings = asdict(self.settings)
        facts = {
            "aligngpt": aligngpt.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": str(torch.get_num_threads()),
            **{name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in settings.items()},
        }
        content = {
            **settings,
            "training_minutes": self.training_minutes,
            "steps": self.steps,
            "facts": {name: value for name, value in facts.items() if value},
        }
        with atomic_write(self.folder / RUN_FILE) as file:
            json.dump(content, file, indent=2)

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Measure one step and save the measurements if it succeeds. Yields a dict of facts to add to them."""
        console.print(f"[bold]{name}[/]")
        knows_peak = reset_peak_memory()
        started = time.monotonic()
        facts: dict[str, Any] = {}
        yield facts
        before = self.steps.get(name, {}).get("seconds", 0.0)
        measured = {
            "seconds": round(before + time.monotonic() - started, 1),
            "peak_memory": peak_memory() if knows_peak else None,
        }
        self.steps[name] = measured | facts
        self.save()

    def done(self, name: str) -> bool:
        """Whether a step was finished by this process or an earlier one."""
        return name in self.steps

    @property
    def seconds(self) -> float:
        """Total seconds of all finished steps."""
        return sum(step["seconds"] for step in self.steps.values())
