"""Only public addresses of allowed hosts are fetched."""

import socket
from typing import Any

import pytest

from aligngpt.serving.addresses import HttpsAddress, download, is_public, parse_address
from aligngpt.serving.media_errors import MediaError

ALLOWED = ("a.org",)


def test_an_allowed_address_is_split() -> None:
    assert parse_address("HTTPS://A.org:443/b.png?c=1", ALLOWED) == HttpsAddress("a.org", "/b.png?c=1")
    assert parse_address("https://a.org?c", ALLOWED).target == "/?c"


@pytest.mark.parametrize(
    "rest",
    [
        "http://a.org/", "https://a.org:80/", "https://u@a.org/", "https://a.org\\@b.org/", "https://b.org\\.a.org/",
        "https://a.org/\n", "https://a.org/ x", "https://a.org/é", "https://x.a.org/", "https://a.org./", "https://127.1/",
        "https://0x7f000001/", "https://[::ffff:127.0.0.1]/", "https://a.org/#b", "file://a.org/b", "https:a.org", "/a",
    ],
)  # fmt: skip
def test_other_addresses_are_refused(rest: str) -> None:
    with pytest.raises(MediaError) as caught:
        parse_address(rest, ALLOWED)
    assert (caught.value.status, caught.value.code) == (400, "invalid_image_url")


@pytest.mark.parametrize(
    ("address", "public"),
    [(one, False) for one in (
        "127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1%eth0",
        "fec0::1",
        "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "::ffff:8.8.8.8", "ff02::1", "127.1", "nonsense",
    )] + [("93.184.216.34", True), ("2606:2800::1", True)],
)  # fmt: skip
def test_only_addresses_of_the_internet_are_public(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", (one, 443)) for one in ("93.184.216.34", "169.254.169.254")]

    def connect(*_: Any, **__: Any) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(MediaError, match="not a public one"):
        download(HttpsAddress("a.org", "/"), max_bytes=10, timeout=5)
