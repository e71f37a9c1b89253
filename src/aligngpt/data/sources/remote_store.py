"""Reads from object stores through fsspec: tries again after a dropped connection, and says what failed.

fsspec finds the credentials itself (environment variables and the store's own configuration files).
"""

import errno
import hashlib
import io
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, TypeVar

from aligngpt.data.sources.base import SourceError

BLOCK = 1 << 20
"""Bytes read at a time from a file that is read in order."""

KEPT_BLOCKS = 64
"""Blocks kept in memory, per process: an image of a tar file is usually opened soon after its header was read."""

WAITS = (0.5, 2.0, 5.0)
"""Seconds before each new attempt after a dropped connection."""

_VERSIONS = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "content_md5",
    "Content-MD5",
    "blob_id",
    "crc32c",
)
_TIMES = ("Last-Modified", "LastModified", "last_modified", "mtime", "created")
_PASSING = {errno.EBUSY, errno.EIO, errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT}
_LOST = {("botocore", "HTTPClientError"), ("botocore", "ConnectionError"), ("aiohttp", "ClientError")}

T = TypeVar("T")


class RemoteError(SourceError):
    """An address cannot be read: the store cannot be reached, refuses, or its objects have changed."""


class RemoteDeniedError(RemoteError):
    """The store refuses access to one object."""


class RemoteChangedError(RemoteError):
    """An object is no longer the one that was listed."""


@dataclass(frozen=True, slots=True)
class ObjectState:
    """What a store says about an object.

    Attributes:
        size: in bytes.
        version: its ETag, checksum or generation; the time of its last change if the store has none of these.
    """

    size: int
    version: str


def scheme_of(address: str) -> str:
    """The part of an address before `://`."""
    return address.partition("://")[0]


def ask(address: str, action: Callable[[Any], T]) -> T:
    """Call a function with the file system of an address, again after a dropped connection.

    Args:
        address: such as `s3://bucket/folder/0.tar`.
        action: gets the fsspec file system.

    Raises:
        FileNotFoundError: there is nothing at the address.
        RemoteError: the address cannot be read; the message says why and what to do.
    """
    system = _filesystem(os.getpid(), scheme_of(address))
    for wait in (*WAITS, None):
        try:
            return action(system)
        except RemoteError:
            raise
        except FileNotFoundError as error:
            if "bucket" in str(error).lower():
                raise RemoteError(f"{address} cannot be read: there is no such bucket; correct the address") from error
            raise FileNotFoundError(errno.ENOENT, "there is no such object", address) from error
        except Exception as error:
            if not _is_passing(error):
                raise _said(address, error) from error
            if wait is None:
                raise RemoteError(
                    f"{address} cannot be read: no connection after {len(WAITS) + 1} attempts ({_name(error)}); check "
                    "the network and the endpoint, then run the same command again"
                ) from error
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def state_of(address: str) -> ObjectState | None:
    """The state of the object at an address, asked again each time; None if it is a folder.

    Raises:
        FileNotFoundError: there is nothing at the address.
        RemoteError: see `ask`.
    """
    return state_in(ask(address, lambda system: _info(system, address)), address)


def state_in(info: Mapping[str, Any], address: str) -> ObjectState | None:
    """The state of an object from fsspec's `info`; None for a folder.

    Raises:
        RemoteError: the store does not say how large it is.
    """
    if info.get("type") == "directory":
        return None
    size = info.get("size")
    if not isinstance(size, int):
        raise RemoteError(
            f"{address} cannot be read: its server does not say how large it is, so that parts of it cannot be read; "
            "download it and give the path of the file"
        )
    known = next((f"{name}={info[name]}" for name in (*_VERSIONS, *_TIMES) if info.get(name) is not None), None)
    return ObjectState(size, (known or f"size={size}").replace('"', ""))


def listed_state(info: Mapping[str, Any], address: str) -> ObjectState | None:
    """The state of an object in a listing; it is asked for again if the listing has only a time, which some stores
    write differently there."""
    is_versioned = any(info.get(name) is not None for name in _VERSIONS)
    return state_in(info, address) if is_versioned else state_of(address)


def content_of_state(state: ObjectState) -> str:
    """A SHA-256 that stands for an object's content, which is not read."""
    return hashlib.sha256(f"{state.size}\t{state.version}".encode()).hexdigest()


class RemoteReader(io.RawIOBase):
    """An object, opened for reading; what it reads is all of one version.

    Args:
        address: of the object.
        state: the version to read.
    """

    def __init__(self, address: str, state: ObjectState) -> None:
        super().__init__()
        self.address, self.state = address, state
        self._at = 0
        self._handle: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.state.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to byte {base + offset} of {self.address}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self.state.size or not len(buffer):
            return 0
        number, within = divmod(self._at, BLOCK)
        content = self._block(number)[within : within + len(buffer)]
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, exactly these unless they are in memory already.

        Raises:
            RemoteError: see `ask`, or the object has changed or was removed.
        """
        stop = min(stop, self.state.size)
        if start >= stop:
            return b""
        first = start // BLOCK
        kept = [_blocks.get(self._key(number)) for number in range(first, (stop - 1) // BLOCK + 1)]
        if all(block is not None for block in kept):
            joined = b"".join(block for block in kept if block is not None)
            return joined[start - first * BLOCK : stop - first * BLOCK]
        return self._asked(start, stop)

    def close(self) -> None:
        self._drop()
        super().close()

    def _key(self, number: int) -> tuple[str, ObjectState, int]:
        return self.address, self.state, number

    def _block(self, number: int) -> bytes:
        key = self._key(number)
        if (found := _blocks.get(key)) is None:
            start = number * BLOCK
            stop = min(start + BLOCK, self.state.size)
            found = self._asked(start, stop)
            _blocks.put(key, found)
        return found

    def _asked(self, start: int, stop: int) -> bytes:
        try:
            return ask(self.address, lambda system: self._fetch(system, start, stop))
        except FileNotFoundError as error:
            # Not an OSError, which readers take for the end of a damaged file.
            raise RemoteChangedError(f"{self.address} was removed while it was being read; restore it") from error

    def _fetch(self, system: Any, start: int, stop: int) -> bytes:
        try:
            if self._handle is None:
                self._check(state_in(_info(system, self.address), self.address))
                self._handle = system.open(self.address, "rb", block_size=BLOCK, cache_type="none")
                # The object may have been replaced between the two requests.
                self._check(self._state_opened(system))
            self._handle.seek(start)
            content = self._handle.read(stop - start)
            # S3 itself refuses to read another version than the one opened; other stores are asked afterwards.
            if "IfMatch" not in getattr(self._handle, "req_kw", {}):
                self._check(state_in(_info(system, self.address), self.address))
        except BaseException:
            self._drop()
            raise
        if len(content) != stop - start:
            self._drop()
            raise ConnectionError(f"expected {stop - start} bytes, received {len(content)}")
        return content

    def _state_opened(self, system: Any) -> ObjectState | None:
        details = getattr(self._handle, "details", None)
        if not isinstance(details, Mapping) or "size" not in details:
            details = _info(system, self.address)
        return state_in(details, self.address)

    def _check(self, found: ObjectState | None) -> None:
        if found != self.state:
            raise changed(self.address)

    def _drop(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            handle.close()


def changed(address: str) -> RemoteChangedError:
    """The error for an object that is not the one that was listed."""
    return RemoteChangedError(
        f"{address} changed while it was being read: its size or version is not the one it had at first; run the "
        "command again once it is fully written"
    )


class _Blocks:
    """The blocks last read, of all objects."""

    def __init__(self) -> None:
        self._lock, self._kept = Lock(), OrderedDict[tuple[str, ObjectState, int], bytes]()

    def get(self, key: tuple[str, ObjectState, int]) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: tuple[str, ObjectState, int], content: bytes) -> None:
        with self._lock:
            self._kept[key] = content
            while len(self._kept) > KEPT_BLOCKS:
                self._kept.popitem(last=False)

    def renew(self) -> None:
        """Replace the lock, which another thread may have held when this process was forked."""
        self._lock = Lock()


_blocks = _Blocks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_blocks.renew)


@lru_cache(maxsize=32)
def _filesystem(process: int, scheme: str) -> Any:
    """The file system of a scheme. All threads of a process share it; a forked process needs its own connections."""
    try:
        import fsspec

        # With fsspec's own caches, a changed object would look unchanged.
        system = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
        if hasattr(system, "retries"):
            system.retries = 1  # `ask` tries again; together they would wait for minutes.
        return system
    except ImportError as error:
        raise RemoteError(
            f"addresses that begin with {scheme}:// need a package that is not installed ({error}); for s3://, install "
            "`aligngpt[remote]`"
        ) from error
    except ValueError as error:
        raise RemoteError(f"addresses that begin with {scheme}:// are not known: {error}") from error
    except Exception as error:
        raise _said(f"{scheme}://", error) from error


def _info(system: Any, address: str) -> Mapping[str, Any]:
    system.invalidate_cache()
    return system.info(address)


def _is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, PermissionError):
        return False
    if isinstance(error, (ConnectionError, TimeoutError)) or getattr(error, "errno", None) in _PASSING:
        return True
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return status >= 500 or status == 429
    return any((kind.__module__.partition(".")[0], kind.__name__) in _LOST for kind in type(error).__mro__)


def _said(address: str, error: Exception) -> RemoteError:
    """What an error of a store means. The error's own text is not repeated: it may contain a signed link."""
    name = _name(error)
    status = getattr(error, "status", None)
    if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"):
        return RemoteDeniedError(
            f"{address} cannot be read: no credentials were found; set those of the store (for S3, AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket, FSSPEC_S3_ANON=true)"
        )
    if isinstance(error, PermissionError) or status in (401, 403):
        return RemoteDeniedError(
            f"{address} cannot be read: access denied; check the credentials in the environment and their right to "
            "read and list it"
        )
    if name == "FileExpired":
        return changed(address)
    return RemoteError(f"{address} cannot be read: the store answered with an error ({name}); check the address")


def _name(error: BaseException) -> str:
    return type(error).__name__
