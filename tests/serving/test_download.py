"""Images fetched from hosts that the operator allows: from a real TLS server, whose host and address are stand-ins."""

import datetime
import http.server
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aligngpt.serving.media import MediaError, MediaPolicy, pictures_from_urls

HOST, PUBLIC, OTHER = "images.example.org", "93.184.216.34", "1.1.1.1"
POLICY = MediaPolicy(allow_hosts=(HOST,), max_bytes=50_000, timeout=20)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), (200, 10, 10)).save(buffer, format="PNG")
    return buffer.getvalue()


def certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """A self-signed certificate of a host, and its key."""
    x509 = pytest.importorskip("cryptography.x509", reason="needs the extra test")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{host}.pem", folder / f"{host}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


class Site:
    """A server on loopback that takes the place of every address that is connected to.

    Attributes:
        answer: writes the response to a request.
        asked: paths of requests.
        connected: addresses that connections were meant for.
        resolved: what the host's name resolves to, one list per resolution; the last one stays.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, host: str = HOST) -> None:
        self.answer: Callable[[http.server.BaseHTTPRequestHandler], None] = lambda request: plain(request, png())
        self.asked: list[str] = []
        self.connected: list[str] = []
        self.resolved = [[PUBLIC]]
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append(f"{self.headers['Host']}{self.path}")
                with suppress(OSError):
                    site.answer(self)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        chain, key = certificate(folder, host)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        trusting = ssl.create_default_context(cafile=str(chain))
        monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
        connect, look_up = socket.create_connection, socket.getaddrinfo

        def resolve(name: str, port: int, *rest: Any, **options: Any) -> list[Any]:
            if name == "127.0.0.1":
                return look_up(name, port, *rest, **options)
            assert (name, port) == (HOST, 443)
            numbers = self.resolved.pop(0) if len(self.resolved) > 1 else self.resolved[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port)) for number in numbers]

        def to_loopback(address: tuple[str, int], timeout: float) -> socket.socket:
            assert address[1] == 443
            self.connected.append(address[0])
            return connect(("127.0.0.1", self.server.server_address[1]), timeout=timeout)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(socket, "create_connection", to_loopback)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path, monkeypatch)
    yield made
    made.server.shutdown()
    made.server.server_close()


def plain(
    request: http.server.BaseHTTPRequestHandler, content: bytes, kind: str = "image/png", length: int | None = -1
) -> None:
    request.send_response(200)
    request.send_header("Content-Type", kind)
    if length is not None:
        request.send_header("Content-Length", str(len(content) if length == -1 else length))
    request.end_headers()
    request.wfile.write(content)


def refused(url: str = f"https://{HOST}/a.png", policy: MediaPolicy = POLICY) -> MediaError:
    with pytest.raises(MediaError) as found:
        pictures_from_urls([url], policy)
    return found.value


def test_an_image_is_fetched_from_the_address_that_was_checked(site: Site) -> None:
    image = pictures_from_urls([f"https://{HOST}/a/b.png?size=2"], POLICY)[0]
    assert (image.size, image.getpixel((0, 0))) == ((5, 3), (200, 10, 10))
    assert (site.asked, site.connected) == ([f"{HOST}/a/b.png?size=2"], [PUBLIC])


@pytest.mark.parametrize("kind", ["application/octet-stream", "binary/octet-stream", ""])
def test_hosts_that_do_not_state_what_they_send_are_read(site: Site, kind: str) -> None:
    site.answer = lambda request: plain(request, png(), kind)
    assert pictures_from_urls([f"https://{HOST}/a"], POLICY)[0].size == (5, 3)


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "image/jpeg"])
def test_another_content_type_is_refused(site: Site, kind: str) -> None:
    site.answer = lambda request: plain(request, png(), kind)
    assert refused().status == 415


def test_the_certificate_must_be_the_host_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Site(tmp_path, monkeypatch, host="other.example.org")
    assert refused().code == "failed_to_download_image"
    assert (other.connected, other.asked) == ([PUBLIC], [])
    other.server.shutdown()
    other.server.server_close()


@pytest.mark.parametrize(
    "numbers", [["127.0.0.1"], ["10.0.0.7"], ["169.254.169.254"], [PUBLIC, "192.168.0.1"], ["::1"]]
)
def test_a_name_that_resolves_to_a_private_address_is_never_connected_to(site: Site, numbers: list[str]) -> None:
    site.resolved = [numbers]
    assert refused().code == "invalid_image_url"
    assert not site.connected


def test_a_name_is_resolved_once(site: Site) -> None:
    site.resolved = [[PUBLIC], ["127.0.0.1"]]
    assert pictures_from_urls([f"https://{HOST}/a.png"], POLICY)[0].size == (5, 3)
    assert site.connected == [PUBLIC] and site.resolved == [["127.0.0.1"]]


@pytest.mark.parametrize("target", [f"https://{HOST}/b.png", "http://169.254.169.254/latest", "file:///etc/passwd"])
def test_redirects_are_not_followed(site: Site, target: str) -> None:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", target)
        request.send_header("Content-Length", "0")
        request.end_headers()

    site.answer = answer
    assert "redirects are not followed" in refused().message
    assert len(site.asked) == 1


@pytest.mark.parametrize("length", [-1, None], ids=["stated", "not stated"])
def test_a_file_that_is_too_large_is_refused_while_it_comes(site: Site, length: int | None) -> None:
    sent: list[int] = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        plain(request, b"", length=10_000_000 if length == -1 else None)
        for _ in range(100):
            request.wfile.write(b"x" * 100_000)
            sent.append(1)

    site.answer = answer
    error = refused()
    assert (error.status, error.code) == (413, "image_file_too_large")
    assert len(sent) < 100


def test_a_file_that_ends_early_is_refused(site: Site) -> None:
    site.answer = lambda request: plain(request, png()[:-8], length=len(png()))
    assert refused().code == "failed_to_download_image"


@pytest.mark.parametrize("status", [404, 500, 206])
def test_another_status_is_refused_without_what_the_host_said(site: Site, status: int) -> None:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status, "secret detail")
        request.end_headers()
        request.wfile.write(b"secret detail")

    site.answer = answer
    error = refused()
    assert error.code == "failed_to_download_image" and "secret" not in error.message


def test_a_compressed_answer_is_refused(site: Site) -> None:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "image/png")
        request.send_header("Content-Encoding", "gzip")
        request.end_headers()
        request.wfile.write(b"\x1f\x8b" + b"0" * 40)

    site.answer = answer
    assert refused().code == "failed_to_download_image"


def test_a_host_that_sends_a_byte_now_and_then_is_left_at_the_time_limit(site: Site) -> None:
    ended = threading.Event()

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        plain(request, b"", length=len(png()))
        try:
            for byte in png():
                request.wfile.write(bytes([byte]))
                time.sleep(0.1)
        finally:
            ended.set()

    site.answer = answer
    error = refused(policy=MediaPolicy(allow_hosts=(HOST,), timeout=0.6))
    assert "did not send the image within" in error.message
    assert ended.wait(10)


def test_a_host_that_never_answers_the_handshake_is_left_at_the_time_limit(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: _connected(silent))
    error = refused(policy=MediaPolicy(allow_hosts=(HOST,), timeout=0.4))
    assert "did not send the image within" in error.message
    silent.close()


def _connected(server: socket.socket) -> socket.socket:
    made = socket.socket()
    made.connect(server.getsockname())
    return made
