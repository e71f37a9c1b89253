"""The HTTP application: chat completions, the model, health and metrics."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from aligngpt import __version__
from aligngpt.inference.engine import Answer, Finished
from aligngpt.serving.answers import Writer
from aligngpt.serving.desk import Desk, Job, Left
from aligngpt.serving.errors import ApiError, internal_error, json_bytes, shortened
from aligngpt.serving.metrics import CHAT_PATH, LEFT, Outcomes, set_outcome
from aligngpt.serving.protocol import TAGS, ChatRequest
from aligngpt.serving.request_guard import RequestGuard

log = logging.getLogger("aligngpt.serving")

SLACK_SECONDS = 10.0
"""How long a client may take to read the end of a stream after its time is over."""


SAID = {
    "missing": "this field is missing",
    "model_attributes_type": "give an object, in braces",
    "model_type": "give an object, in braces",
}
"""In place of what pydantic says, which names classes of this program or does not say what to do."""


def build_app(
    desk: Desk, *, name: str, fingerprint: str, key: str | None, max_body: int, body_seconds: float = 30.0
) -> FastAPI:
    """The application of one model.

    Args:
        desk: takes the requests.
        name: the model's name, which requests must give.
        fingerprint: names the program and the weights.
        key, max_body, body_seconds: see `RequestGuard`.
    """
    # The pages with documentation would load scripts from other hosts.
    app = FastAPI(title="aligngpt serve", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(RequestGuard, key=key, max_body=max_body, body_seconds=body_seconds)
    # What is added last is outermost.
    app.add_middleware(Outcomes, metrics=desk.metrics)
    _add_error_handlers(app)
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "aligngpt"}

    def check_name(asked: str) -> None:
        if asked != name:
            raise ApiError(
                404,
                f"there is no model {shortened(asked)!r} here, only {name!r}",
                param="model",
                code="model_not_found",
            )

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "closing" if desk.closing else "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(desk.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{asked:path}")
    async def one_model(asked: str) -> dict[str, Any]:
        check_name(asked)
        return model

    @app.post(CHAT_PATH)
    async def chat(request: Request, body: ChatRequest) -> Response:
        started = time.perf_counter()
        try:
            check_name(body.model)
            writer = Writer(body, desk.engine.processor.tokenizer, fingerprint)
            return await _answered(desk, writer, request, started)
        except Left:
            set_outcome(request, LEFT)
            return Response(status_code=499)

    return app


async def _answered(desk: Desk, writer: Writer, request: Request, started: float) -> Response:
    """The response; a stream begins when its first token is there, so that errors before it have a status."""
    async with AsyncExitStack() as stack:
        job = await stack.enter_async_context(desk.admitted(writer.body))
        await stack.enter_async_context(_watched(request, job))
        count = await desk.begin(writer.body, job)
        first = await job.next()
        desk.metrics.first_seconds.observe(time.perf_counter() - started)
        if writer.body.stream:
            chunks = _chunks(desk, writer, request, job, first, count, started)
            left = max(0.0, desk.seconds - (time.perf_counter() - started))
            return _Stream(chunks, stack.pop_all(), left + SLACK_SECONDS)
        found: dict[int, Answer] = {}
        event = first
        while True:
            if isinstance(event, Finished):
                found[event.index] = event.answer
            if len(found) == count:
                break
            event = await job.next()
        answers = [found[index] for index in range(count)]
        _count(desk, answers, started)
        return Response(json_bytes(writer.completion(answers)), media_type="application/json")


async def _chunks(
    desk: Desk, writer: Writer, request: Request, job: Job, event: Any, count: int, started: float
) -> AsyncIterator[bytes]:
    """The server-sent events of a stream. An error after its beginning is an event too, and ends it."""
    found: dict[int, Answer] = {}
    try:
        for chunk in writer.roles(count):
            yield _event(chunk)
        while True:
            chunk_or_none = writer.last(event) if isinstance(event, Finished) else writer.delta(event)
            if chunk_or_none is not None:
                yield _event(chunk_or_none)
            if isinstance(event, Finished):
                found[event.index] = event.answer
            if len(found) == count:
                break
            event = await job.next()
        answers = [found[index] for index in range(count)]
        if writer.counts:
            yield _event(writer.usage(answers))
        _count(desk, answers, started)
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        set_outcome(request, str(error.status))
        yield _event(error.body)
    except (Left, GeneratorExit, asyncio.CancelledError) as error:
        set_outcome(request, LEFT)
        if not isinstance(error, Left):
            raise


def _event(value: Any) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"


def _count(desk: Desk, answers: Sequence[Answer], started: float) -> None:
    desk.metrics.seconds.observe(time.perf_counter() - started)
    desk.metrics.answered(answers)


class _Stream(StreamingResponse):
    """A stream that gives its place back when it ends, also if it never began or its client reads too slowly."""

    def __init__(self, chunks: AsyncIterator[bytes], place: AsyncExitStack, seconds: float) -> None:
        super().__init__(
            chunks,
            media_type="text/event-stream",
            # Otherwise nginx would hold the tokens back.
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._place, self._seconds = place, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._place:
            try:
                async with asyncio.timeout(self._seconds):
                    await super().__call__(scope, receive, send)
            except TimeoutError:
                log.warning("a client read its stream too slowly; the connection is closed")
            except ClientDisconnect:
                pass


@asynccontextmanager
async def _watched(request: Request, job: Job) -> AsyncIterator[None]:
    """End the job when the client leaves."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.end(Left())

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


def _add_error_handlers(app: FastAPI) -> None:
    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return ApiError(400, "the body is not JSON", code="invalid_json").response()
        place = [part for part in first["loc"][1:] if part not in TAGS]
        param = "".join(f"[{part}]" if isinstance(part, int) else f".{shortened(part)}" for part in place).lstrip(".")
        message = f"{param or 'the body'}: {SAID.get(first['type'], first['msg'])}"
        if first["type"] == "extra_forbidden":
            return ApiError(
                400, f"{param} is not supported; leave it out", param=param, code="unknown_parameter"
            ).response()
        return ApiError(400, message, param=param or None).response()

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not possible here"}
        message = said.get(error.status_code, "the request cannot be read")
        return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()

    async def fault(request: Request, error: Exception) -> Response:
        return internal_error().response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    # The server logs the error with its traceback.
    app.add_exception_handler(Exception, fault)
