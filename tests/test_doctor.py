"""What the doctor reports of a machine and an installation, and when it calls something a problem."""

import importlib.metadata
import json
import shutil
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from aligngpt import cli, doctor
from aligngpt.doctor import COSTS, DEVELOPMENT, TESTED, Finding, packages, report

ROOT = Path(__file__).parents[1]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The installed packages, to be filled by the test."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_this_installation_works() -> None:
    findings = {one.name: one for one in doctor.examine()}
    assert report(list(findings.values()))["working"]
    assert findings["torch"].found == importlib.metadata.version("torch")
    assert findings["transformers"].state == "ok"
    assert {"Python", "CPUs", "main memory", "cache", "Hugging Face hub", "extra study"} <= set(findings)
    assert any(name.startswith("device") for name in findings)


def test_what_was_tested_is_what_the_tests_are_run_with() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    assert {name: pinned[name].split(" ")[0] for name in TESTED} == TESTED


def test_every_extra_has_its_cost() -> None:
    extras = importlib.metadata.metadata("aligngpt").get_all("Provides-Extra") or []
    assert set(COSTS) <= set(extras)
    named = {one.name.removeprefix("extra ") for one in doctor.examine() if one.name.startswith("extra ")}
    assert named == set(extras) - set(DEVELOPMENT)


def test_a_required_package_that_is_missing_or_too_old_is_a_problem(installed: dict[str, str]) -> None:
    installed |= {"torch": "2.1.0", "peft": "0.19"}
    torch, peft, numpy = packages(["torch>=2.11", "peft>=0.18", "numpy>=1.26"])
    assert (torch.state, torch.found) == ("problem", "2.1.0") and "pip install 'torch>=2.11'" in torch.advice
    assert peft == Finding("peft", "0.19")
    assert (numpy.state, numpy.found) == ("problem", "missing")


def test_a_newer_package_than_tested_is_worth_a_note(installed: dict[str, str]) -> None:
    installed |= {"torch": "99.0.1+cpu"}
    (torch,) = packages(["torch>=2.11"])
    assert (torch.state, torch.advice) == ("note", f"newer than the version that was tested, {TESTED['torch']}")


def test_a_missing_extra_is_a_note_with_its_cost(installed: dict[str, str]) -> None:
    installed |= {"scipy": "1.15"}
    study, ray = packages(['scipy>=1.13; extra == "study"', "ray>=2.40; extra == 'ray'", 'ruff>=1; extra == "lint"'])
    assert study == Finding("extra study", "installed")
    assert ray.state == "note" and COSTS["ray"] in ray.advice and "pip install 'aligngpt[ray]'" in ray.advice


def test_only_linux_is_tested() -> None:
    assert [[one.state for one in doctor.system(name)] for name in ("Linux", "Darwin", "Windows")] == [
        [],
        ["note"],
        ["problem"],
    ]


def test_old_and_untested_versions_of_python() -> None:
    assert [doctor.python(version).state for version in ((3, 10), (3, 11), (3, 13), (3, 14))] == [
        "problem",
        "ok",
        "ok",
        "note",
    ]


def test_a_torch_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (found,) = doctor.device()
    assert found.state == "problem" and "torch cannot be imported" in found.advice


def test_a_gpu_that_torch_does_not_use_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    from aligngpt import device

    monkeypatch.setattr(device, "resolve_device", lambda: SimpleNamespace(type="cpu"))
    monkeypatch.setattr(device, "supports_bfloat16", lambda _: False)
    for driver, state in ((None, "ok"), ("/usr/bin/nvidia-smi", "note")):
        monkeypatch.setattr(shutil, "which", lambda _, driver=driver: driver)
        (found,) = doctor.device()
        assert (found.state, found.found) == (state, "cpu, faster in float32")


def test_a_gpu_that_torch_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in exclusive mode, or with a driver that does not fit: everything else is still told."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (found,) = doctor.device()
    assert found.state == "problem" and found.advice.startswith("the device 'cuda' cannot be used: ")
    assert "; use --device cpu where the command has it" in found.advice
    assert len(doctor.examine()) > 5


def test_of_several_gpus_the_one_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from aligngpt import device

    def memory(number: int) -> tuple[int, int]:
        if number == 0:
            raise RuntimeError("CUDA error: out of memory\nmore")
        return 3 * 10**9, 8 * 10**9

    monkeypatch.setattr(device, "resolve_device", lambda: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(device, "supports_bfloat16", lambda _: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Card {number}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    broken, good = doctor.device()
    assert (broken.state, broken.advice) == ("problem", "CUDA error: out of memory")
    assert good.state == "ok" and good.found == "Card 1, 3.0 GB of 8.0 GB free, faster in bfloat16"


@pytest.mark.parametrize(("value", "state"), [("1", "note"), ("true", "note"), ("0", "ok"), ("", "ok")])
def test_offline_mode_is_noted(monkeypatch: pytest.MonkeyPatch, value: str, state: str) -> None:
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert doctor.hub().state == state


def test_a_full_disk_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "not" / "yet"))
    for free, state in ((10**12, "ok"), (10**9, "note")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert doctor.disk().state == state
    assert str(tmp_path) in doctor.disk().found


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("note", 0), ("problem", 3)])
def test_the_command_ends_with_3_only_if_something_needed_is_broken(
    monkeypatch: pytest.MonkeyPatch, state: Any, code: int
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("CPUs", "2"), Finding("torch", "1.0", state, "install it")])
    plain = CliRunner().invoke(cli.app, ["doctor"])
    assert plain.exit_code == code and plain.output.startswith("CPUs: 2\ntorch: 1.0; ")
    ended = CliRunner().invoke(cli.app, ["doctor", "--json"])
    assert ended.exit_code == code
    found = json.loads(ended.output)
    assert found["working"] == (code == 0) and found["findings"][1]["state"] == state


def test_the_cost_of_every_extra_of_the_project_is_named() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras) - set(DEVELOPMENT) == set(COSTS)


@pytest.mark.parametrize(("available", "state"), [(4.5e9, "note"), (5e9, "ok")])
def test_less_memory_than_the_quickstart_needs_is_noted(
    monkeypatch: pytest.MonkeyPatch, available: float, state: str
) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: int(available))
    found = doctor.memory()
    assert found.state == state and ("the quickstart needs 5.0 GB" in found.advice) == (state == "note")
