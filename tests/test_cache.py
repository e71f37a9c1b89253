"""Location of the cache, and the messages if it cannot be written."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aligngpt import cache
from aligngpt.cache import CacheError, cache_entry, cache_folder
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.preparing import prepare_samples


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    monkeypatch.setenv("ALIGNGPT_CACHE", "~/own")
    assert cache_folder("samples") == tmp_path / "home" / "own" / "samples"
    monkeypatch.setenv("ALIGNGPT_CACHE", "")
    assert cache_folder("samples") == tmp_path / "shared" / "aligngpt" / "samples"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("samples") == tmp_path / "home" / ".cache" / "aligngpt" / "samples"
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home_has_a_temporary_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("ALIGNGPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    cache._instead_of.cache_clear()
    try:
        found = cache_folder("samples")
    finally:
        cache._instead_of.cache_clear()
    assert found.parent.parent == tmp_path and found.name == "samples"
    assert "Set ALIGNGPT_CACHE to a writable folder" in capsys.readouterr().err


def test_an_entry_is_there_in_full_or_not_at_all(tmp_path: Path) -> None:
    entry = tmp_path / "kind" / "entry"
    with pytest.raises(KeyError), cache_entry(entry) as folder:
        (folder / "half").touch()
        raise KeyError
    assert list(entry.parent.iterdir()) == []
    with cache_entry(entry) as folder:
        (folder / "whole").touch()
    assert (entry / "whole").is_file()


def test_the_entry_of_a_process_that_was_faster_stays(tmp_path: Path) -> None:
    entry = tmp_path / "kind" / "entry"
    with cache_entry(entry, is_made=entry.is_dir) as folder:
        (folder / "slow").touch()
        entry.mkdir()
        (entry / "fast").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "kind/entry/fast"
    ]
    assert list(entry.parent.iterdir()) == [entry]


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = pytest.raises(CacheError, match=r"file/entry cannot be written: .*set ALIGNGPT_CACHE")
    with said, cache_entry(tmp_path / "file" / "entry"):
        pass


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder that cannot be created, and an empty temporary folder."""
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    cache._instead_of.cache_clear()
    yield tmp_path / "temporary"
    cache._instead_of.cache_clear()


def test_data_is_prepared_without_a_cache_that_can_be_written(
    no_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "data.json").write_text('[{"question": "1 + 1?", "answer": "2"}]', encoding="utf-8")
    for _ in range(2):
        assert len(prepare_samples(tmp_path / "data.json", rejects=Rejects(None))) == 1
    warned = " ".join(capsys.readouterr().err.split())
    assert warned.count("warning: the cache") == 1 and "Set ALIGNGPT_CACHE to a writable folder" in warned
    (own,) = no_cache.iterdir()
    assert own.stat().st_mode & 0o077 == 0, "others read what is prepared"
    assert len(list((own / "samples").iterdir())) == 1


def test_an_entry_of_a_cache_that_is_only_read_is_used(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_can_be_made", lambda folder: False)
    monkeypatch.setenv("ALIGNGPT_CACHE", str(no_cache / "shared"))
    (no_cache / "shared" / "samples" / "there").mkdir(parents=True)
    assert cache.entry_path("samples", "there") == no_cache / "shared" / "samples" / "there"
    elsewhere = cache.entry_path("samples", "new")
    assert elsewhere.parent.parent.parent == no_cache and not elsewhere.is_relative_to(no_cache / "shared")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners")
def test_a_folder_that_another_user_laid_ready_is_not_trusted(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (no_cache / "theirs").mkdir()
    (no_cache / f"aligngpt-{os.getuid()}").symlink_to("theirs")
    assert cache.entry_path("samples", "new").resolve().parent.parent != no_cache / "theirs"


def test_what_a_dead_process_left_in_the_cache_goes_when_an_entry_is_made(tmp_path: Path) -> None:
    code = "import os, sys, pathlib; sys.argv[0] = 'aligngpt'; from aligngpt.cache import cache_entry\n"
    code += "with cache_entry(pathlib.Path(sys.argv[1])) as folder: os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "one")]).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    with cache_entry(tmp_path / "other"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
