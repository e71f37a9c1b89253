import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from aligngpt.quickstart.scenes.material import MaterialError
from aligngpt.quickstart.scenes.npm_packages import NpmPackage, fetch

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the npm of these tests is a shell script")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("package/icons.json", "package/en/data.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    return path


@pytest.fixture
def package(archive: Path) -> NpmPackage:
    return NpmPackage("@tiny/set", "1.0.0", "MIT", hashlib.sha256(archive.read_bytes()).hexdigest())


def put_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_files_are_fetched_once(
    package: NpmPackage, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_npm(tmp_path, monkeypatch, f'echo "$@" >> {tmp_path}/calls; cp {archive} tiny-set-1.0.0.tgz')
    for _ in range(2):
        folder = fetch(package, ("icons.json", "en/data.json"))
        assert (folder / "icons.json").read_text() == (folder / "en" / "data.json").read_text() == "{}"
    assert (tmp_path / "calls").read_text() == "pack @tiny/set@1.0.0 --ignore-scripts --loglevel=error\n"


def test_without_npm_the_error_names_the_other_source(
    package: NpmPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MaterialError, match=r'not installed; install Node\.js .*--material pypi; in Python source="pypi"'
    ):
        fetch(package, ("icons.json",))


def test_what_npm_says_of_a_failure_is_passed_on(
    package: NpmPackage, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_npm(tmp_path, monkeypatch, 'echo "npm error code ENOTFOUND" >&2; exit 1')
    with pytest.raises(MaterialError, match=r"failed \(npm error code ENOTFOUND\); check the network"):
        fetch(package, ("icons.json",))
    assert not cache.exists()


def test_another_archive_is_refused(
    package: NpmPackage, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_npm(tmp_path, monkeypatch, "echo other > tiny-set-1.0.0.tgz")
    with pytest.raises(MaterialError, match=rf"has SHA-256 \w+, expected {package.sha256}"):
        fetch(package, ("icons.json",))
    assert not cache.exists()


def test_a_file_the_archive_lacks_is_named_and_nothing_is_kept(
    package: NpmPackage, archive: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_npm(tmp_path, monkeypatch, f"cp {archive} tiny-set-1.0.0.tgz")
    with pytest.raises(MaterialError, match=r"@tiny/set@1\.0\.0 has no file chars\.json"):
        fetch(package, ("icons.json", "chars.json"))
    assert not list(cache.rglob("icons.json"))
