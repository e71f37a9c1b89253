"""Admits requests, hands them to the engine, and ends them when they are done, too old, or no longer wanted."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aligngpt.inference.engine import Engine, EngineError, Event, Failed, Finished, TextDelta, Ticket
from aligngpt.serving.conversation import Limits, prepare
from aligngpt.serving.errors import ApiError, closing_error, internal_error
from aligngpt.serving.metrics import Metrics
from aligngpt.serving.protocol import ChatRequest

log = logging.getLogger("aligngpt.serving")


class Left(Exception):
    """The client is gone."""


class Job:
    """One request under way. Its events come through a queue, together with what ends it early."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._ended: Exception | None = None
        self.ticket: Ticket | None = None

    def tell(self, event: Event) -> None:
        """Called in the engine's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def end(self, reason: Exception) -> None:
        """End the job early: the engine stops, and whoever waits for events gets `reason`."""
        if self._ended is None:
            self._ended = reason
            self._events.put_nowait(reason)
        if self.ticket is not None:
            self.ticket.cancel()

    def check(self) -> None:
        """Raises what ended the job, if it was ended."""
        if self._ended is not None:
            raise self._ended

    async def next(self) -> TextDelta | Finished:
        """The next event.

        Raises:
            ApiError: the request failed or took too long, or the server is shutting down.
            Left: the client is gone.
        """
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Failed):
            log.error("a request failed in the engine", exc_info=event.error)
            raise internal_error()
        return event


class Desk:
    """Takes requests for an engine.

    Args:
        engine: answers.
        limits: what one request may ask.
        places: requests that are open at once, under way or waiting; further ones are refused.
        seconds: time for one request, from its admission to its end.
    """

    def __init__(self, engine: Engine, limits: Limits, metrics: Metrics, *, places: int, seconds: float) -> None:
        self.engine, self.limits, self.metrics, self.places, self.seconds = engine, limits, metrics, places, seconds
        self.closing = False
        self._jobs: set[Job] = set()

    @property
    def open(self) -> int:
        """Number of requests that are open."""
        return len(self._jobs)

    @asynccontextmanager
    async def admitted(self, body: ChatRequest) -> AsyncIterator[Job]:
        """A place for a request; on leaving, the engine stops working for it.

        Raises:
            ApiError: the queue is full, or the request cannot be answered.
        """
        if self.closing:
            raise closing_error()
        if len(self._jobs) >= self.places:
            raise ApiError(
                429,
                f"the server has {self.places} open requests, which is its limit; try again later",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        job = Job()
        self._jobs.add(job)
        too_late = asyncio.get_running_loop().call_later(self.seconds, job.end, self._too_late())
        try:
            yield job
        finally:
            too_late.cancel()
            self._jobs.discard(job)
            if job.ticket is not None:
                job.ticket.cancel()

    async def begin(self, body: ChatRequest, job: Job) -> int:
        """Prepare a request and hand it to the engine; returns how many answers will come.

        Raises:
            ApiError, Left: see `Job.next`; or the request cannot be answered.
        """
        prepared = await asyncio.to_thread(prepare, body, self.engine, self.limits)
        job.check()
        ticket = Ticket(prepared.prompt, prepared.sampling, prepared.keep, job.tell)
        job.ticket = ticket
        try:
            self.engine.loop.submit([ticket])
        except EngineError as error:
            raise closing_error() from error
        return prepared.sampling.answers

    def end_all(self) -> None:
        """End all open requests, because the server is shutting down."""
        for job in list(self._jobs):
            job.end(closing_error())

    def _too_late(self) -> ApiError:
        return ApiError(
            504,
            f"the answer took longer than {self.seconds:g} s; ask for fewer tokens, or try again when the server is "
            "less busy",
            code="timeout",
            # OpenAI's client would send the same request again.
            headers={"x-should-retry": "false"},
        )
