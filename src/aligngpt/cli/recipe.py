"""`aligngpt recipe`: the recipes that come with the package."""

from pathlib import Path
from typing import Annotated

import typer

from aligngpt.errors import AlignGPTError


def recipe(
    name: Annotated[str | None, typer.Argument(help="Recipe to print.", show_default="list all recipes")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the recipe to this new file instead of printing it.")] = None,
) -> None:
    """List the recipes that come with the package, or print one, to be saved and edited.

    The printed recipe is complete: it does not need the other files of the package.
    """
    from aligngpt.files import atomic_write
    from aligngpt.training.shipped_recipes import recipe_text, shipped_recipes

    if name is None:
        if out is not None:
            raise typer.BadParameter("--out requires the name of a recipe")
        recipes = shipped_recipes()
        width = max(map(len, recipes))
        print("\n".join(f"{one:{width}}  {remark}" for one, remark in recipes.items()))
        return
    text = recipe_text(name)
    if out is None:
        print(text, end="")
        return
    if out.is_dir():
        raise AlignGPTError(f"{out} is a folder; give the name of a new file, such as {out / (name + '.yaml')}")
    if out.exists():
        raise AlignGPTError(f"{out} exists already and is not overwritten; give another name, or remove it first")
    with atomic_write(out) as file:
        file.write(text)
    print(f"recipe: {out}")
