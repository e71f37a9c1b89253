"""`aligngpt serve`: a model behind the interface of OpenAI's chat completions."""

from pathlib import Path
from typing import Annotated

import typer

from aligngpt.cli.numbers import finite
from aligngpt.cli.options import Base, Device, Model, Precision
from aligngpt.errors import AlignGPTError

NEEDED = ("fastapi", "prometheus_client", "starlette", "uvicorn")


def serve(
    model: Model,
    base: Base = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that other machines can reach needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="Name that clients give as the model.", show_default="the folder's name or the hub name"),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the key that clients must send.", show_default="the variable ALIGNGPT_API_KEY, if set"
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Answers generated at once.")] = 32,
    max_queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; further ones get status 429.")] = 64,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="Time for one request, in seconds.")
    ] = 300.0,
    max_answer_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of an answer if the request sets no limit, at most.")
    ] = 1024,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Size of a request with its images, in MiB, at most.")] = 32,
    allow_media_host: Annotated[
        list[str] | None,
        typer.Option(help="Host that images may be fetched from by https; repeat it for several.", show_default="none"),
    ] = None,
    keep_turns: Annotated[
        bool, typer.Option(help="Keep conversations in memory, so that their next turn is answered sooner.")
    ] = True,
    grace: Annotated[
        float, typer.Option(min=0, callback=finite, help="Seconds for open requests when the server is stopped.")
    ] = 20.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that compute on the CPU.", show_default="the usable CPUs")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    bits: Annotated[int | None, typer.Option(help="Hold the language model in 4 or 8 bits.")] = None,
) -> None:
    """Serve a model to OpenAI's clients: /v1/chat/completions, /v1/models, /health and /metrics."""
    if bits not in (None, 4, 8):
        raise typer.BadParameter(f"must be 4 or 8, not {bits}", param_hint="--bits")
    try:
        from aligngpt.serving.conversation import Limits
        from aligngpt.serving.media import MediaPolicy
        from aligngpt.serving.running import MEBIBYTE, Options, serve
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        raise AlignGPTError(f"aligngpt serve needs {error.name}; run: pip install 'aligngpt[serve]'") from error

    media = MediaPolicy(allow_hosts=tuple(allow_media_host or ()))
    options = Options(
        host=host,
        port=port,
        name=served_model_name,
        key_file=api_key_file,
        rows=rows,
        max_queue=max_queue,
        seconds=max_seconds,
        grace=grace,
        max_body=max_body_mb * MEBIBYTE,
        limits=Limits(answer_tokens=max_answer_tokens, media=media, keep=keep_turns),
    )
    serve(model, options, base=base, device=device, precision=precision, bits=bits, threads=threads)  # type: ignore[arg-type]
