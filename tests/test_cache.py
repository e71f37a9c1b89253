"""Where the cache is, and what is said where it cannot be written."""

from pathlib import Path

import pytest

from aligngpt.cache import CacheError, cache_entry, cache_folder


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


def test_an_entry_is_there_in_full_or_not_at_all(tmp_path: Path) -> None:
    entry = tmp_path / "kind" / "entry"
    with pytest.raises(KeyError), cache_entry(entry) as folder:
        (folder / "half").touch()
        raise KeyError
    assert list(entry.parent.iterdir()) == []
    with cache_entry(entry) as folder:
        (folder / "whole").touch()
    assert (entry / "whole").is_file()


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = pytest.raises(CacheError, match=r"file/entry cannot be written: .*set ALIGNGPT_CACHE")
    with said, cache_entry(tmp_path / "file" / "entry"):
        pass
