"""Files and folders are there in full or not at all, whatever happens while they are written."""

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aligngpt.files import atomic_folder, atomic_write, sha256_of


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    assert os.umask(before) == request.param


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_when_it_was_written_in_full(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with atomic_write(path) as file:
        file.write("größer\n")
        assert not path.exists()
    assert path.read_bytes() == "größer\n".encode()
    assert names(tmp_path) == {"file.txt"}


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    with atomic_write(str(tmp_path / "file.bin"), "wb") as file:
        file.write(b"\x00\r\n\xff")
    assert (tmp_path / "file.bin").read_bytes() == b"\x00\r\n\xff"


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a" / "b" / "file") as file:
        file.write("x")
    with atomic_folder(tmp_path / "c" / "d" / "folder") as folder:
        (folder / "file").touch()
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"
    assert names(tmp_path / "c" / "d" / "folder") == {"file"}


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", ["old", None])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException], old: str | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error), atomic_write(path) as file:
        file.write("half")
        raise error
    assert names(tmp_path) == ({"file"} if old else set())
    assert old is None or path.read_text() == old


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr("aligngpt.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as file:
        file.write("new")
    assert path.read_text() == "old"
    assert names(tmp_path) == {"file"}


def test_what_is_no_place_for_a_file_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "folder"):
        pass
    with pytest.raises((FileExistsError, NotADirectoryError)), atomic_write(tmp_path / "file" / "below"):
        pass
    assert names(tmp_path) == {"folder", "file"}


def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    with atomic_write(tmp_path / "file") as file:
        file.write("x")
    with atomic_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_folder_appears_when_everything_in_it_was_written(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("new")
        assert temporary.parent == tmp_path and not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "file").read_text() == "new"
    assert names(tmp_path) == {"folder"}


def test_an_older_folder_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "deep").mkdir(parents=True)
    (target / "deep" / "old").touch()
    with atomic_folder(target) as temporary:
        (temporary / "new").touch()
        assert names(target) == {"deep"}
    assert names(target) == {"new"}
    assert names(tmp_path) == {"folder"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_older_folder(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    for target in (tmp_path / "folder", tmp_path / "other"):
        with pytest.raises(error), atomic_folder(target) as temporary:
            (temporary / "half").touch()
            raise error
    assert names(tmp_path) == {"folder"}
    assert names(tmp_path / "folder") == {"old"}


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_that_cannot_take_its_place_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, linked: bool
) -> None:
    target = tmp_path / "folder"
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    if linked:
        target.symlink_to("real")
    else:
        (tmp_path / "real").rename(target)
    before = names(tmp_path)
    replace, calls = os.replace, []

    def replace_but_once(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) == failing:
            raise PermissionError("in use")
        replace(old, new)

    monkeypatch.setattr("aligngpt.files.os.replace", replace_but_once)
    with pytest.raises(PermissionError, match="in use"), atomic_folder(target) as temporary:
        (temporary / "new").touch()
    assert names(tmp_path) == before
    assert names(target) == {"old"}


@pytest.mark.parametrize("size", [0, 3, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_sha256_is_of_the_whole_content(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert sha256_of(io.BytesIO(content)) == hashlib.sha256(content).hexdigest()


def test_sha256_starts_where_the_file_stands() -> None:
    file = io.BytesIO(b"skippedabc")
    file.seek(7)
    assert sha256_of(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
