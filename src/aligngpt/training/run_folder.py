"""The folder of a run: its recipe, and the check that the trained model replaces nothing that no run wrote."""

from pathlib import Path

import yaml

from aligngpt.files import atomic_write
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.stage import result_folders, stage_result

RECIPE_FILE = "recipe.yaml"
"""File in the run folder with the recipe as trained."""

_HEADER = "# The recipe of this run; relative paths start from the folder that the command ran in.\n"


def save_recipe(recipe: Recipe) -> None:
    """Write the recipe with all defaults and overrides filled in, so that `train` can read it, into the run folder."""
    with atomic_write(Path(recipe.output) / RECIPE_FILE) as file:
        file.write(_HEADER)
        yaml.safe_dump(recipe.model_dump(mode="json"), file, sort_keys=False, allow_unicode=True)


def check_run_folder(recipe: Recipe) -> None:
    """Check that unfinished instruction tuning will replace no backbone, and no model that does not come from a run.

    Raises:
        RecipeError: it would.
    """
    if recipe.instruct is None or stage_result(recipe, "instruct") is not None:
        return
    for folder in result_folders(recipe):
        for backbone in (Path(recipe.model.vision_tower), Path(recipe.model.language_model)):
            if backbone.exists() and backbone.resolve().is_relative_to(folder.resolve()):
                raise RecipeError(
                    f"the result of instruction tuning goes to {folder}, where it would replace the backbone "
                    f"{backbone}; choose another output"
                )
        if folder.is_dir() and any(folder.iterdir()) and not _is_of_a_run(Path(recipe.output)):
            raise RecipeError(
                f"the result of instruction tuning goes to {folder}, but that folder is not of a run (there is no "
                f"{RECIPE_FILE} of one beside it) and its files would be lost; choose another output"
            )


def _is_of_a_run(folder: Path) -> bool:
    path = folder / RECIPE_FILE
    return path.is_file() and path.read_bytes().startswith(_HEADER.rstrip().encode())
