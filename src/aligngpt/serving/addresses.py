"""Download a picture from a host that the operator allows, without reaching any other machine."""

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from aligngpt.serving.media_errors import MediaError

PORT = 443
CHUNK = 1 << 16

_LEGAL = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/%]"
_ADDRESS = re.compile(rf"https://([a-z0-9.\-]+)(?::{PORT})?(/{_LEGAL}*)?(\?(?:{_LEGAL}|\?)*)?", re.IGNORECASE)
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")


class HttpsAddress(NamedTuple):
    """An address in its two parts: the host's name in lower case, and what to ask it for (path and query)."""

    host: str
    target: str


class Download(NamedTuple):
    """What a host sent: the bytes, and their media type as stated (empty if it was not)."""

    content: bytes
    media_type: str


def is_host_name(name: str) -> bool:
    """Whether this is a host's name in lower case: not an address in any spelling, no port, no wildcard."""
    return len(name) <= 253 and _HOST.fullmatch(name) is not None


def parse_address(url: str, allow_hosts: tuple[str, ...]) -> HttpsAddress:
    """Split an `https` address of an allowed host.

    There is no second parser: the connection is made with the parts that this function checked.

    Raises:
        MediaError: it is not such an address, or the host is not allowed.
    """
    found = _ADDRESS.fullmatch(url)
    if found is None:
        raise MediaError(
            "invalid_image_url",
            "the image URL is not an address that this server fetches: it must be https://HOST/PATH on port 443, "
            "without user name, fragment, backslash, space, control or non-ASCII characters",
        )
    host = found[1].lower()
    if host not in allow_hosts:
        raise MediaError(
            "invalid_image_url",
            f"this server does not fetch images from {host[:80]}: send the image as a data: URL, or ask the operator "
            "to allow this host",
        )
    return HttpsAddress(host, (found[2] or "/") + (found[3] or ""))


def is_public(address: str) -> bool:
    """Whether an IP address, in the spelling that a resolver returns, is one of the public internet.

    IPv6 addresses that carry an IPv4 one (mapped, 6to4, NAT64) are not, whatever they carry.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not parsed.is_global or parsed.is_multicast or parsed.is_reserved:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        return parsed in _GLOBAL_UNICAST and parsed.sixtofour is None and parsed.teredo is None
    return True


_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def download(address: HttpsAddress, *, max_bytes: int, timeout: float) -> Download:
    """Fetch an address: one request, no redirects, no decompression.

    The host is resolved once, and the connection goes to one of the addresses found, all of which must be public.

    Args:
        address: from `parse_address`.
        max_bytes: a larger answer is refused, at the latest when this many bytes have been read.
        timeout: seconds for everything together.

    Raises:
        MediaError: the host is unreachable, too slow, not public, or answers with anything but the whole file.
    """
    deadline = time.monotonic() + timeout
    failure = _slow(address.host, timeout)
    try:
        numbers = _resolved(address.host, deadline)
        connection = _connected(address.host, numbers, deadline)
        with _closed_at(deadline, connection.sock):
            found = _answer(connection, address, max_bytes)
        if time.monotonic() >= deadline:
            # The connection may have been closed by us, so the answer may be incomplete.
            raise failure
        return found
    except MediaError:
        raise
    except Exception as error:
        if time.monotonic() >= deadline:
            raise failure from error
        raise _failed(address.host) from error


def _resolved(host: str, deadline: float) -> list[str]:
    """The addresses of a host. In a thread, because the system's resolver has no time limit of ours."""
    found: list[str] = []
    errors: list[Exception] = []

    def resolve() -> None:
        try:
            answers = socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=resolve, name="resolve", daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if thread.is_alive():
        raise TimeoutError
    if errors or not found:
        raise _failed(host) from (errors[0] if errors else None)
    if not all(is_public(one) for one in found):
        raise MediaError(
            "invalid_image_url", f"this server does not fetch images from {host}: its address is not a public one"
        )
    return found


def _connected(host: str, numbers: list[str], deadline: float) -> http.client.HTTPSConnection:
    """A connection to the first address that accepts one, whose certificate must be the host's."""
    context = ssl.create_default_context()
    for place, number in enumerate(numbers):
        try:
            plain = socket.create_connection((number, PORT), timeout=_left(deadline))
            break
        except OSError:
            if place == len(numbers) - 1:
                raise
    try:
        secure = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        plain.close()
        raise
    connection = http.client.HTTPSConnection(host, PORT, context=context)
    connection.sock = secure
    # With a socket set, http.client makes no connection of its own; without one it must not make another.
    connection.auto_open = 0
    try:
        with _closed_at(deadline, secure):
            secure.do_handshake()
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _closed_at(deadline: float, connection: socket.socket) -> Iterator[None]:
    """Shut a connection down at the deadline; a time limit for each read would let a slow host go on for ever."""

    def shut() -> None:
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(_left(deadline), shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _answer(connection: http.client.HTTPSConnection, address: HttpsAddress, max_bytes: int) -> Download:
    try:
        connection.request(
            "GET", address.target, headers={"Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}
        )
        with connection.getresponse() as response:
            if 300 <= response.status < 400:
                raise MediaError(
                    "failed_to_download_image",
                    f"{address.host} redirects to another address, and redirects are not followed: give the address of "
                    "the image itself",
                )
            encoding = (response.headers.get("Content-Encoding") or "identity").strip().lower()
            if response.status != 200 or encoding != "identity":
                raise _failed(address.host)
            content = bytearray()
            if (response.length or 0) > max_bytes:
                raise too_many_bytes(max_bytes)
            while chunk := response.read(min(CHUNK, max_bytes + 1 - len(content))):
                content += chunk
                if len(content) > max_bytes:
                    raise too_many_bytes(max_bytes)
            if response.length:
                raise http.client.IncompleteRead(bytes(content), response.length)
            stated = (response.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
            return Download(bytes(content), stated)
    finally:
        connection.close()


def _left(deadline: float) -> float:
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def too_many_bytes(limit: int) -> MediaError:
    """The error for a file of more bytes than are read."""
    return MediaError(
        "image_file_too_large", f"the image file is larger than the limit of {limit} bytes: send a smaller one"
    )


def _failed(host: str) -> MediaError:
    return MediaError(
        "failed_to_download_image", f"the image could not be downloaded from {host}: send it as a data: URL instead"
    )


def _slow(host: str, timeout: float) -> MediaError:
    return MediaError(
        "failed_to_download_image",
        f"{host} did not send the image within {timeout:g} seconds: send it as a data: URL instead",
    )
