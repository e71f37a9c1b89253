"""The small language model of the scenes, which comes with the package."""

from pathlib import Path

FOLDER = Path("studies") / "levels" / "language-model"


def scenes_language_model() -> Path:
    """The folder of a Llama of 2.2M parameters that has read descriptions of scenes, but has seen no picture.

    `aligngpt.study.language_model` makes such models; how this one was made is in `studies/levels/README.md`.
    """
    package = Path(__file__).parents[2]
    # A checkout has it next to `src`, an installed wheel inside the package.
    checkout = package.parents[1] / FOLDER
    return checkout if checkout.is_dir() else package / FOLDER
