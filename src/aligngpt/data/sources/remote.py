"""Addresses such as `s3://bucket/folder` as paths, so that everything that opens and lists paths reads them too."""

import io
import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, NoReturn

from aligngpt.data.sources.remote_store import (
    BLOCK,
    ObjectState,
    RemoteError,
    RemoteReader,
    ask,
    changed,
    content_of_state,
    listed_state,
    state_of,
)
from aligngpt.files import sha256_of

ALLOW_HTTP = "ALIGNGPT_ALLOW_HTTP"
"""Environment variable: `1` allows addresses that begin with http:// or https://."""

# `Path` turns `//` into `/`.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/{1,3}(?P<rest>[^/].*)?", re.DOTALL)
_USER = re.compile(r"[^/]*:[^/]*@")
# A name alone may be a token; other stores have names that are none (ssh://me@host).
_WEB_USER = re.compile(r"[^/]*@")
_HTTP = ("http", "https")


def located(path: str | Path) -> Path:
    """The path that a command was given: of a file, or a `RemotePath` if it is an address.

    Args:
        path: a path or an address, also one that `Path` has changed from `s3://…` to `s3:/…`.

    Raises:
        RemoteError: the address contains a password or a signature, or is one of http that was not allowed.
    """
    if isinstance(path, RemotePath):
        return path
    if (found := _ADDRESS.fullmatch(str(path))) is None or _is_local(Path(path)):
        return Path(path)
    scheme, rest = found["scheme"].lower(), found["rest"] or ""
    if scheme in ("file", "local"):
        return Path("/" + rest)
    if _USER.match(rest):
        raise RemoteError(
            f"an address that begins with {scheme}:// contains a name and a password; give them in the environment "
            "instead, because addresses are shown and saved"
        )
    if scheme in _HTTP:
        if _WEB_USER.match(rest):
            raise RemoteError(
                f"an address that begins with {scheme}:// contains a name or a token before @, which would be shown "
                "and saved; use the store's own address (such as s3://), or download the file"
            )
        shown = f"{scheme}://{re.split('[?#]', rest, maxsplit=1)[0]}"
        if os.environ.get(ALLOW_HTTP) != "1":
            raise RemoteError(
                f"{shown} is an address on the web, which is only read if you allow it: "
                f"set {ALLOW_HTTP}=1, or download the file"
            )
        if len(shown) < len(f"{scheme}://{rest}"):
            raise RemoteError(
                f"{shown} is followed by a query or a fragment (? or #), which may be a signature and would be shown "
                "and saved; use the store's own address (such as s3://), or download the file"
            )
    return RemotePath(f"{scheme}:", rest)


def _is_local(path: Path) -> bool:
    """Whether a folder of this machine has the name of a scheme, as `s3:` in the working directory."""
    return os.path.lexists(path)


def as_read(path: str | Path) -> Path:
    """The path that a command was given, see `located`; if it is an object, only as it is now."""
    found = located(path)
    return found.pinned() if isinstance(found, RemotePath) and found.exists() else found


def written_beside(source: str | Path, name: str) -> Path:
    """Where a file made from a source is written: beside it, or for an address in the working directory."""
    found = located(source)
    return Path(name) if isinstance(found, RemotePath) else found.with_name(name)


class RemotePath(type(Path())):  # type: ignore[misc]
    """An address as a path: it opens, lists and describes what fsspec reads there, and never writes.

    A path with a state (`pinned`, and all paths that a listing returns) reads only that version of the object. A path
    made from it (`parent`, `/`) has no state.
    """

    _state: ObjectState | None = None

    def __str__(self) -> str:
        parts = self.parts
        if not parts or not parts[0].endswith(":"):
            return "/".join(parts) or "."
        return f"{parts[0]}//{'/'.join(parts[1:])}"

    def __fspath__(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remote_path, (self.parts, self._state)

    def pinned(self) -> "RemotePath":
        """The same address, from now on only as the object that is there now; unchanged if it is a folder.

        Raises:
            FileNotFoundError: there is nothing at the address.
            RemoteError: see `ask`.
        """
        return self if self._state is not None else _remote_path(self.parts, state_of(str(self)))

    def saved_state(self) -> list[Any] | None:
        """The pinned state as JSON, for `with_saved_state`; None if it has none."""
        return None if self._state is None else [self._state.size, self._state.version]

    def with_saved_state(self, saved: list[Any] | None) -> "RemotePath":
        """The same address, pinned to a saved state."""
        return _remote_path(self.parts, None if saved is None else ObjectState(*saved))

    def state(self) -> ObjectState:
        """Size and version of the object.

        Raises:
            FileNotFoundError: there is no object at the address.
            IsADirectoryError: it is a folder.
            RemoteError: see `ask`, or it is no longer the pinned one.
        """
        found = state_of(str(self))
        if found is None:
            raise IsADirectoryError(f"{self} is a folder")
        if self._state is not None and found != self._state:
            raise changed(str(self))
        return found

    def read_range(self, offset: int = 0, length: int | None = None) -> bytes:
        """A part of the object, by one request for these bytes.

        Raises:
            FileNotFoundError, IsADirectoryError, RemoteError: see `state`.
        """
        with RemoteReader(str(self), self._state or self.state()) as reader:
            return reader.read_range(offset, reader.state.size if length is None else offset + length)

    def open(self, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> IO[Any]:
        if set(mode) - set("rbt"):
            self._refuse()
        raw = RemoteReader(str(self), self._state or self.state())
        if "b" in mode:
            return raw if buffering == 0 else io.BufferedReader(raw, BLOCK // 16)  # type: ignore[return-value]
        return io.TextIOWrapper(io.BufferedReader(raw, BLOCK // 16), *args, **options)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size and kind. The store's version stands in for the time of change, which is only compared."""
        state = state_of(str(self))
        if state is None:
            return os.stat_result((stat.S_IFDIR, 0, 0, 0, 0, 0, 0, 0, 0, 0))
        mark = int(content_of_state(state)[:15], 16)
        times = {name: mark for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")}
        return os.stat_result((stat.S_IFREG, 0, 0, 0, 0, 0, state.size, 0, 0, 0), times)

    lstat = stat

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._is_folder() is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._is_folder() is False

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._is_folder() is True

    def is_symlink(self) -> bool:
        return False

    def samefile(self, other_path: Any) -> bool:
        return str(self) == str(other_path)

    def is_absolute(self) -> bool:
        return True

    def absolute(self) -> "RemotePath":
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":
        return self

    def expanduser(self) -> "RemotePath":
        return self

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yield the objects directly below the address, each pinned; folders are left out."""
        return iter(self._listed(depth=1))

    def glob(self, pattern: Any, **_: Any) -> Iterator["RemotePath"]:
        """Yield the objects directly below the address whose name matches, each pinned."""
        return (path for path in self._listed(depth=1) if fnmatchcase(path.name, str(pattern)))

    def rglob(self, pattern: Any, **_: Any) -> Iterator["RemotePath"]:
        """Yield the objects at any depth whose name matches, each pinned."""
        return (path for path in self._listed(depth=None) if fnmatchcase(path.name, str(pattern)))

    def mkdir(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse()

    touch = unlink = rename = replace = rmdir = symlink_to = write_bytes = write_text = mkdir

    def _refuse(self) -> NoReturn:
        raise RemoteError(f"{self} is an address, which is only read; write to a path on this machine")

    def _is_folder(self) -> bool | None:
        """None if there is nothing at the address."""
        try:
            return state_of(str(self)) is None
        except FileNotFoundError:
            return None

    def _listed(self, depth: int | None) -> list["RemotePath"]:
        address = str(self)
        if self.parts[0].rstrip(":") in _HTTP:
            raise RemoteError(f"{address} cannot be listed: web servers have no folders; give the address of a file")

        def found(system: Any) -> dict[str, dict[str, Any]]:
            system.invalidate_cache()
            return system.find(address, maxdepth=depth, detail=True)

        paths = []
        for name, info in ask(address, found).items():
            rest = name.partition("://")[2] if "://" in name else name.lstrip("/")
            if rest.endswith("/"):
                continue  # Some programs store an empty object in place of a folder.
            path = RemotePath(self.parts[0], rest.lstrip("/"))
            if str(path).partition("://")[2] != rest.lstrip("/"):
                raise RemoteError(f"{address} has the object {rest}, whose name is not a path (as a//b); rename it")
            paths.append(_remote_path(path.parts, listed_state(info, str(path))))
        return sorted(paths, key=str)


def _remote_path(parts: tuple[str, ...], state: ObjectState | None) -> RemotePath:
    path = RemotePath(*parts)
    path._state = state
    return path


def content_hash(path: Path) -> str:
    """The SHA-256 of a file's content; of a remote one, of its size and version, without reading it.

    Raises:
        OSError, RemoteError: it cannot be read.
    """
    if isinstance(path, RemotePath):
        return content_of_state(path.state())
    with path.open("rb") as file:
        return sha256_of(file)


def image_below(name: str, root: RemotePath) -> RemotePath | None:
    """The address of an image named in a record; None if it is not below the root."""
    parts = name.split("/")
    if not name or name.startswith("/") or ".." in parts or "\0" in name or _ADDRESS.fullmatch(name):
        return None
    return root / name
