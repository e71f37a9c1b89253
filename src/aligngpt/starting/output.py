"""The file that `aligngpt init` writes: whether it may be written."""

from pathlib import Path

from aligngpt.errors import AlignGPTError


class StartError(AlignGPTError):
    """An answer or a flag of `aligngpt init` cannot be used; the message says what to give instead."""


def check_can_write(out: Path, *, force: bool) -> None:
    """Check before anything is asked that the recipe may be written.

    Raises:
        StartError: the file exists and may not be replaced, or is a folder.
    """
    if out.is_dir():
        raise StartError(f"{out} is a folder; name a file with --out, such as {out / 'recipe.yaml'}")
    if out.exists() and not force:
        raise StartError(f"{out} exists already; name another file with --out, or replace it with --force")
