"""`aligngpt chat`: a conversation in the terminal."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from aligngpt.cli.numbers import finite
from aligngpt.cli.options import Base, Device, Model, Precision


def chat(
    model: Model,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Images that go with the first question.")
    ] = None,
    base: Base = None,
    level: Annotated[int | None, typer.Option(min=1, help="Use alignment level 1…N instead of the gate's mix.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")] = 256,
    temperature: Annotated[
        float,
        typer.Option(
            min=0, callback=finite, help="Sample answers at this temperature; 0 takes the most likely tokens."
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Random seed, for a temperature above 0.")] = 0,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Chat with a model about images; /help in the chat lists its commands.

    Over a pipe, each line of stdin is a question or a command, and the exit code is 1 if one failed.
    """
    from aligngpt.chatting.starting import chat

    succeeded = chat(
        model,
        images or (),
        base=base,
        level=level,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        device=device,
        precision=precision,
    )
    # At a terminal, errors were seen when they happened.
    if not succeeded and not sys.stdin.isatty():
        raise typer.Exit(1)
