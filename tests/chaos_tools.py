"""Commands that die at a given step of their disk, and a server that starts them without importing torch each time.

As a script, `chaos_tools.py serve` reads one `Run` a line and forks a process for it; `chaos_tools.py run` reads one
and becomes it.
"""

import errno
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ACTIONS = ("SIGKILL", "SIGTERM", "SIGINT", "ENOSPC")
"""What happens at the step: a signal, or the step fails since the disk is full."""

LONGEST = 180.0
"""Seconds after which a command hangs, and is killed."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ON_PATHS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
_NEEDS_ROOM = {"open", "os.mkdir", "os.rename", "os.link", "fsync", "exchange"}
_COUNT, _WORDS = struct.Struct("q"), 120


@dataclass
class Run:
    """A command, and what happens to it.

    Attributes:
        arguments: after `aligngpt`.
        folder: the command runs in it; only steps below it count.
        at: the number of the step, from 1, right before which it happens; 0 for never.
        action: what happens, one of `ACTIONS`.
        after: it happens this many seconds after the start in place of at a step; only for signals.
        worker: so many seconds after it has worker processes, one of them is killed.
        environment: variables that are set.
    """

    arguments: list[str]
    folder: str
    at: int = 0
    action: str = "SIGKILL"
    after: float | None = None
    worker: float | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code, or less the signal that killed it.
        steps: of the disk that it took.
        last: the last one of them.
        printed: everything it said.
        seconds: that it took.
    """

    code: int
    steps: int
    last: str
    printed: str
    seconds: float


class Server:
    """A process that has imported what the commands need and computed nothing, so that it can be forked."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Server":
        assert self._answer() == {"ready": True}
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def run(self, run: Run) -> Ended:
        """Run a command to its end, whichever this is."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(run)) + "\n")
        self.process.stdin.flush()
        began = time.monotonic()
        pid = self._answer()["pid"]
        watch = threading.Timer(LONGEST, os.kill, (pid, signal.SIGKILL))
        watch.start()
        if run.after is not None:
            time.sleep(run.after)
            with suppress(ProcessLookupError):
                os.kill(pid, getattr(signal, run.action))
        if run.worker is not None:
            _kill_a_worker(pid, run.worker)
        answer = self._answer()
        watch.cancel()
        printed = (Path(run.folder) / "printed.txt").read_text(encoding="utf-8", errors="replace")
        return Ended(answer["code"], answer["steps"], answer["last"], printed, time.monotonic() - began)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def run_alone(run: Run) -> Ended:
    """Run a command in a process that a shell could have started, as far as it can tell."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, "run"], input=json.dumps(asdict(run)), text=True, capture_output=True, check=False
    )
    return Ended(done.returncode, 0, "", done.stdout + done.stderr, time.monotonic() - began)


def _kill_a_worker(pid: int, seconds: float) -> None:
    import psutil

    # Where it has none any more, it ends by itself.
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            if process.children():
                time.sleep(seconds)
                for worker in process.children()[-1:]:
                    worker.kill()
                return
            time.sleep(0.005)


def _install(run: Run, board: mmap.mmap) -> None:
    """Count the steps of this process's disk, and do what is to be done before one of them."""
    root, owner, taken = os.path.realpath(run.folder) + os.sep, os.getpid(), 0

    def step(what: str, place: str) -> None:
        nonlocal taken
        if os.getpid() != owner or run.after is not None:
            return
        taken += 1
        _COUNT.pack_into(board, 0, taken)
        words = f"{what} {place.removeprefix(root)}".encode(errors="replace")[:_WORDS]
        board[_COUNT.size : _COUNT.size + _WORDS] = words.ljust(_WORDS)
        if taken != run.at:
            return
        if run.action != "ENOSPC":
            os.kill(owner, getattr(signal, run.action))
        elif what in _NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & _WRITES if isinstance(flags, int) else mode and set("wax+") & set(mode)
        elif event == "ctypes.dlsym" and arguments[1] == "renameat2":
            step("exchange", "")
            return
        elif event in _ON_PATHS:
            path, writes = arguments[0], True
        else:
            return
        if writes and isinstance(path, str | bytes | os.PathLike):
            place = os.path.join(os.getcwd(), os.fsdecode(path))
            # Folders of file descriptors, as `rmtree` has them, are those that it was called with.
            if place.startswith(root):
                step(event, place)

    sync: Callable[[int], None] = os.fsync

    def counted_sync(descriptor: int) -> None:
        step("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    os.fsync = counted_sync  # type: ignore[assignment]
    sys.addaudithook(hook)


def _become(run: Run, board: mmap.mmap) -> None:
    os.environ.update(run.environment)
    os.chdir(run.folder)
    sys.argv = ["aligngpt", *run.arguments]
    from aligngpt.cli import main

    _install(run, board)
    main()


IMPORTED = ("data.records.pairs", "scoring.job", "levels.making", "training.dry_run", "training.run", "quiet", "cli")
"""Modules that the verbs import when they run."""


def _serve() -> None:
    import gc
    import importlib

    for name in IMPORTED:
        importlib.import_module(f"aligngpt.{name}")
    for name in ("clip", "llama", "qwen2"):
        importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    gc.freeze()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        run = Run(**json.loads(line))
        board = mmap.mmap(-1, _COUNT.size + _WORDS)
        pid = os.fork()
        if pid == 0:
            printed = os.open(Path(run.folder) / "printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            _become(run, board)
            return
        print(json.dumps({"pid": pid}), flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        last = board[_COUNT.size : _COUNT.size + _WORDS].decode(errors="replace").strip("\0 ")
        print(json.dumps({"code": code, "steps": _COUNT.unpack_from(board)[0], "last": last}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve()
    else:
        _become(Run(**json.loads(sys.stdin.read())), mmap.mmap(-1, _COUNT.size + _WORDS))
