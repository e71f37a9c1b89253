"""Abnormal ends of a command: signals, full disks, lack of memory."""

import errno
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from aligngpt.errors import AlignGPTError

INTERRUPTED = 130
TERMINATED = 143
"""Exit codes after SIGINT and SIGTERM, following the shell convention."""

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# Rust and C++ libraries only pass on the system's message, and PyTorch's archive writer not even that.
_FULL_TEXT = re.compile(
    r"no space left on device|not enough space on the disk|disk quota exceeded|\(os error (28|122)\)"
    r"|inline_container.*unexpected pos|PytorchStreamWriter failed writing",
    re.IGNORECASE | re.DOTALL,
)
_NO_MEMORY_TEXT = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|_STATUS_ALLOC_FAILED", re.IGNORECASE
)

_LESS_MEMORY = {
    "score": "lower --batch-size or --workers",
    "evaluate": "lower --batch-size, or use a smaller model or another --device",
    "train": "lower micro_batch_size in the recipe (or its micro_batch_tokens), or on the command line as in --set "
    "instruct.micro_batch_size=1; "
    "`aligngpt train --dry-run` estimates the memory needed",
    "ask": "use a smaller model or another --device",
    "quickstart": "close other programs, or use a machine with more memory",
}


class Stopping:
    """The signal that asked the command to stop."""

    code = INTERRUPTED
    """The exit code for that signal."""


@contextmanager
def stoppable() -> Iterator[Stopping]:
    """Make SIGTERM raise KeyboardInterrupt, as SIGINT does, while the body runs.

    Context managers exit and workers stop as on Ctrl-C. A second SIGTERM is ignored, because `timeout` and cluster
    managers send it to the command and again to its whole process group. Forked children keep the system's default
    action, which is to terminate.
    """
    stopping, owner, fork = Stopping(), os.getpid(), os.fork if hasattr(os, "fork") else None
    forking, held = False, 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal held
        if os.getpid() != owner:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
            stopping.code = TERMINATED
        if forking:
            held = number
            return
        raise KeyboardInterrupt

    def fork_and_then_stop() -> int:
        """Fork, deferring signals: Python drops exceptions raised in fork hooks, and the hooks' locks stay locked."""
        nonlocal forking, held
        assert fork is not None
        forking = True
        try:
            child = fork()
        finally:
            forking = False
        held, stopped = 0, held
        if child and stopped:
            raise KeyboardInterrupt
        return child

    def reset() -> None:
        if installed and signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    installed, before = False, {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # Handlers can only be set in the main thread.
    with suppress(ValueError):
        # `aligngpt/__init__.py` sets SIG_DFL for SIGINT when the command is imported.
        if before[signal.SIGINT] in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(signal.SIGINT, stop)
            installed = True
        if before[signal.SIGTERM] == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, stop)
            installed = True
        if installed and fork is not None:
            os.fork = fork_and_then_stop
            os.register_at_fork(after_in_child=reset)
    try:
        yield stopping
    finally:
        if installed:
            installed = False
            for number, handler in before.items():
                # After a SIGTERM it stays ignored: the second one may come as late as the exit.
                if signal.getsignal(number) == stop:
                    signal.signal(number, handler)
            if fork is not None:
                os.fork = fork


def said_in_one_line(error: Exception, verb: str | None) -> str | None:
    """A one-line message about an error that the user can act on; None if the error is a bug.

    Args:
        error: the exception that ended the command.
        verb: verb of the command, such as `score`, for the advice.
    """
    chain = list(_chain(error))
    if any(_is_out_of_memory(one) for one in chain):
        device = " on the GPU" if any("CUDA" in str(one) or "HIP" in str(one) for one in chain) else ""
        return f"out of memory{device}; {_LESS_MEMORY.get(verb or '', 'use a machine with more memory')}"
    message = " ".join(str(error).split())
    if isinstance(error, NotImplementedError) and "MPS device" in message:
        return (
            f"{message.partition('. ')[0]}; set PYTORCH_ENABLE_MPS_FALLBACK=1 to compute this on the CPU, or "
            "ALIGNGPT_DEVICE=cpu to leave the Apple GPU out"
        )
    if isinstance(error, AlignGPTError) and "make room" in message:
        return message
    if any(is_disk_full(one) for one in chain):
        names = [one.filename for one in chain if isinstance(one, OSError) and one.filename is not None]
        place = f"the disk of {os.fsdecode(names[0])}" if names else "the disk that the command writes to"
        return f"no space left on {place}; make room and run the same command again ({message})"
    return message if isinstance(error, AlignGPTError | OSError) else None


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that a disk is full or a quota is used up, whichever library raised it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return not isinstance(error, AlignGPTError) and _FULL_TEXT.search(str(error)) is not None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _NO_MEMORY_TEXT.search(str(error)) is not None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
