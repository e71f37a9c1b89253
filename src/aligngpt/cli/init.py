"""`aligngpt init`: a recipe for one's own data, that fits the machine."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from aligngpt.cli.numbers import finite
from aligngpt.cli.options import image_root_option, must_exist
from aligngpt.errors import AlignGPTError
from aligngpt.progress import say


def path(text: str) -> Path:
    """The path in a text; of an empty one, which an empty shell variable leaves, `Path` makes the working directory.

    Raises:
        AlignGPTError: the text is empty.
    """
    if not text.strip():
        raise AlignGPTError("the data '' cannot be read: the path is empty; give a file of captions or questions")
    return Path(text)


def init(
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=path,
            help="Files of captions and of questions; which a file holds is detected.",
            show_default="asked for",
        ),
    ] = None,
    captions: Annotated[Path | None, typer.Option(parser=path, help="Image-caption pairs, for stage 1.")] = None,
    questions: Annotated[Path | None, typer.Option(parser=path, help="Questions with answers, for stage 2.")] = None,
    image_root: Annotated[Path | None, image_root_option("looked for near each file")] = None,
    vision_tower: Annotated[str | None, typer.Option(help="Vision tower: folder or hub name.")] = None,
    language_model: Annotated[str | None, typer.Option(help="Language model: folder or hub name.")] = None,
    vision_tower_like: Annotated[
        str | None, typer.Option(help="Listed tower of its size or larger, if its sizes are unknown.")
    ] = None,
    language_model_like: Annotated[
        str | None, typer.Option(help="Listed language model of its size or larger, if its sizes are unknown.")
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda", "mps"] | None, typer.Option(help="Device to plan for.", show_default="this machine's")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(callback=finite, help="Memory of the device, in GB.", show_default="this machine's")
    ] = None,
    run: Annotated[str, typer.Option(help="Folder of the run, for the recipe.")] = "runs/mine",
    out: Annotated[Path, typer.Option(help="Recipe to write.")] = Path("recipe.yaml"),
    yes: Annotated[bool, typer.Option("--yes", help="Take the defaults instead of asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
) -> None:
    """Write a recipe for your data that fits your machine, and print the commands to run next.

    Asks for what is not given, if the input is a terminal. Downloads nothing.
    """
    from aligngpt.starting.output import check_can_write, check_run

    check_run(run)
    check_can_write(out, force=force)
    for one in (*(data or ()), captions, questions):
        if one is not None:
            must_exist(one, "the data", or_address=True)

    from aligngpt.starting.asking import Asker
    from aligngpt.starting.making import Given, make_new_recipe

    asker = Asker(interactive=sys.stdin.isatty(), defaults=yes)
    given = Given(
        tuple(data or ()),
        captions,
        questions,
        image_root,
        vision_tower,
        language_model,
        vision_tower_like,
        language_model_like,
        device,
        memory,
        run,
    )
    made = make_new_recipe(given, asker, out, force=force)
    for note in made.notes:
        say(f"note: {note}")
    for stage, held in made.fitted.memory.items():
        print(f"{stage}: about {held / 1e9:.1f} GB on the device")
    print(f"recipe: {out}")
    print("next:")
    print("\n".join(f"  {command}" for command in made.commands))
