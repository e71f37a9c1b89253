"""Training on several processes of this machine (gloo), as a user starts it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file

from aligngpt.training.recipe import Recipe
from aligngpt.training.stage import model_folder

SECONDS = 120
ALIGNGPT = Path(sys.executable).with_name("aligngpt")


def start(
    recipe: Recipe, path: Path, program: Path = ALIGNGPT, launch: Sequence[str] = ("--standalone",)
) -> subprocess.Popen:
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", *launch]
    return subprocess.Popen(
        [sys.executable, *launch, str(program), "train", str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(recipe: Recipe, path: Path, program: Path = ALIGNGPT) -> str:
    """Train on two processes; check their output, not the exit code: gloo sometimes aborts at the very end."""
    process = start(recipe, path, program)
    output, _ = process.communicate(timeout=SECONDS)
    return output


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def kill_in_instruction_tuning(recipe: Recipe, path: Path) -> None:
    """Start training and kill all of its processes after a few checkpoints."""
    process = start(recipe, path)
    checkpoints = Path(recipe.output) / "instruct" / "checkpoints"
    deadline = time.monotonic() + SECONDS
    while not list(checkpoints.glob("checkpoint-[3-9]/complete.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
    # Each process runs in its own session.
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.communicate()


def losses(recipe: Recipe, stage: str) -> list[float]:
    lines = (Path(recipe.output) / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def figures(recipe: Recipe, stage: str) -> list[dict[str, Any]]:
    """The lines of a stage's metrics, without timings."""
    lines = (Path(recipe.output) / stage / "metrics.jsonl").read_text().splitlines()
    timed = ("seconds", "tokens_per_second", "waiting", "peak_device_gb", "tflops_per_second", "mfu")
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def assert_same_weights(found: Recipe, expected: Recipe) -> None:
    ours, theirs = (load_file(model_folder(recipe) / "model.safetensors") for recipe in (found, expected))
    for name, tensor in theirs.items():
        if name.endswith("k_proj.bias"):
            # Softmax is invariant to a bias on all keys: its gradient is rounding noise, which Adam amplifies.
            continue
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)
