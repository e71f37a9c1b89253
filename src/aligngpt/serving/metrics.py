"""What the server counts, as Prometheus reads it."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligngpt.inference.engine import Engine
from aligngpt.inference.requests import Answer

CHAT_PATH = "/v1/chat/completions"
LEFT = "left"
"""Outcome of a request whose client did not wait for the end."""

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server.

    Args:
        engine: its load is read when the metrics are.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "aligngpt_requests",
            "Chat requests by how they ended: an HTTP status, or left.",
            ["outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "aligngpt_request_seconds", "Seconds from admission to the end.", buckets=SECONDS, registry=registry
        )
        self.first_seconds = Histogram(
            "aligngpt_first_token_seconds",
            "Seconds from admission to the first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("aligngpt_prompt_tokens", "Tokens of conversations.", registry=registry)
        self.reused_tokens = Counter(
            "aligngpt_reused_tokens", "Tokens of conversations that were kept from earlier turns.", registry=registry
        )
        self.answer_tokens = Counter("aligngpt_answer_tokens", "Generated tokens.", registry=registry)
        running = Gauge("aligngpt_running_answers", "Answers under way.", registry=registry)
        waiting = Gauge("aligngpt_waiting_requests", "Requests that have not begun.", registry=registry)
        running.set_function(lambda: engine.loop.running)
        waiting.set_function(lambda: engine.loop.waiting)

    def answered(self, answers: Sequence[Answer]) -> None:
        """Count the tokens of the answers to one request."""
        self.prompt_tokens.inc(answers[0].prompt_tokens)
        self.reused_tokens.inc(answers[0].reused_tokens)
        self.answer_tokens.inc(sum(answer.tokens for answer in answers))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class Outcomes:
    """ASGI middleware that counts how each chat request ended, also those that reach nothing behind it.

    It is the outermost one. The outcome is the status of the response, 500 if there is none because of a fault, or what
    `set_outcome` said: a stream ends otherwise than it began.

    Args:
        app: the application.
        metrics: counts.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", CHAT_PATH):
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        status = LEFT
        counted = False

        def count(outcome: str) -> None:
            nonlocal counted
            if not counted:
                counted = True
                self.metrics.requests.labels(outcome).inc()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            elif not message.get("more_body", False):
                # Before the client knows the end, and may ask for the counts.
                count(state.get("outcome", status))
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            count("500")
            raise
        finally:
            count(state.get("outcome", LEFT))


def set_outcome(request: Request, outcome: str) -> None:
    """Say how a chat request ended, where its status does not."""
    request.state.outcome = outcome
