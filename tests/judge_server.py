"""A chat endpoint on this machine that follows a script."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

DROP = "drop the connection"
SLOW = "be slow"


def said(text: object, finish: str = "stop") -> tuple[int, dict[str, str], str]:
    """A reply of a chat endpoint."""
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]})


class Server:
    """Answers by a function of the request and its number; keeps the requests.

    Attributes:
        answer: gets the request's JSON and its number among those with the same caption, from 0.
        asked: the requests so far.
    """

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any], int], Any] = lambda _, __: said("8")
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.url = ""
        self.lock = threading.Lock()

    def captions(self) -> list[str]:
        return [caption_in(one) for one in self.asked]


def caption_in(request: dict[str, Any]) -> str:
    """The caption that is asked about; a message without an image is taken whole."""
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else str(content[0]["text"]).split("Caption: ")[-1].split("\n")[0]


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with found.lock:
                number = found.captions().count(caption_in(request))
                found.asked.append(request)
                found.keys.add(self.headers.get("Authorization"))
            answer = found.answer(request, number)
            if answer == DROP:
                self.close_connection = True
                return
            if answer == SLOW:
                time.sleep(1.0)
                answer = said("1")
            status, headers, body = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.block_on_close = False
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{http.server_port}/v1/chat/completions"
    yield found
    http.shutdown()
    http.server_close()
