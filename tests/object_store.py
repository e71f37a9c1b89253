"""An S3 server on this machine, behind a proxy that counts what it passes on and can drop connections."""

import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

BUCKET = "pairs"


class Proxy:
    """Passes connections on to a server.

    Attributes:
        served: bytes of the server's answers that were passed on.
        drops: for each of the next answers of more than 1,000 bytes, after how many bytes to drop the connection.
    """

    def __init__(self, port: int) -> None:
        self.served, self.dropped, self.drops = 0, 0, list[int]()
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            try:
                while content := client.recv(1 << 16):
                    server.sendall(content)
            except OSError:
                pass

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while content := server.recv(1 << 16):
                if self.drops and len(content) > 1000:
                    client.sendall(content[: self.drops.pop(0)])
                    self.dropped += 1
                    client.shutdown(socket.SHUT_RDWR)
                    server.shutdown(socket.SHUT_RDWR)
                    return
                self.served += len(content)
                client.sendall(content)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.close()


def forget() -> None:
    """Forget the connections and blocks of this process, as after a change of the environment."""
    from aligngpt.data.sources import remote_store

    remote_store._filesystem.cache_clear()
    remote_store._blocks._kept.clear()


@dataclass
class Store:
    """A bucket named `pairs` and how to change it."""

    client: Any
    proxy: Proxy
    keys: set[str] = field(default_factory=set)

    def put(self, key: str, content: bytes) -> str:
        """Store an object; returns its address."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)
        self.keys.add(key)
        return f"s3://{BUCKET}/{key}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[Any, int]]:
    """A client of the server, and the server's port."""
    pytest.importorskip("s3fs", reason="needs the extra `remote`")
    moto = pytest.importorskip("moto.server", reason="needs the package moto[server]")
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
        )
        client.create_bucket(Bucket=BUCKET)
        yield client, port
    finally:
        server.stop()


@pytest.fixture
def store(s3_server: tuple[Any, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty bucket that this process, and those it starts, read at `s3://pairs`."""
    from aligngpt.data.sources import remote_store

    client, port = s3_server
    proxy = Proxy(port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(remote_store, "WAITS", (0.0, 0.0))
    forget()
    made = Store(client, proxy)
    yield made
    for key in made.keys:
        client.delete_object(Bucket=BUCKET, Key=key)
    proxy.close()
    forget()
