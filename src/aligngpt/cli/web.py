"""`aligngpt web`: a page in the browser that answers questions about pictures."""

from pathlib import Path
from typing import Annotated

import typer

from aligngpt.cli.options import Base, Device, Model, Precision
from aligngpt.loopback import is_loopback


def web(
    model: Model,
    base: Base = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines too, without a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")] = 256,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Open a page on which a model answers questions about pictures, and shows what its gate does."""
    from aligngpt.errors import AlignGPTError
    from aligngpt.hub_names import local_or_hub
    from aligngpt.progress import say

    local_or_hub(model, "the model", AlignGPTError, with_owner=True)
    # First, because a missing package should not be found only after the model is loaded.
    from aligngpt.web.page import serve  # isort: skip
    from aligngpt.inference.engine import Engine

    # Visitors need not see the folders of this machine.
    title = "/".join(Path(model).parts[-2:])
    engine = Engine.load(model, base=base, device=device, dtype=precision)
    for address in serve(engine, title, host=host, port=port, max_new_tokens=max_new_tokens):
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        if not is_loopback(host):
            say("note: everyone who reaches this address can ask; there is no password")
