"""The page in headless Chromium, and how it is served."""

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs the extra web")

import httpx

from aligngpt.errors import AlignGPTError
from aligngpt.inference.engine import Engine
from aligngpt.web.answering import NO_PICTURE, Answering
from aligngpt.web.page import build, launch, upload_only

CHROMIUM = shutil.which("chromium")
QUESTION = "what colour is the circle ?"
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def engine(assembled: Callable) -> Iterator[Engine]:
    with Engine(*assembled()) as engine:
        yield engine


@pytest.fixture
def address(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page = build(Answering(engine, 400), tmp_path, "tiny")
    yield launch(page, "127.0.0.1", _free_port())
    page.close(verbose=False)


@pytest.fixture
def unhurried(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 ms a token and no end before the limit, so that an answer is still under way when a slow browser stops it."""
    step = engine.loop._step

    def slowly() -> None:
        time.sleep(0.05)
        step()

    monkeypatch.setattr(engine.loop, "_step", slowly)
    monkeypatch.setattr(engine.loop, "_end_tokens", set)


@pytest.fixture
def upload(tmp_path: Path, pictures: list[Image.Image]) -> Path:
    pictures[0].save(tmp_path / "upload.png")
    return tmp_path / "upload.png"


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_a_taken_port_is_said(engine: Engine, tmp_path: Path) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AlignGPTError, match=f"port {port}; choose another with --port"):
            launch(build(Answering(engine), tmp_path, "tiny"), "127.0.0.1", port)


def test_the_page_limits_what_visitors_can_do(engine: Engine, tmp_path: Path) -> None:
    page = build(Answering(engine), tmp_path, "tiny")
    assert page._queue.max_size == 16
    assert not page.analytics_enabled and page.delete_cache is not None
    assert {function.api_visibility for function in page.fns.values()} == {"private"}
    (slider,) = [block for block in page.blocks.values() if getattr(block, "elem_id", None) == "level"]
    assert (slider.minimum, slider.maximum) == (0, 8)


def test_an_address_in_place_of_an_upload_is_not_fetched() -> None:
    import asyncio

    import gradio

    with pytest.raises(gradio.Error, match="Addresses are not read"):
        asyncio.run(upload_only(gradio.Image()).async_move_resource_to_block_cache("HTTP://192.0.2.1/a.png"))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:7860", "Origin": "http://localhost:7860"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "evil.example:7860"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(address: str, upload: Path, headers: dict[str, str], status: int) -> None:
    content = upload.read_bytes()
    sent = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", content)}, headers=headers)
    assert (sent.status_code, httpx.get(address, headers=headers).status_code) == (status, status)


def test_whoever_serves_other_machines_is_reached_by_any_name(engine: Engine, tmp_path: Path) -> None:
    page = build(Answering(engine), tmp_path, "tiny")
    port = _free_port()
    launch(page, "0.0.0.0", port)
    try:
        assert httpx.get(f"http://127.0.0.1:{port}/", headers={"Host": "models.example"}).status_code == 200
    finally:
        page.close(verbose=False)


def test_messages_do_not_name_folders_of_this_machine(address: str) -> None:
    url = f"{address}gradio_api/"
    picture = {"path": "invented.png", "meta": {"_type": "gradio.FileData"}}
    asked = {"data": [picture, QUESTION, 0], "fn_index": 0, "session_hash": "visitor"}
    assert httpx.post(f"{url}queue/join", json=asked).status_code == 200
    events = httpx.get(f"{url}queue/data", params={"session_hash": "visitor"}, timeout=30).text
    assert '"success":false' in events and str(Path.cwd()) not in events


@pytest.mark.slow
@pytest.mark.usefixtures("unhurried")
def test_a_visit(browser: Any, address: str, upload: Path) -> None:
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    page.set_default_timeout(WAIT_MS)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((address, "data:", "blob:")) else problems.append(request.url),
    )
    page.goto(address)
    page.get_by_role("button", name="Ask").click()
    page.locator("#status textarea").wait_for()
    assert page.locator("#status textarea").input_value() == NO_PICTURE

    page.locator("#picture input[type=file]").set_input_files(upload)
    page.locator("#picture img").wait_for()
    page.locator("#question textarea").fill(QUESTION)
    page.locator("#level input[type=number]").fill("3")
    page.locator("#level input[type=number]").press("Tab")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_function("document.querySelector('#answer textarea').value.length > 3")
    first = page.locator("#answer textarea").input_value()
    page.wait_for_function(f"document.querySelector('#answer textarea').value.length > {len(first)}")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("document.querySelector('#status textarea')?.value == 'Stopped.'")
    assert page.locator("#answer textarea").input_value().startswith(first)
    assert page.locator("#compared textarea").input_value()
    assert page.locator("#gate .bar").count() == 7
    page.locator("#matches img").wait_for()
    label, drawn = page.locator("#matches label").bounding_box(), page.locator("#matches img").bounding_box()
    assert label["y"] + label["height"] <= drawn["y"] + 1, "the label covers a part of the picture"

    page.set_viewport_size({"width": 375, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert problems == []
