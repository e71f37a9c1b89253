"""What the cache holds, and what trimming removes."""

import os
import re
import time
from pathlib import Path

import pytest

import aligngpt
from aligngpt.cache import CacheError
from aligngpt.cache_entries import KINDS, CacheEntry, Limit, cache_entries, parse_limit, remove_entries, size_text
from aligngpt.leftovers import temporary_beside
from aligngpt.quickstart.scenes.iconify import NAMES, TRAIN_SETS, UNSEEN_SET
from aligngpt.quickstart.scenes.npm_packages import entry_of
from aligngpt.training.feed import feature_cache

DAY = 86400.0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one entry with samples, used 9 days ago, and two with features, used 5 and 1 days ago."""
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    cache = tmp_path / "cache"
    files = {
        cache / "samples" / ("0" * 64) / "samples.arrow": (100, 9),
        cache / "samples" / ("0" * 64) / "rejects.jsonl": (20, 9),
        cache / "features" / "aa" / "bb" / f"aabb{'0' * 60}.safetensors": (50, 5),
        cache / "features" / "aa" / "cc" / f"aacc{'0' * 60}.safetensors": (70, 1),
    }
    for path, (size, days) in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0" * size)
        os.utime(path, (time.time() - days * DAY,) * 2)
    return cache


def names(entries: list[CacheEntry]) -> set[str]:
    return {entry.path.name[:4] for entry in entries}


def test_entries_have_their_kind_and_size(cache: Path) -> None:
    assert {(entry.kind, entry.path.name[:4], entry.size) for entry in cache_entries()} == {
        ("samples", "0000", 120),
        ("features", "aabb", 50),
        ("features", "aacc", 70),
    }


def test_what_the_cache_does_not_own_is_not_an_entry(cache: Path, tmp_path: Path) -> None:
    before = cache_entries()
    (cache / "notes.txt").touch()
    (cache / "other" / ("1" * 64)).mkdir(parents=True)
    (cache / "samples" / "mine").mkdir()
    (cache / "samples" / ("2" * 64)).symlink_to(tmp_path)
    temporary_beside(cache / "samples" / ("3" * 64)).mkdir()
    assert cache_entries() == before


@pytest.mark.parametrize(
    ("limit", "removed"),
    [
        ("1GB", set()),
        ("240B", set()),
        ("239 B", {"0000"}),
        ("0.1 kb", {"0000", "aabb"}),
        ("0B", {"0000", "aabb", "aacc"}),
        ("7d", {"0000"}),
        ("3 days", {"0000", "aabb"}),
        ("30d", set()),
    ],
)
def test_the_entries_used_longest_ago_are_removed(cache: Path, limit: str, removed: set[str]) -> None:
    chosen = parse_limit(limit).beyond(cache_entries())
    assert names(chosen) == removed
    assert remove_entries(chosen) == []
    assert names(cache_entries()) == {"0000", "aabb", "aacc"} - removed
    assert not list(cache.rglob("*.tmp"))


@pytest.mark.parametrize("text", ["", "20", "GB", "-1GB", "20 apples", "1e3B"])
def test_a_limit_that_is_neither_size_nor_age_is_refused(text: str) -> None:
    with pytest.raises(CacheError, match="neither a size such as 20GB nor an age in days such as 30d"):
        parse_limit(text)


def test_an_entry_that_has_gone_meanwhile_is_no_error(cache: Path) -> None:
    entries = cache_entries()
    remove_entries(entries)
    assert remove_entries(entries) == []


def test_units() -> None:
    assert parse_limit("2TB") == Limit(size=2e12)
    assert [size_text(size) for size in (0, 999, 1500, 2.5e9)] == ["0 B", "999 B", "1.5 KB", "2.5 GB"]


def test_converted_files_and_unpacked_packages_are_entries(cache: Path) -> None:
    def put(path: Path) -> Path:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"0" * 10)
        return path

    ours = {
        put(cache / "converted" / ("c" * 64) / "data.jsonl").parent,
        put(cache / "npm" / f"emoji-datasource-15.1.2-{'a1' * 6}" / "img" / "1.png").parents[1],
        put(cache / "debian" / "openclipart" / "usr" / "share" / "1.svg").parents[2],
    }
    (cache / "debian" / "openclipart" / "usr" / "share" / "2.svg").symlink_to("1.svg")
    found = [entry for entry in cache_entries() if entry.kind in ("converted", "npm", "debian")]
    assert {entry.path for entry in found} == ours and [entry.size for entry in found] == [10, 10, 10]
    assert remove_entries(cache_entries()) == []
    assert cache_entries() == [] and not any(path.is_file() for path in cache.rglob("*"))


def test_the_folders_of_others_are_not_entries(cache: Path, tmp_path: Path) -> None:
    before = cache_entries()
    for name in ("npm/_cacache", "npm/node_modules/x", "npm/left-pad-1.0.0", "debian/openclipart/pool", "debian/dists"):
        (cache / name).mkdir(parents=True)
    (cache / "npm" / f"file-1.0.0-{'a' * 12}").touch()
    (cache / "npm" / f"link-1.0.0-{'a' * 12}").symlink_to(tmp_path)
    (cache / "converted").symlink_to(tmp_path)
    (cache / "converted" / "mine.json").touch()
    temporary_beside(cache / "npm" / f"emoji-1.0.0-{'b' * 12}").mkdir()
    assert cache_entries() == before


def test_every_kind_that_is_made_is_a_kind_that_is_listed() -> None:
    source = Path(aligngpt.__file__).parent
    kinds = {
        kind
        for path in source.rglob("*.py")
        for kind in re.findall(r'(?:entry_path|cache_folder)\("(\w+)"', path.read_text(encoding="utf-8"))
    }
    # The name of the last is a constant.
    assert kinds | {feature_cache.NAME} == set(KINDS)


def test_the_emoji_of_the_scenes_are_entries(cache: Path) -> None:
    folders = {entry_of(package) for package in (*TRAIN_SETS, UNSEEN_SET, NAMES)}
    for folder in folders:
        folder.mkdir(parents=True)
    assert {entry.path for entry in cache_entries() if entry.kind == "npm"} == folders
