import os
from pathlib import Path

import pytest

from aligngpt.quickstart.clipart import packages
from aligngpt.quickstart.clipart.packages import ClipartError, find_clipart


@pytest.fixture(autouse=True)
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "INSTALLED", tmp_path / "not-installed")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()


def put(tmp_path: Path, name: str, script: str) -> None:
    (tmp_path / "bin" / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    (tmp_path / "bin" / name).chmod(0o755)


@pytest.mark.parametrize("below", ["", "openclipart", "usr/share/openclipart"])
def test_a_folder_of_unpacked_packages_is_found_at_each_depth(tmp_path: Path, below: str) -> None:
    for kind in ("png", "svg"):
        (tmp_path / "own" / below / kind).mkdir(parents=True)
    assert find_clipart(tmp_path / "own") == tmp_path / "own" / below


def test_a_folder_without_drawings_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "own" / "png").mkdir(parents=True)
    with pytest.raises(ClipartError, match=r"own does not hold the folders png and svg .* `dpkg-deb -x PACKAGE\.deb"):
        find_clipart(tmp_path / "own")


def test_without_apt_the_error_says_where_to_put_the_packages() -> None:
    with pytest.raises(ClipartError, match=r"apt-get, which is not installed.*name the folder in `clipart: \{folder"):
        find_clipart()


@pytest.mark.skipif(os.name != "posix", reason="the programs of these tests are shell scripts")
class TestFetching:
    def test_packages_are_fetched_once(self, tmp_path: Path) -> None:
        put(tmp_path, "apt-get", f'echo "$@" >> {tmp_path}/calls; touch openclipart-png_1.deb openclipart-svg_1.deb')
        put(tmp_path, "dpkg-deb", 'n=$(basename "$2" | cut -c13-15); mkdir -p "$3/usr/share/openclipart/$n"')
        found = find_clipart()
        assert find_clipart() == found and found.is_relative_to(tmp_path / "cache")
        assert (tmp_path / "calls").read_text() == "download openclipart-png openclipart-svg\n"

    def test_a_failure_of_apt_is_told_and_leaves_no_cache(self, tmp_path: Path) -> None:
        put(tmp_path, "apt-get", 'echo "E: Unable to locate package openclipart-png" >&2; exit 100')
        with pytest.raises(ClipartError, match=r"`apt-get download` failed \(E: Unable to locate.*apt-get update"):
            find_clipart()
        assert not (tmp_path / "cache" / "debian" / "openclipart").exists()

    def test_packages_of_another_layout_are_refused(self, tmp_path: Path) -> None:
        put(tmp_path, "apt-get", "touch openclipart-png_1.deb")
        put(tmp_path, "dpkg-deb", 'mkdir -p "$3/other"')
        with pytest.raises(ClipartError, match=r"brought openclipart-png_1\.deb, which has no folders png and svg"):
            find_clipart()
        assert not (tmp_path / "cache" / "debian" / "openclipart").exists()
