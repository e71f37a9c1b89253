"""What several verbs share: options, and checks of arguments before anything that takes long to import."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from aligngpt.cli.numbers import finite
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import near_paths, output_trouble, written_locally

PROBLEMS_FOUND = 3
"""Exit code of a verb that checks something, if it found problems; errors of the check itself exit with 1."""

CAPTION_COLUMNS = "caption, text, TEXT or title"
IMAGE_COLUMNS = "image, file_name, filepath, path, jpg, png or webp"
ID_COLUMNS = "id, uid or key"
"""The default names of fields, as in `aligngpt.data.sources.fields`, which takes longer to import."""

Model = Annotated[str, typer.Argument(help="Model: folder, hub name or adapter folder.")]
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
CaptionColumn = Annotated[str | None, typer.Option(help="Field with the caption.", show_default=CAPTION_COLUMNS)]
ImageColumn = Annotated[str | None, typer.Option(help="Field with the image.", show_default=IMAGE_COLUMNS)]
IdColumn = Annotated[str | None, typer.Option(help="Field with the id.", show_default=ID_COLUMNS)]
MaxRejectShare = Annotated[
    float, typer.Option(min=0, max=1, callback=finite, help="Largest share of the records that may be rejected.")
]

WRITTEN = ("out", "target", "uids", "report", "replies")
"""Parameters of verbs that name a file or folder to write."""

_PATTERN = re.compile(r"[*?\[{]")
_FILE_ADDRESS = re.compile(r"^(file|local):/{1,3}", re.IGNORECASE)


def image_root_option(default: str) -> Any:
    """The option of a folder that image paths are relative to; `default` says in words which it is if not given."""
    return typer.Option(help="Folder that image paths are relative to.", show_default=default)


@dataclass
class Shown:
    """What a command shows, as set by the options before the verb.

    Attributes:
        traceback: show the traceback of every error, also of those that the user can fix.
    """

    traceback: bool = False


class Verb(TyperCommand):
    """A verb, which begins only if what it writes has a place on this machine and is not one of the files it reads.

    Raises:
        AlignGPTError: a parameter in `WRITTEN` is an address, or a file that another parameter names.
    """

    def invoke(self, ctx: Any) -> Any:
        """Check the parameters, then call the verb's function."""
        for name in WRITTEN:
            given = ctx.params.get(name)
            if given is None:
                continue
            if (trouble := output_trouble(given)) is not None:
                raise AlignGPTError(trouble)
            if Path(given).is_file() and any(one.samefile(given) for one in _read_by(ctx)):
                raise AlignGPTError(f"{given}, which would be written, is a file that is read; name another to write")
        return super().invoke(ctx)


def _read_by(ctx: Any) -> Iterator[Path]:
    """The existing files and folders that the parameters name, except those that are written."""
    for name, given in ctx.params.items():
        for one in given if isinstance(given, list | tuple) else [given]:
            if name in WRITTEN or not isinstance(one, str | Path):
                continue
            # `Path.exists` fails for a text that is too long for a name.
            if os.path.exists(path := _FILE_ADDRESS.sub("/", str(one))):
                yield Path(path)


def must_exist(path: Path, what: str, *, advice: str = "", or_address: bool = False) -> None:
    """Refuse a path that does not exist; patterns such as `*.parquet` are left to their readers.

    Args:
        path: a file or folder given as an argument.
        what: what it stands for, for the message, as in `the questions`.
        advice: end of the message, what to do.
        or_address: whether it may also be an address, such as `s3://bucket/questions.json`, see `located`.

    Raises:
        AlignGPTError: there is nothing at `path`, or it is an address and may not be one. Suggests similar names.
    """
    if written_locally(path) is not None:
        if not or_address:
            raise AlignGPTError(
                f"{what} cannot be read from an address; download it, and give its path on this machine"
            )
        from aligngpt.data.sources.remote import RemotePath, located

        path = located(path)
        if isinstance(path, RemotePath):
            if not (_PATTERN.search(path.name) or path.exists()):
                raise AlignGPTError(f"{what} {path} cannot be read: there is nothing at this address")
            return
    if path.exists() or _PATTERN.search(path.name):
        return
    near = near_paths(path)
    said = f"; did you mean {' or '.join(near)}?" if near else ""
    raise AlignGPTError(f"{what} {path} cannot be read: no such file or folder{said}{advice and f'; {advice}'}")
