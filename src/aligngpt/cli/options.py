"""What several verbs share: options, and checks of arguments before anything that takes long to import."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import near_paths, written_locally

PROBLEMS_FOUND = 3
"""Exit code of a verb that checks something, if it found problems; errors of the check itself exit with 1."""

Base = Annotated[
    str | None,
    typer.Option(
        help="Base model, if MODEL is an adapter folder: folder or hub name.",
        show_default="the one that the adapter names",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="Precision of the model; auto is bfloat16 if it is faster on this device, else float32."),
]

WRITTEN = ("out", "target", "uids", "report", "replies")
"""Parameters of verbs that name a file or folder to write."""

_PATTERN = re.compile(r"[*?\[{]")


@dataclass
class Shown:
    """What a command shows, as set by the options before the verb.

    Attributes:
        traceback: show the traceback of every error, also of those that are the user's to mend.
    """

    traceback: bool = False


class Verb(TyperCommand):
    """A verb, which begins only if what it writes has a place on this machine.

    Raises:
        AlignGPTError: a parameter in `WRITTEN` is an address.
    """

    def invoke(self, ctx: Any) -> Any:
        """Check the parameters, then call the verb's function."""
        for name in WRITTEN:
            given = ctx.params.get(name)
            if given is not None and (trouble := written_locally(given)) is not None:
                raise AlignGPTError(trouble)
        return super().invoke(ctx)


def must_exist(path: Path, what: str, *, advice: str = "") -> None:
    """Refuse a path that does not exist; patterns such as `*.parquet` are left to their readers.

    Args:
        path: a file or folder given as an argument.
        what: what it stands for, for the message, as in `the questions`.
        advice: end of the message, what to do.

    Raises:
        AlignGPTError: there is nothing at `path`. Suggests similar names.
    """
    if path.exists() or _PATTERN.search(path.name):
        return
    near = near_paths(path)
    said = f"; did you mean {' or '.join(near)}?" if near else ""
    raise AlignGPTError(f"{what} {path} cannot be read: no such file or folder{said}{advice and f'; {advice}'}")
