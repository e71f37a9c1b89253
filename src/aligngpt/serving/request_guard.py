"""Checks before anything of a request is parsed: the key, the host, the kind and size of the body."""

import asyncio
import hmac
import re
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligngpt.loopback import is_loopback
from aligngpt.serving.errors import ApiError

OPEN_PATHS = ("/health",)
HOST = re.compile(r"\[([^\]]*)\](?::\d*)?|([^:]*)(?::\d*)?")
"""A `Host` header: IPv6 in brackets or anything else, and a port."""

BODIES = 16
"""Bodies of the largest size that are held in memory at once."""


def _host_in(header: str) -> str:
    """The host of a `Host` header, without its port and without the brackets of IPv6; empty if there is none."""
    found = HOST.fullmatch(header)
    return "" if found is None else found[1] or found[2] or ""


@dataclass
class _Body:
    """What has come of a body; its size stays known when the content has been handed over."""

    content: bytearray = field(default_factory=bytearray)
    size: int = 0


def _replayed(body: _Body, receive: Receive) -> Receive:
    """The body as one message, and then what else the client does."""
    messages: list[Message] = [{"type": "http.request", "body": bytes(body.content), "more_body": False}]
    body.content.clear()

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


class RequestGuard:
    """ASGI middleware that reads the whole body, within limits, and refuses what must not reach the application.

    Args:
        app: the application.
        key: what clients must send as `Authorization: Bearer KEY`; None needs no key, and then the server must be
            addressed by a name of this machine, so that no web page can reach it under a name of its own.
        max_body: bytes of a body, at most. The bodies of all open requests together may have `BODIES` times as many.
        body_seconds: time for sending a body.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, max_body: int, body_seconds: float) -> None:
        self.app, self.max_body, self.body_seconds = app, max_body, body_seconds
        self._held = 0
        self.key = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body()
        try:
            try:
                self._check(scope)
                complete = await self._read(receive, body)
            except ApiError as error:
                # The rest of the body is not read, so the connection cannot be used again.
                error.headers.setdefault("connection", "close")
                await error.response()(scope, receive, send)
                return
            if complete:
                await self.app(scope, _replayed(body, receive), send)
        finally:
            self._held -= body.size

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.key is None:
            if not is_loopback(_host_in(headers.get("host", ""))):
                raise ApiError(
                    403,
                    "without an API key the server answers only to localhost and loopback addresses such as 127.0.0.1; "
                    "start it with a key to use another name",
                    code="host_not_allowed",
                )
        elif scope["path"] not in OPEN_PATHS:
            sent = headers.get("authorization", "").encode("latin-1", "replace")
            if not hmac.compare_digest(sent, self.key):
                raise ApiError(
                    401,
                    "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body:
            raise self._too_large()
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        # A web page can send other kinds to this machine without being asked.
        if scope["method"] == "POST" and kind != "application/json":
            raise ApiError(415, "the body must be JSON; send Content-Type: application/json")

    async def _read(self, receive: Receive, body: _Body) -> bool:
        """Read the whole body; returns False if the client left."""
        more = True
        try:
            async with asyncio.timeout(self.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    chunk = message.get("body", b"")
                    body.content += chunk
                    body.size += len(chunk)
                    self._held += len(chunk)
                    if body.size > self.max_body:
                        raise self._too_large()
                    if self._held > BODIES * self.max_body:
                        raise ApiError(
                            429,
                            "the open requests are together larger than the server holds; try again later",
                            code="queue_full",
                            headers={"Retry-After": "1"},
                        )
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self.body_seconds:g} s", code="timeout") from None
        return True

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self.max_body} bytes; send fewer or smaller images", code="body_too_large"
        )
