"""Files and folders are written atomically, whatever happens meanwhile."""

import hashlib
import io
import os
import stat
import subprocess
import sys
import threading
import time
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

    monkeypatch.setattr("aligngpt.files._exchange", lambda one, other: False)
    monkeypatch.setattr("aligngpt.files.os.replace", replace_but_once)
    with pytest.raises(PermissionError, match="in use"), atomic_folder(target) as temporary:
        (temporary / "new").touch()
    assert names(tmp_path) == before
    assert names(target) == {"old"}


@pytest.mark.skipif(os.name != "posix", reason="no umask")
def test_files_of_other_threads_keep_the_umask(tmp_path: Path) -> None:
    """Reading the umask means setting it, for a moment and for every thread, to 0."""
    asked: list[int] = []
    real, before = os.umask, os.umask(0o077)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "umask", lambda mask: asked.append(mask) or real(mask))
        with atomic_write(tmp_path / "file"):
            pass
        with atomic_folder(tmp_path / "folder"):
            pass
    assert real(before) == 0o077 and 0 not in asked
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be synced")
def test_files_and_their_folders_are_synced_before_and_after_they_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, (tmp_path / "folder").exists()))
        sync(descriptor)

    monkeypatch.setattr("aligngpt.files.os.fsync", noted)
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "file").write_text("x")
        (temporary / "link").symlink_to("nowhere")
    folder = tmp_path / "folder"
    for path in (folder, folder / "deep", folder / "deep" / "file"):
        assert (path.stat().st_ino, False) in synced
    assert synced[-1] == (tmp_path.stat().st_ino, True)
    synced.clear()
    with atomic_write(tmp_path / "file") as file:
        file.write("x")
    assert [inode for inode, _ in synced] == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]


def test_macos_is_told_to_empty_the_disks_own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    told: list[int] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda _, command: told.append(command))
    with atomic_write(tmp_path / "a") as file:
        file.write("a")
    assert told == [51, 51], "the file and its folder"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names cannot be exchanged")
def test_a_replaced_folder_is_never_missing(tmp_path: Path) -> None:
    target, missing, done = tmp_path / "folder", [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not target.exists():
                missing.append(time.monotonic())

    with atomic_folder(target):
        pass
    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(200):
        with atomic_folder(target) as temporary:
            (temporary / str(number)).touch()
    done.set()
    watcher.join()
    assert missing == [] and names(target) == {"199"} and names(tmp_path) == {"folder"}


KILLED = """
import os, sys
from pathlib import Path
from aligngpt import files
def end(*_, **__): os._exit(9)
what, target = sys.argv[1], Path(sys.argv[2])
if what == "file":
    with files.atomic_write(target) as file:
        file.write("half"); file.flush(); end()
if what == "between":
    files._exchange = lambda one, other: False
    real = os.replace
    os.replace = lambda *names: (real(*names), end())
if what == "clearing":
    import shutil
    shutil.rmtree = end
with files.atomic_folder(target) as folder:
    (folder / "new").touch()
    if what == "folder": end()
"""


def killed(what: str, target: Path) -> None:
    """Let a process die while it writes a file or folder."""
    program = "import sys; sys.argv[0] = 'aligngpt'\n" + KILLED
    assert subprocess.run([sys.executable, "-c", program, what, str(target)]).returncode == 9


@pytest.mark.parametrize("what", ["file", "folder", "clearing"])
def test_what_a_dead_process_left_is_removed_by_the_next(tmp_path: Path, what: str) -> None:
    target = tmp_path / "target"
    if what != "file":
        target.mkdir()
        (target / "old").touch()
    killed(what, target)
    assert len(names(tmp_path)) == 1 + (what != "file"), "a process that dies leaves something"
    assert what == "file" or names(target) == ({"new"} if what == "clearing" else {"old"})
    if what == "file":
        with atomic_write(target):
            pass
    else:
        with atomic_folder(target):
            pass
    assert names(tmp_path) == {"target"}


@pytest.mark.parametrize("name", ["model", "a.b", "ü" * 110])
def test_a_folder_that_a_kill_left_aside_is_put_back(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    target.mkdir()
    (target / "old").touch()
    killed("between", target)
    assert not target.exists()
    with pytest.raises(KeyError), atomic_folder(target):
        assert names(target) == {"old"}
        raise KeyError
    assert names(tmp_path) == {name}


def test_temporary_files_of_living_processes_and_other_machines_stay(tmp_path: Path) -> None:
    from aligngpt.leftovers import remove_leftovers, temporary_beside

    target = tmp_path / "model"
    own = temporary_beside(target)
    other = temporary_beside(target, old=True)
    other = other.with_name(other.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-"))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    elsewhere = tmp_path / f".model.0123abcd-{dead.pid}-01234567.tmp"
    hidden = tmp_path / f".model.{dead.pid}"
    for path in (own, other, elsewhere, hidden):
        path.touch()
    remove_leftovers(tmp_path / "base", owned=True)
    remove_leftovers(target)
    assert names(tmp_path) == {path.name for path in (own, other, elsewhere, hidden)}
    os.utime(elsewhere, (0, 0))
    os.utime(own, (0, 0))
    remove_leftovers(target)
    assert names(tmp_path) == {path.name for path in (own, other, hidden)}
    elsewhere.touch()
    remove_leftovers(target, owned=True)
    assert names(tmp_path) == {path.name for path in (own, other, hidden)}


def test_a_mac_is_the_same_machine_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aligngpt import leftovers

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    monkeypatch.setattr(sys, "platform", "darwin")
    leftovers._machine.cache_clear()
    try:
        left = leftovers.temporary_beside(tmp_path / "model")
        left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")).touch()
        leftovers._machine.cache_clear()
        monkeypatch.setattr("socket.gethostname", lambda: "another")
        leftovers.remove_leftovers(tmp_path / "model")
    finally:
        leftovers._machine.cache_clear()
    assert names(tmp_path) == set()


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("a" * 250)) as file:
        file.write("x")
    assert names(tmp_path) == {"a" * 250}


@pytest.mark.parametrize("size", [0, 3, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_sha256_is_of_the_whole_content(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert sha256_of(io.BytesIO(content)) == hashlib.sha256(content).hexdigest()


def test_sha256_starts_where_the_file_stands() -> None:
    file = io.BytesIO(b"skippedabc")
    file.seek(7)
    assert sha256_of(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
