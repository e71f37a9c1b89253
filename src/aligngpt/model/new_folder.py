"""The check of a folder that a model is to be written to: what is there would be replaced as a whole."""

from pathlib import Path

from aligngpt.errors import AlignGPTError


def check_new_folder(out: Path, error: type[AlignGPTError]) -> None:
    """Refuse an output folder that holds anything, such as the model that is read.

    Raises:
        AlignGPTError: of the class `error`: `out` is a file or a folder that is not empty.
    """
    if out.is_dir():
        if any(out.iterdir()):
            raise error(f"{out} is not empty, and its files would be lost; choose another folder or remove it first")
    elif out.exists():
        raise error(f"{out} is a file; choose another folder")
