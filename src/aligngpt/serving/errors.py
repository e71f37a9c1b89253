"""Errors as OpenAI's clients expect them: a status and `{"error": {message, type, param, code}}`."""

import json
from typing import Any

from starlette.responses import Response

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request cannot be answered.

    Args:
        status: HTTP status.
        message: what is wrong and what to do; the client reads it.
        param: the field of the request that is wrong.
        code: short name of the error.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole response."""
        return Response(json_bytes(self.body), self.status, self.headers, "application/json")


def json_bytes(value: Any) -> bytes:
    """JSON in ASCII: what clients send back to us in messages may have no UTF-8."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def shortened(text: str) -> str:
    """What a client wrote, for a message about it, which must not become as long as the request."""
    return text if len(text) <= 100 else text[:99] + "…"


def internal_error() -> ApiError:
    """What a client is told about a fault of the server; the log has the rest."""
    return ApiError(500, "the server could not answer because of an internal error; its log has the reason")


def closing_error() -> ApiError:
    """The server is shutting down."""
    return ApiError(503, "the server is shutting down; try again later", code="shutting_down")
