"""The main memory that this process may use: what the machine has available, within the limit of its container."""

import os
from pathlib import Path

import pytest

from aligngpt import doctor
from aligngpt.memory import available_memory
from aligngpt.starting import machine

MEMINFO = "MemTotal:       16000000 kB\nMemFree:          500000 kB\nMemAvailable:    8000000 kB\n"
AVAILABLE = 8_000_000 * 1024


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text)


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own"
    path.write_text(text)
    return path


def test_without_a_container_it_is_what_the_machine_has_available(meminfo: Path, tmp_path: Path) -> None:
    assert available_memory(meminfo, tmp_path, tmp_path / "none") == AVAILABLE
    assert available_memory(meminfo, tmp_path / "none", own(tmp_path, "0::/\n")) == AVAILABLE


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("1000000\n", 1_000_000), ("max\n", AVAILABLE), ("9223372036854771712\n", AVAILABLE), ("", AVAILABLE)],
)
def test_the_limit_of_a_container_counts_if_it_is_smaller(
    limit: str, expected: int, meminfo: Path, tmp_path: Path
) -> None:
    version_2, version_1 = tmp_path / "2", tmp_path / "1"
    # In a container the path is often that of the host, and the limit stands at the root of the mount.
    group(version_2, max=limit)
    assert available_memory(meminfo, version_2, own(tmp_path, "0::/path/of/the/host\n")) == expected
    group(version_1 / "memory" / "job", limit_in_bytes=limit)
    group(version_1 / "cpu" / "job", limit_in_bytes="5")
    assert available_memory(meminfo, version_1, own(tmp_path, "9:cpu:/job\n4:memory:/job\n")) == expected


def test_the_limit_of_a_job_counts_less_what_it_uses(meminfo: Path, tmp_path: Path) -> None:
    """As SLURM's `--mem` sets it, on the group around the step's; the kernel drops cached files when it must."""
    stat = "anon 1\nactive_file 200000\ninactive_file 100000\n"
    group(tmp_path, max="2000000\n")
    group(tmp_path / "job", max="1000000\n", current="700000\n", stat=stat)
    group(tmp_path / "job" / "step", max="max\n", current="650000\n")
    step = own(tmp_path, "0::/job/step\n")
    assert available_memory(meminfo, tmp_path, step) == 600_000
    # More in use than the limit, as for a moment after it was lowered.
    group(tmp_path, current="2500000\n")
    assert available_memory(meminfo, tmp_path, step) == 0


def test_what_a_group_of_version_1_uses_is_with_the_groups_inside(meminfo: Path, tmp_path: Path) -> None:
    stat = "active_file 1\ntotal_active_file 200000\ntotal_inactive_file 100000\n"
    group(tmp_path / "memory", limit_in_bytes="1000000", usage_in_bytes="700000", stat=stat)
    assert available_memory(meminfo, tmp_path, own(tmp_path, "4:memory:/\n")) == 600_000


def test_where_the_kernel_does_not_say_the_total_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert available_memory(tmp_path / "none", tmp_path, tmp_path / "none") == 4_096_000


@pytest.mark.parametrize("text", ["MemAvailable:\n", "MemAvailable: much kB\n", "MemFree: 5 kB\n"])
def test_a_report_that_is_not_understood_is_no_report(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sysconf")
    (tmp_path / "meminfo").write_text(text)
    assert available_memory(tmp_path / "meminfo", tmp_path, tmp_path / "none") is None


def test_doctor_and_init_see_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (doctor, machine):
        monkeypatch.setattr(module, "available_memory", lambda: 1_500_000_000)
    found = doctor.memory()
    assert (found.state, found.found) == ("note", "1.5 GB available")
    assert machine.this_machine(tmp_path).main_memory == 1_500_000_000
    monkeypatch.setattr(doctor, "available_memory", lambda: None)
    assert doctor.memory().found == "not reported by this system"
