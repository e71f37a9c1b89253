"""The CPUs that this process may use: those of its affinity, within the quotas of its control groups."""

import os
from pathlib import Path

import pytest

from aligngpt.cpus import usable_cpus


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)), raising=False)


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cgroup"
    path.write_text(text)
    return path


def test_the_affinity_limits_the_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert usable_cpus(tmp_path, tmp_path / "none") == 96
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7, 9})
    assert usable_cpus(tmp_path, tmp_path / "none") == 4
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cpus(tmp_path, tmp_path / "none") == 128


@pytest.mark.parametrize(("quota", "expected"), [("400000 100000\n", 4), ("150000 100000\n", 2), ("1000 100000", 1)])
def test_a_quota_of_version_2_limits_them(quota: str, expected: int, tmp_path: Path) -> None:
    group(tmp_path / "job" / "step", cpu__max="max 100000\n")
    group(tmp_path / "job", cpu__max=quota)
    assert usable_cpus(tmp_path, own(tmp_path, "0::/job/step\n")) == expected


def test_in_a_container_the_root_of_the_mount_is_read(tmp_path: Path) -> None:
    group(tmp_path, cpu__max="800000 100000\n")
    assert usable_cpus(tmp_path, own(tmp_path, "0::/path/of/the/host\n")) == 8


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_a_quota_of_version_1_limits_them(mount: str, tmp_path: Path) -> None:
    group(tmp_path / mount / "job", cpu__cfs_quota_us="300000\n", cpu__cfs_period_us="100000\n")
    group(tmp_path / "memory" / "job", cpu__cfs_quota_us="100000\n", cpu__cfs_period_us="100000\n")
    assert usable_cpus(tmp_path, own(tmp_path, "9:memory:/job\n4:cpu,cpuacct:/job\n")) == 3


@pytest.mark.parametrize("text", ["-1", "max", "", "0"])
def test_without_a_quota_or_with_a_broken_one_they_are_unlimited(text: str, tmp_path: Path) -> None:
    group(tmp_path / "cpu", cpu__cfs_quota_us=text, cpu__cfs_period_us="100000")
    group(tmp_path, cpu__max=text)
    assert usable_cpus(tmp_path, own(tmp_path, "4:cpu:/\n0::/\nnonsense")) == 96
