"""How a command ends that does not end well: by a signal, on a full disk, out of memory."""

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
"""Exit codes after SIGINT and SIGTERM, as shells have them."""

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# Libraries in Rust and C++ hand on the words of the system, and PyTorch's archive writer not even those.
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
    "evaluate": "lower --batch-size",
    "train": "lower micro_batch_size in the recipe, or as in --set instruct.micro_batch_size=1; `aligngpt train "
    "--dry-run` says what is needed",
    "ask": "use a smaller model or another --device",
    "quickstart": "close other programs, or use a machine with more memory",
}


class Stopping:
    """Which signal asked the command to stop."""

    code = INTERRUPTED
    """The exit code that tells of it."""


@contextmanager
def stoppable() -> Iterator[Stopping]:
    """Make SIGTERM raise KeyboardInterrupt, as SIGINT does, while the body runs.

    Context managers are left and workers are ended as they are on Ctrl-C. A second SIGTERM does not disturb that:
    `timeout` and cluster managers send it to the command and to its whole group. Forked children keep the system's
    own answer, which is to end.
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
        """Python drops what is raised in the hooks of a fork, and a lock that a hook was to release stays locked."""
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
    # In a thread that is not the main one there are no handlers to be set.
    with suppress(ValueError):
        # The package takes SIGINT's away while it is imported.
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
                # One SIGTERM is enough: further ones were ignored.
                if signal.getsignal(number) in (stop, signal.SIG_IGN):
                    signal.signal(number, handler)
            if fork is not None:
                os.fork = fork


def said_in_one_line(error: Exception, verb: str | None) -> str | None:
    """What a person can do about an error; None for one that is no person's but a bug.

    Args:
        error: what ended the command.
        verb: the command's, such as `score`, for the advice.
    """
    chain = list(_chain(error))
    if any(_is_out_of_memory(one) for one in chain):
        device = " on the GPU" if any("CUDA" in str(one) or "HIP" in str(one) for one in chain) else ""
        return f"out of memory{device}; {_LESS_MEMORY.get(verb or '', 'use a machine with more memory')}"
    message = " ".join(str(error).split())
    if isinstance(error, AlignGPTError) and "make room" in message:
        return message
    if any(is_disk_full(one) for one in chain):
        names = [one.filename for one in chain if isinstance(one, OSError) and one.filename is not None]
        place = f"the disk of {os.fsdecode(names[0])}" if names else "the disk that the command writes to"
        return f"no space left on {place}; make room and run the same command again ({message})"
    return message if isinstance(error, AlignGPTError | OSError) else None


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full or a quota used up, whichever library raised it."""
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
