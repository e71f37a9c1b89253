"""Every part of the program that measures a GPU, on the CPU at tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)


@pytest.mark.slow
def test_a_rehearsal_runs_every_part(tmp_path: Path) -> None:
    done = run("--rehearse", "--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    parts: dict[str, Any] = found["parts"]
    assert found["rehearsal"] is True
    assert list(parts) == [
        "machine",
        "ceilings",
        "attention",
        "equality",
        "training",
        "scoring",
        "decoding",
        "tests",
    ]
    for name, part in parts.items():
        assert part["status"] == "done", (name, part)
        assert part["rows"], name
    # There are no such kernels for a CPU, so no figure may be theirs.
    for name in ("attention", "equality", "training"):
        assert "not available on a CPU: varlen, flex" in parts[name]["remarks"]
        assert not {"varlen", "flex"} & {row.get("way", row.get("layout")) for row in parts[name]["rows"]}
    assert [row["layout"] for row in parts["training"]["rows"]] == ["padded", "loop", "loop"]
    assert all(row["losses_differ"] < 1e-4 for row in parts["training"]["rows"])
    assert all(row["right"] for row in parts["attention"]["rows"] if "error" in row)
    assert {(row["by"], row["batch"]) for row in parts["decoding"]["rows"]} == {
        (by, batch) for by in ("engine", "generate") for batch in (1, 8)
    }
    assert [row["what"] for row in parts["scoring"]["rows"]] == ["model", "opening", "files to scores"]
    skipped = "passed" if torch.cuda.is_available() else "skipped"
    assert skipped in parts["tests"]["rows"][0]["outcome"]
    for name in parts:
        assert name in done.stdout.split("outcome")[-1]


@pytest.mark.medium
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_machine_without_a_gpu_is_told_so() -> None:
    done = run()
    assert done.returncode == 2
    assert "no CUDA GPU" in done.stderr and "--rehearse" in done.stderr


def test_an_unknown_part_is_refused() -> None:
    done = run("--rehearse", "--parts", "machine,speed")
    assert done.returncode == 2
    assert "no part is called speed" in done.stderr
