"""Temporary file names that identify their process, and the removal of temporary files of dead processes."""

import hashlib
import os
import re
import secrets
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

UNTOUCHED_DAYS = 7
"""Age after which another machine's temporary file is considered dead: its process cannot be checked from here."""

_NAME = re.compile(
    r"\.(?P<stem>.+?)\.(?P<old>old\.)?(?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.tmp", re.DOTALL
)
_LONGEST_STEM = 180
"""In bytes: file systems allow names of up to 255."""


def temporary_beside(target: Path, *, old: bool = False) -> Path:
    """A new hidden name in the folder of `target` that identifies this machine and process.

    Args:
        target: the path that the temporary file or folder will be renamed to.
        old: whether the name is for the previous version of `target`, moved aside.
    """
    kind = "old." if old else ""
    return target.with_name(f".{_stem(target)}.{kind}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remove_leftovers(path: str | Path, *, owned: bool = False) -> None:
    """Remove temporary files and folders of dead processes from the folder of `path`.

    Those of live processes are never touched. A folder that was moved aside is put back if its place is still empty
    because its process died at that moment.

    Args:
        path: a file or folder that `atomic_write` or `atomic_folder` writes; it may have any name.
        owned: whether a lock keeps processes on other machines from writing `path`; what they left of it is then dead.
    """
    target = Path(path)
    for leftover, is_old, stem in _dead(target.parent, _stem(target) if owned else None):
        place = target if stem == _stem(target) else leftover.with_name(stem)
        with suppress(OSError):
            if is_old and not os.path.lexists(place):
                os.rename(leftover, place)
                continue
        remove(leftover)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder as far as possible, ignoring errors."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _stem(target: Path) -> str:
    name = os.fsencode(target.name)
    if len(name) <= _LONGEST_STEM:
        return target.name
    return hashlib.sha256(name).hexdigest()[:32]


def _dead(folder: Path, owned: str | None) -> Iterator[tuple[Path, bool, str]]:
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".tmp")]
    except OSError:
        return
    for name in sorted(names):
        if (found := _NAME.fullmatch(name)) is None:
            continue
        if _is_dead(folder / name, found["machine"], int(found["pid"]), owned=found["stem"] == owned):
            yield folder / name, found["old"] is not None, found["stem"]


def _is_dead(path: Path, machine: str, pid: int, *, owned: bool) -> bool:
    if machine == _machine() and os.name == "posix":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            pass
        return False
    if owned:
        return True
    try:
        return time.time() - path.lstat().st_mtime > UNTOUCHED_DAYS * 86400
    except OSError:
        return False


@cache
def _machine() -> str:
    """Identifies the scope of a process id: a host since its last boot, or a container."""
    # On macOS, the name of the host changes with the network.
    parts = [str(uuid.getnode()) if sys.platform == "darwin" else socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:8]
