"""The file that `aligngpt init` writes: whether it may be written."""

from pathlib import Path

from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import output_trouble


class StartError(AlignGPTError):
    """An answer or a flag of `aligngpt init` cannot be used; the message says what to give instead."""


def check_run(run: str) -> None:
    """Check before anything is asked that the folder of the run has a name.

    Raises:
        StartError: it is empty, or nothing can be written there, see `output_trouble`.
    """
    if not run.strip():
        raise StartError("the folder of the run has no name; give one with --run, such as runs/mine, or omit --run")
    if (trouble := output_trouble(run)) is not None:
        raise StartError(trouble)


def check_can_write(out: Path, *, force: bool) -> None:
    """Check before anything is asked that the recipe may be written.

    Raises:
        StartError: the file exists and may not be replaced, or is a folder.
    """
    if out.is_dir():
        raise StartError(f"{out} is a folder; name a file with --out, such as {out / 'recipe.yaml'}")
    if out.exists() and not force:
        raise StartError(f"{out} exists already; name another file with --out, or replace it with --force")
