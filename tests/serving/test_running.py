"""Starting and stopping: the address, the key, and what is printed."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

import httpx
import torch
from PIL import Image
from typer.testing import CliRunner

from aligngpt import cli
from aligngpt.loopback import is_loopback
from aligngpt.serving.media import MediaPolicy, pictures_from_urls
from aligngpt.serving.running import (
    KEY_VARIABLE,
    Options,
    ServingError,
    _header,
    _listen,
    _print_how,
    fingerprint,
    read_key,
    serve,
)


def test_an_address_that_others_can_reach_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(ServingError, match="need a key"):
        serve("no/model", Options(host="0.0.0.0"))
    assert [is_loopback(host) for host in ("127.0.0.2", "::1", "localhost", "0.0.0.0", "::", "example.org")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_a_key_is_one_word(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_key(key_file) == "secret-key"
    monkeypatch.setenv(KEY_VARIABLE, "from the environment")
    with pytest.raises(ServingError, match="one word"):
        read_key(None)
    key_file.write_text("\n")
    with pytest.raises(ServingError, match="no usable API key"):
        read_key(key_file)
    with pytest.raises(ServingError, match="cannot be read"):
        read_key(key_file.parent / "none")


def test_a_port_in_use_is_told_before_the_model_is_loaded(serving: tuple[str, Any]) -> None:
    port = int(serving[0].rpartition(":")[2])
    with pytest.raises(ServingError, match=f"port {port}.*--port"):
        serve("no/model", Options(port=port))


def test_a_port_of_a_server_that_still_loads_its_model_is_in_use() -> None:
    with _listen("127.0.0.1", 0) as loading:
        port = loading.getsockname()[1]
        with pytest.raises(ServingError, match=f"port {port}.*--port"):
            serve("no/model", Options(port=port))


def test_the_fingerprint_changes_with_the_weights(assembled: Callable) -> None:
    model, _ = assembled()
    before = fingerprint(model)
    assert fingerprint(model) == before
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert fingerprint(model) != before
    fingerprint(model.to(torch.bfloat16))


def with_damaged_exif(entries: int) -> str:
    """A picture that Pillow reads with a warning, because its metadata end too early."""
    file = io.BytesIO()
    exif = b"Exif\0\0II*\0\x08\0\0\0" + entries.to_bytes(2, "little") + b"\x12\x01\x03\0"
    Image.new("RGB", (20, 30), "red").save(file, "JPEG", exif=exif)
    url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    with pytest.warns(UserWarning, match="EXIF"):
        pictures_from_urls([url], MediaPolicy())
    return url


@pytest.mark.medium
@pytest.mark.skipif(sys.platform == "win32", reason="runs a POSIX shell")
@pytest.mark.parametrize("from_file", [False, True])
def test_the_printed_request_has_the_key_from_where_the_server_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], from_file: bool
) -> None:
    file = tmp_path / "my key's.txt"
    file.write_text("secret-key\n")
    environment = {"PATH": os.environ["PATH"]} | ({} if from_file else {KEY_VARIABLE: "secret-key"})
    _print_how("mine", "127.0.0.1", 8000, _header(True, file if from_file else None))
    printed = capsys.readouterr().out.partition("\n")[2]
    assert "secret-key" not in printed
    script = f'curl() {{ printf "%s\\n" "$@"; }}\n{printed}'
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "Authorization: Bearer secret-key" in done.stdout.splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_its_address_and_stops_cleanly(
    assembled: Callable, tmp_path: Path, number: signal.Signals, ask: Callable
) -> None:
    picture_urls = [with_damaged_exif(entries) for entries in (2, 3)]
    for part in assembled("qwen2"):
        part.save_pretrained(tmp_path / "mine")
    command = [sys.executable, "-m", "aligngpt", "serve", str(tmp_path / "mine"), "--port", "0", "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            said = next(line for line in lines if "serving mine at" in line)
            address = re.search(r"http://\S+/v1", said)
            assert address is not None
            assert "curl" in next(lines)
            assert httpx.get(f"{address[0]}/models", timeout=30).json()["data"][0]["id"] == "mine"
            for image in picture_urls:
                body = {"model": "mine", "messages": ask(image), "max_tokens": 1}
                assert httpx.post(f"{address[0]}/chat/completions", json=body, timeout=30).status_code == 200
            process.send_signal(number)
            rest = process.stdout.read()
            assert process.wait(30) == 0, rest
            assert "stopped" in rest
            assert "Traceback" not in rest
            assert "Warning" not in rest
        finally:
            process.kill()


@pytest.mark.parametrize("option", ["--grace", "--max-seconds"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_time_that_is_no_number_is_refused_before_anything_is_loaded(option: str, value: str) -> None:
    ended = CliRunner().invoke(cli.app, ["serve", "no/model", option, value])
    assert ended.exit_code == 2 and option.strip("-") in ended.output


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_options_are_numbers_of_seconds(value: float) -> None:
    with pytest.raises(ServingError, match="number of seconds above 0"):
        Options(seconds=value)
    with pytest.raises(ServingError, match="number of seconds from 0 up"):
        Options(grace=value)
