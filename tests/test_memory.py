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


def test_without_a_container_it_is_what_the_machine_has_available(meminfo: Path, tmp_path: Path) -> None:
    assert available_memory(meminfo, [tmp_path / "none"]) == AVAILABLE


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("1000000\n", 1_000_000), ("max\n", AVAILABLE), ("9223372036854771712\n", AVAILABLE), ("", AVAILABLE)],
)
def test_the_limit_of_a_container_counts_if_it_is_smaller(
    limit: str, expected: int, meminfo: Path, tmp_path: Path
) -> None:
    path = tmp_path / "limit"
    path.write_text(limit)
    assert available_memory(meminfo, [tmp_path / "none", path]) == expected


def test_where_the_kernel_does_not_say_the_total_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert available_memory(tmp_path / "none", []) == 4_096_000


@pytest.mark.parametrize("text", ["MemAvailable:\n", "MemAvailable: much kB\n", "MemFree: 5 kB\n"])
def test_a_report_that_is_not_understood_is_no_report(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sysconf")
    (tmp_path / "meminfo").write_text(text)
    assert available_memory(tmp_path / "meminfo", []) is None


def test_doctor_and_init_see_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (doctor, machine):
        monkeypatch.setattr(module, "available_memory", lambda: 1_500_000_000)
    found = doctor.memory()
    assert (found.state, found.found) == ("note", "1.5 GB available")
    assert machine.this_machine(tmp_path).main_memory == 1_500_000_000
    monkeypatch.setattr(doctor, "available_memory", lambda: None)
    assert doctor.memory().found == "not reported by this system"
