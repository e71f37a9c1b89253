"""A tiny model behind the application in this process, and behind a real server on this machine."""

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NAME = "tiny"


@pytest.fixture(scope="session")
def engine(assembled: Callable) -> Iterator[Any]:
    from aligngpt.inference.engine import Engine

    with Engine(*assembled("qwen2"), rows=8) as engine:
        yield engine


@contextmanager
def started(engine: Any, options: Any, key: str | None = None) -> Iterator[tuple[str, Any]]:
    """A real server in a thread; yields its address and the server."""
    from aligngpt.serving.running import make_server

    server = make_server(engine, NAME, options, key)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving(engine: Any) -> Iterator[tuple[str, Any]]:
    from aligngpt.serving.running import Options

    with started(engine, Options(port=0)) as running:
        yield running


@pytest.fixture(scope="session")
def picture_url() -> str:
    file = io.BytesIO()
    Image.new("RGB", (20, 30), "red").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def question(url: str | None = None, text: str = "what colour is the circle ?") -> list[dict[str, Any]]:
    shown = [] if url is None else [{"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


@pytest.fixture(scope="session")
def ask() -> Callable[..., list[dict[str, Any]]]:
    """Messages with one question, and an image if its URL is given."""
    return question


@pytest.fixture(scope="session")
def run_server() -> Callable:
    return started


@pytest.fixture
def post(engine: Any) -> Callable[..., Any]:
    """POST to the application in this process; returns the response."""
    import httpx

    from aligngpt.serving.running import Options, make_server

    def send(
        body: Any, *, options: Any = None, key: str | None = None, path: str = "/v1/chat/completions", **how: Any
    ) -> Any:
        app = make_server(engine, NAME, options or Options(), key).config.app

        async def sent() -> Any:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url=how.pop("base_url", "http://127.0.0.1")
            ) as client:
                if body is None:
                    return await client.get(path, **how)
                return await client.post(path, **({"json": body} if "content" not in how else {}), **how)

        return asyncio.run(sent())

    return send


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text("secret-key\n")
    return file
