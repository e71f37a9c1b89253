"""Keeps pages of other sites away from a page that is for this machine only."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from aligngpt.loopback import is_loopback

REFUSED = (
    "this page is for the machine it runs on: open it as localhost or 127.0.0.1, or start aligngpt web with --host "
    "0.0.0.0"
)


class LocalOnly:
    """ASGI middleware that answers only requests to a name of this machine that no page of another site makes.

    The browser of this machine reaches the server on behalf of any site: by a form or a script with an `Origin` of that
    site, or under a name of that site which resolves to 127.0.0.1.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_local(Headers(scope=scope)):
            await PlainTextResponse(REFUSED, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _is_local(headers: Headers) -> bool:
    origin = headers.get("origin")
    try:
        hosts = [
            urlsplit(f"//{headers.get('host', '')}").hostname,
            *([] if origin is None else [urlsplit(origin).hostname]),
        ]
    except ValueError:
        return False
    return all(host is not None and is_loopback(host) for host in hosts)
