"""The peak includes memory that was freed again, and can be reset."""

import mmap
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from aligngpt import device
from aligngpt.device import peak_memory, reset_peak_memory

MIB = 1 << 20


@pytest.fixture
def resettable() -> None:
    """Skip unless the system lets a process reset its peak: Linux, and not every container."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the peak cannot be reset here")


def current_memory() -> int:
    """Resident memory of this process in bytes, as reported by Linux."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) * 1024


def hold(size: int) -> None:
    """Briefly hold `size` bytes of newly mapped memory; pages are written because only written ones count."""
    with mmap.mmap(-1, size) as pages:
        for page in range(0, size, mmap.PAGESIZE):
            pages[page] = 1


@pytest.mark.usefixtures("resettable")
def test_the_peak_remembers_what_was_let_go() -> None:
    reset_peak_memory()
    before = current_memory()
    hold(200 * MIB)
    assert current_memory() < before + 100 * MIB
    assert before + 190 * MIB < peak_memory() < before + 300 * MIB


@pytest.mark.usefixtures("resettable")
def test_after_a_reset_the_peak_is_what_is_held_now() -> None:
    hold(200 * MIB)
    high = peak_memory()
    reset_peak_memory()
    assert peak_memory() < high - 100 * MIB
    assert abs(peak_memory() - current_memory()) < 50 * MIB


@pytest.mark.usefixtures("resettable")
def test_a_second_peak_is_not_added_to_the_first() -> None:
    reset_peak_memory()
    hold(200 * MIB)
    first = peak_memory()
    hold(200 * MIB)
    assert abs(peak_memory() - first) < 50 * MIB


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_where_proc_is_missing_the_peak_is_the_systems_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, unit: int
) -> None:
    resource = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=5000))
    monkeypatch.setitem(sys.modules, "resource", resource)
    monkeypatch.setattr(device, "Path", lambda name: tmp_path / "gone" / Path(name).name)
    monkeypatch.setattr(sys, "platform", platform)
    reset_peak_memory()
    assert peak_memory() == 5000 * unit


def test_where_nothing_tells_the_peak_is_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "Path", lambda name: tmp_path / "gone" / Path(name).name)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() == 0
