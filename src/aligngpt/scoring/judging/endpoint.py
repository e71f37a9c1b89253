"""Asks an OpenAI-compatible chat endpoint, with retries, time-outs and a stop when it does not answer at all."""

import asyncio
import json
import os
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import time
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx2

from aligngpt.scoring.judging.questions import JudgeError, shown

API_KEY = "OPENAI_API_KEY"
"""The environment variable of the key. It is sent to the endpoint and never printed or written."""

CHAT = "/chat/completions"
TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 1.0, 120.0
"""Seconds before the second attempt, which double with each further one, and the longest `Retry-After` obeyed."""

FAILURES_IN_A_ROW = 5
"""Requests that fail one after the other, after all their attempts, before the endpoint counts as dead."""

MOST_BYTES = 1 << 22
"""Largest reply that is read."""

UNANSWERED = "unanswered"
"""Reason of rejects that the same command asks about again."""

NO_TEXT = "no_text"
"""Reason of rejects whose reply, which may have been paid for, has no text or was cut off."""

_TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_HOPELESS = {401: "the key is missing or wrong", 402: "it wants to be paid", 403: "access is denied"}
_NOT_FOUND = 404


class Unanswered(Exception):
    """One request got no usable reply, after all attempts; the others may get theirs.

    Attributes:
        reason: `unanswered`: no reply, or none that a chat endpoint gives; the same command asks again. `refused`: the
            endpoint does not accept this request. `no_text`: its reply has no text, or was cut off.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Later(Exception):
    """An attempt failed in a way that may pass; `wait` is the endpoint's `Retry-After` in seconds, if it gave one."""

    def __init__(self, detail: str, wait: float | None = None) -> None:
        super().__init__(detail)
        self.wait = wait


def checked_endpoint(url: str) -> str:
    """The address that chat requests are sent to, for a base address such as `http://localhost:8000/v1`.

    Raises:
        JudgeError: it is not an http address, or has a password or parameters, which would be written with the scores.
    """
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = urlsplit(""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise JudgeError(f"the endpoint must be an address such as http://localhost:8000/v1, found {shown(url)}")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise JudgeError(
            "the endpoint must not contain a user, a password or parameters, since it is stored with the scores; set "
            f"the key as {API_KEY} in the environment"
        )
    try:
        httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise JudgeError(f"the endpoint {shown(url)} is not a valid address: {error}") from error
    base = url.rstrip("/")
    return base if base.endswith(CHAT) else base + CHAT


@dataclass
class Endpoint:
    """A client of one endpoint; an async context manager.

    Attributes:
        url: see `checked_endpoint`.
        key: the API key; None to send none.
        concurrency: number of requests at the same time.
        seconds: longest time for one attempt, from connecting to the last byte of the reply.
        sleep: waits between attempts.
        key_name: the environment variable of the key, for messages.
        options: the options of the command with the address and the model's name, for messages.
        requests: number of attempts so far.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    seconds: float = 120.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    key_name: str = API_KEY
    options: tuple[str, str] = ("--endpoint", "--model")
    requests: int = 0

    def __post_init__(self) -> None:
        self._failed, self._has_answered = 0, False
        self._last = ""
        self._hopeless: JudgeError | None = None
        self._random = random.Random(0)

    async def __aenter__(self) -> "Endpoint":
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx2.Limits(max_connections=self.concurrency)
        # A proxy cannot reach this machine's own servers.
        is_here = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        self._client = httpx2.AsyncClient(headers=headers, timeout=None, limits=limits, trust_env=not is_here)
        self._free = asyncio.Semaphore(self.concurrency)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def ask(self, request: Mapping[str, Any]) -> str:
        """The text of the reply to a request.

        Raises:
            Unanswered: this request got no usable reply.
            JudgeError: no request can succeed (a wrong key or address), or the last `FAILURES_IN_A_ROW` all failed.
        """
        async with self._free:
            # Those that waited while the others failed need not try.
            self._check_alive()
            if self._hopeless is not None:
                raise self._hopeless
            try:
                text = await self._with_retries(request)
            except Unanswered as error:
                # An endpoint that has answered before may refuse single images, and reply with nothing to others.
                if error.reason == UNANSWERED or (error.reason == "refused" and not self._has_answered):
                    self._failed += 1
                    self._last = str(error)
                    self._check_alive()
                else:
                    self._failed = 0
                raise
            except JudgeError as error:
                self._hopeless = error
                raise
        self._failed, self._has_answered = 0, True
        return text

    def _check_alive(self) -> None:
        if self._failed >= FAILURES_IN_A_ROW:
            raise JudgeError(
                f"the endpoint {self.url} did not answer the last {self._failed} requests: {self._last}. Replies so "
                "far are saved; check the endpoint and run the same command again"
            )

    async def _with_retries(self, request: Mapping[str, Any]) -> str:
        for attempt in range(1, TRIES + 1):
            try:
                self.requests += 1
                async with asyncio.timeout(self.seconds):
                    return await self._once(request)
            except TimeoutError:
                error, wait = f"no reply within {self.seconds:g} seconds", None
            except _Later as later:
                error, wait = str(later), later.wait
            except httpx2.HTTPError as failed:
                error, wait = self._hidden(f"{type(failed).__name__}: {failed}".rstrip(": ")), None
            if attempt < TRIES:
                if wait is not None and wait > LONGEST_WAIT:
                    raise JudgeError(
                        f"the endpoint {self.url} asks to wait {wait:.0f} seconds ({error}). Replies so far are saved; "
                        "run the same command again after that time"
                    )
                backoff = FIRST_WAIT * 2 ** (attempt - 1) * (1 + self._random.random() / 4)
                # A wait of 0, or a date that a fast clock has passed, would use up all attempts at once.
                await self.sleep(max(backoff, wait or 0))
        raise Unanswered(UNANSWERED, f"{error} ({TRIES} attempts)")

    async def _once(self, request: Mapping[str, Any]) -> str:
        async with self._client.stream("POST", self.url, json=request) as response:
            content = b""
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > MOST_BYTES:
                    raise Unanswered(UNANSWERED, f"the reply is larger than {MOST_BYTES} bytes")
        text = self._hidden(content.decode("utf-8", "replace"))
        status = response.status_code
        if status in _TRY_AGAIN:
            raise _Later(f"HTTP {status}: {shown(text)}", _seconds_to_wait(response.headers.get("Retry-After")))
        if status in _HOPELESS:
            raise JudgeError(
                f"the endpoint {self.url} refuses requests, {_HOPELESS[status]} (HTTP {status}: {shown(text)}); set "
                f"{self.key_name} in the environment to a key that it accepts"
            )
        if status == _NOT_FOUND or 300 <= status < 400:
            raise JudgeError(
                f"there is no chat endpoint at {self.url}, or it has no such model (HTTP {status}: {shown(text)}); "
                f"check {self.options[0]}, which usually ends in /v1, and {self.options[1]}"
            )
        if status != 200:
            raise Unanswered("refused", f"HTTP {status}: {shown(text)}")
        return _text_of(text)

    def _hidden(self, text: str) -> str:
        """The text without the key, which an endpoint may repeat in its messages."""
        return text.replace(self.key, "***") if self.key else text


def key_of_environment(name: str = API_KEY) -> str | None:
    """The API key in an environment variable; None if there is none.

    Raises:
        JudgeError: it has characters that cannot be sent in a header. The message does not contain it.
    """
    key = os.environ.get(name, "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise JudgeError(f"{name} contains spaces or other characters that no key has; set it again")
    return key or None


def _text_of(content: str) -> str:
    """The text in the body of a reply."""
    try:
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Unanswered(UNANSWERED, f"the reply is not that of a chat endpoint: {shown(content)}") from error
    why = choice.get("finish_reason")
    if not isinstance(text, str) or not text.strip():
        raise Unanswered(NO_TEXT, f"the reply has no text (finish_reason {why}): {shown(content)}")
    if why == "length":
        # The rest of a number may be missing.
        raise Unanswered(NO_TEXT, f"the reply was cut off, since max_tokens is too low: {shown(text)}")
    return text


def _seconds_to_wait(header: str | None) -> float | None:
    """The seconds in a `Retry-After`, which is a number or a date; None if there is none that can be read."""
    if header is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", header.strip()):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    except ValueError:
        return None
