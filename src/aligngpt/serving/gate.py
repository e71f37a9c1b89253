"""Checks before anything of a request is parsed: the key, the host, the kind and size of the body."""

import asyncio
import hmac
from collections import deque

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligngpt.serving.errors import ApiError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
OPEN_PATHS = ("/health",)


class Gate:
    """ASGI middleware that reads the whole body, within limits, and refuses what must not reach the application.

    Args:
        app: the application.
        key: what clients must send as `Authorization: Bearer KEY`; None needs no key, and then the server must be
            addressed by a name of this machine, so that no web page can reach it under a name of its own.
        max_body: bytes of a body, at most.
        body_seconds: time for sending a body.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, max_body: int, body_seconds: float) -> None:
        self.app, self.max_body, self.body_seconds = app, max_body, body_seconds
        self.key = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope)
            messages = await self._read(receive)
        except ApiError as error:
            # The rest of the body is not read, so the connection cannot be used again.
            error.headers.setdefault("connection", "close")
            await error.response()(scope, receive, send)
            return
        if messages is None:
            return

        async def replay() -> Message:
            return messages.popleft() if messages else await receive()

        await self.app(scope, replay, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.key is None:
            host = headers.get("host", "")
            if host.rsplit(":", 1)[0] not in LOOPBACK and host not in LOOPBACK:
                raise ApiError(
                    403,
                    "without an API key the server answers only to localhost and 127.0.0.1; start it with a key to use "
                    "another name",
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

    async def _read(self, receive: Receive) -> deque[Message] | None:
        """The messages of the body; None if the client left."""
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self.max_body:
                        raise self._too_large()
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self.body_seconds:g} s", code="timeout") from None
        return deque([{"type": "http.request", "body": bytes(body), "more_body": False}])

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self.max_body} bytes; send fewer or smaller images", code="body_too_large"
        )
