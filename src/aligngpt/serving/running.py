"""Runs the server: checks its address and key, loads the model, and stops in order."""

import asyncio
import json
import math
import os
import shlex
import socket
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import uvicorn
import xxhash

from aligngpt import __version__
from aligngpt.cpus import usable_cpus
from aligngpt.errors import AlignGPTError
from aligngpt.inference.engine import Engine
from aligngpt.inference.generation.loop import DEFAULT_ROWS
from aligngpt.loopback import is_loopback
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.tensor_bytes import tensor_bytes
from aligngpt.progress import say
from aligngpt.serving.app import build_app
from aligngpt.serving.conversation import Limits
from aligngpt.serving.desk import Desk
from aligngpt.serving.metrics import Metrics

KEY_VARIABLE = "ALIGNGPT_API_KEY"
MEBIBYTE = 2**20


class ServingError(AlignGPTError):
    """The server cannot be started."""


@dataclass(frozen=True)
class Options:
    """How to serve.

    Attributes:
        host, port: address; another host than this machine's own needs a key. Port 0 takes a free one.
        name: the model's name; that of its folder when None.
        key_file: file with the API key; the variable ALIGNGPT_API_KEY when None.
        rows: answers under way at once.
        max_queue: requests that may wait in the queue.
        seconds: time for one request.
        grace: seconds for open requests when the server stops.
        max_body: bytes of a request's body, at most.
        limits: what one request may ask.

    Raises:
        ServingError: `seconds` or `grace` is no number of seconds.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    key_file: Path | None = None
    rows: int = DEFAULT_ROWS
    max_queue: int = 64
    seconds: float = 300.0
    grace: float = 20.0
    max_body: int = 32 * MEBIBYTE
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ServingError(f"the time for one request must be a number of seconds above 0, not {self.seconds}")
        if not (math.isfinite(self.grace) and self.grace >= 0):
            raise ServingError(f"the time for open requests must be a number of seconds from 0 up, not {self.grace}")


class Server(uvicorn.Server):
    """Stops in order: takes no more requests, waits for those that are open, and ends them after a grace time."""

    def __init__(self, config: uvicorn.Config, desk: Desk, grace: float) -> None:
        super().__init__(config)
        self.desk, self.grace = desk, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.desk.closing = True
        asyncio.get_running_loop().call_later(self.grace, self.desk.end_all)
        await super().shutdown(sockets)


def make_server(engine: Engine, name: str, options: Options, key: str | None) -> Server:
    """A server for a loaded model."""
    places = options.rows + options.max_queue
    desk = Desk(engine, options.limits, Metrics(engine), places=places, seconds=options.seconds)
    app = build_app(desk, name=name, fingerprint=fingerprint(engine.model), key=key, max_body=options.max_body)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        # A second more for what `end_all` makes the requests say.
        timeout_graceful_shutdown=int(options.grace) + 2,
        limit_concurrency=places + 256,
        ws="none",
        lifespan="off",
    )
    return Server(config, desk, options.grace)


def serve(
    source: str,
    options: Options,
    *,
    base: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    bits: Literal[4, 8] | None = None,
    threads: int | None = None,
) -> None:
    """Serve a model until the process is told to stop.

    Args:
        source, base, device, precision, bits: see `load_model`.
        options: how.
        threads: threads that compute on the CPU; as many as it has when None.

    Raises:
        ServingError: the address cannot be used, or needs an API key.
        EngineError, AdapterError, DeviceError: the model cannot be loaded.
    """
    key = read_key(options.key_file)
    if key is None and not is_loopback(options.host):
        raise ServingError(
            f"other machines can reach {options.host}, so clients need a key; set {KEY_VARIABLE} or give --api-key-file"
        )
    # Pillow reports damaged metadata as warnings, and clients could fill the log with them.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Before the model is loaded, which takes long.
    listening = _listen(options.host, options.port)
    with listening:
        torch.set_num_threads(threads or usable_cpus())
        with Engine.load(source, base=base, device=device, dtype=precision, bits=bits, rows=options.rows) as engine:
            name = options.name or Path(source).resolve().name if Path(source).is_dir() else options.name or source
            server = make_server(engine, name, options, key)
            _print_how(name, options.host, listening.getsockname()[1], _header(key is not None, options.key_file))
            # uvicorn raises the signal again once it has stopped in order.
            with suppress(KeyboardInterrupt):
                server.run(sockets=[listening])
    say("stopped")


def read_key(file: Path | None) -> str | None:
    """The API key, from a file or the environment; None if there is none.

    Raises:
        ServingError: the file cannot be read, or the key is empty or has characters that no header can have.
    """
    if file is None:
        key, where = os.environ.get(KEY_VARIABLE), f"the variable {KEY_VARIABLE}"
        if key is None:
            return None
    else:
        where = f"the file {file}"
        try:
            key = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ServingError(f"the API key cannot be read from {where}: {error}") from error
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ServingError(f"{where} has no usable API key; it must be one word of printable ASCII characters")
    return key


def fingerprint(model: AlignGPTForConditionalGeneration) -> str:
    """Names the version of this program and the weights, to tell whether two answers come from the same."""
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return f"aligngpt-{__version__}-{digest.hexdigest()}"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        # Two sockets may be bound to one port; only one of them can listen.
        listening.listen()
    except OSError as error:
        listening.close()
        raise ServingError(f"cannot listen on {host}, port {port}: {error.strerror}; try another --port") from error
    return listening


def _header(keyed: bool, file: Path | None) -> str:
    """The option of curl that sends the API key, which is not printed itself; empty if there is none."""
    if not keyed:
        return ""
    if file is None:
        return f" -H 'Authorization: Bearer '\"${KEY_VARIABLE}\""
    return f" -H 'Authorization: Bearer '\"$(cat {shlex.quote(str(file))})\""


def _print_how(name: str, host: str, port: int, header: str) -> None:
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    key = f" \\\n {header}" if header else ""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello"}]})
    quoted = body.replace("'", "'\\''")
    print(f"serving {name} at {address}/v1; Ctrl-C stops it. Try:", flush=True)
    print(
        f"curl {address}/v1/chat/completions{key} \\\n  -H 'Content-Type: application/json' \\\n  -d '{quoted}'",
        flush=True,
    )
