"""Two processes never write into the same output folder, and a dead process does not block it."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aligngpt import locks
from aligngpt.errors import AlignGPTError
from aligngpt.locks import FolderInUse, owned_folder

OWNER = """
import errno, os, sys
from aligngpt import locks
if {soft}:
    import filelock._unix as unix
    def refuse(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")
    unix.lock_fd_nonblocking = refuse
with locks.owned_folder(sys.argv[1], "train"):
    if not {fork}:
        print("in", flush=True)
    elif os.fork() == 0:
        import time
        # Only now have the fork hooks finished, in which the child releases its copies of the parent's locks.
        print("in", flush=True)
        os.close(0), os.close(1)
        time.sleep(5)
        os._exit(0)
    sys.stdin.read(1)
print("out", flush=True)
sys.stdin.read(1)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start another process that owns a folder until it reads a character, and then runs until it reads another."""
    started = []

    def start(folder: Path, *, soft: bool = False, fork: bool = False) -> subprocess.Popen:
        code = OWNER.format(soft=soft, fork=fork)
        # With this program name, the package does not import the model's libraries.
        program = ["import sys; sys.argv = ['aligngpt', *sys.argv[1:]]; exec(" + repr(code) + ")", str(folder)]
        child = subprocess.Popen(
            [sys.executable, "-c", *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout is not None and child.stdout.readline() == "in\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture
def no_kernel_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock._unix.lock_fd_nonblocking", refuse)


@pytest.fixture(params=["kernel", "marker"])
def soft(request: pytest.FixtureRequest) -> bool:
    if request.param == "marker":
        request.getfixturevalue("no_kernel_locks")
    return request.param == "marker"


def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path, start: Callable, soft: bool) -> None:
    owner = start(tmp_path / "run", soft=soft)
    with pytest.raises(FolderInUse) as refused, owned_folder(tmp_path / "run", "score"):
        pass
    said = str(refused.value)
    assert f"run is in use by process {owner.pid} on {socket.gethostname()} (`aligngpt train`, since " in said
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", said) and "before `aligngpt score` starts" in said
    assert (".lock.held" in said) == soft


def test_a_folder_is_free_when_its_owner_leaves_it(tmp_path: Path, start: Callable, soft: bool) -> None:
    owner = start(tmp_path, soft=soft)
    owner.stdin.write("x")
    owner.stdin.flush()
    assert owner.stdout.readline() == "out\n"
    with owned_folder(tmp_path, "train"):
        assert owner.poll() is None
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_owner_keeps_nobody_out(tmp_path: Path, start: Callable, soft: bool) -> None:
    owner = start(tmp_path, soft=soft)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert (tmp_path / ".lock.owner").exists()
    with owned_folder(tmp_path, "train"):
        assert f'"pid": {os.getpid()},' in (tmp_path / ".lock.owner").read_text(encoding="utf-8")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_worker_that_outlives_its_owner_keeps_nobody_out(tmp_path: Path, start: Callable) -> None:
    owner = start(tmp_path, fork=True)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with owned_folder(tmp_path, "train"):
        pass


def test_a_process_may_enter_its_own_folder_again(tmp_path: Path, start: Callable) -> None:
    def enter() -> None:
        with owned_folder(tmp_path / "run", "train"):
            entered.append(1)

    entered: list[int] = []
    (tmp_path / "link").symlink_to("run")
    with owned_folder(tmp_path / "run", "quickstart"):
        enter()
        with owned_folder(tmp_path / "link", "train"):
            pass
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert (tmp_path / "run" / ".lock.owner").exists(), "leaving an inner one does not give the folder away"
    assert len(entered) == 2 and locks._held == {}
    start(tmp_path / "run")


def test_an_error_gives_the_folder_back(tmp_path: Path, start: Callable) -> None:
    with pytest.raises(KeyError), owned_folder(tmp_path, "train"):
        raise KeyError
    start(tmp_path)


def test_what_lies_in_the_files_of_the_lock_does_not_matter(tmp_path: Path, start: Callable) -> None:
    (tmp_path / ".lock").write_text("left by something else")
    owner = start(tmp_path)
    (tmp_path / ".lock.owner").write_text("[1")
    with pytest.raises(FolderInUse, match="is in use by another process"), owned_folder(tmp_path, "train"):
        pass
    owner.kill()
    owner.wait()
    with owned_folder(tmp_path, "train"):
        pass


def test_a_folder_may_be_replaced_by_its_owner(tmp_path: Path) -> None:
    with owned_folder(tmp_path / "run", "train"):
        (tmp_path / "run").rename(tmp_path / "moved")
    with owned_folder(tmp_path / "run", "train"), owned_folder(tmp_path / "moved", "train"):
        pass


@pytest.mark.parametrize("inside", ["", "folder"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(AlignGPTError, match=r"cannot be created: .*file is a file; choose another output folder"),
        owned_folder(tmp_path / "file" / inside, "train"),
    ):
        pass
