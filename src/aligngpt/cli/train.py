"""`aligngpt train`: the two stages of a recipe."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aligngpt.cli.options import PROBLEMS_FOUND
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub

if TYPE_CHECKING:
    from aligngpt.training.recipe import Recipe, StageName


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file: model, stages, output.")],
    stage: Annotated[
        Literal["pretrain", "instruct", "all"], typer.Option(help="Stage to run; finished stages are skipped.")
    ] = "all",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a recipe value, as in instruct.epochs=2; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only check the data files and print the trained parameters, the amount of data, the memory and the "
            "time needed; exit code 3 if training would be refused.",
        ),
    ] = False,
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare",
            help="Only read and check the data into the cache: for data that takes hours, before a launch takes GPUs.",
        ),
    ] = False,
) -> None:
    """Train a model in two stages: pre-training on captions with levels, then instruction tuning.

    The same command resumes an interrupted run.
    """
    from aligngpt.training.recipe import STAGES, load_recipe

    # The recipe is checked before anything that takes long to import.
    read = load_recipe(recipe, settings or [])
    local_or_hub(read.model.vision_tower, "the vision tower", AlignGPTError)
    local_or_hub(read.model.language_model, "the language model", AlignGPTError)

    from aligngpt.training.distributed.processes import is_main_process
    from aligngpt.training.dry_run import plan
    from aligngpt.training.feed.skipped import skipped_in
    from aligngpt.training.run import train
    from aligngpt.training.run_folder import RECIPE_FILE
    from aligngpt.training.stage import model_folder, stage_folder

    stages = STAGES if stage == "all" else (stage,)
    if dry_run:
        plans = plan(read, stages)
        print("\n\n".join(one.text() for one in plans))
        if any(one.problems for one in plans):
            raise typer.Exit(PROBLEMS_FOUND)
        return
    if prepare:
        _prepare(read, stages)
        return
    results = train(read, stages)
    if not is_main_process():
        return
    for result in results:
        print(f"{result.stage}: {result.steps} steps, loss {result.loss:.3f}, {result.seconds:.0f} s")
        if skipped := skipped_in(stage_folder(read, result.stage) / "rejects.jsonl"):
            print(f"{result.stage}: {skipped}")
    model = shlex.quote(str(model_folder(read)))
    if results[-1].stage == "instruct":
        out = shlex.quote(str(Path(read.output) / "evaluation" / "test"))
        root = None if read.instruct is None else read.instruct.image_root
        images = "" if root is None else f" --image-root {shlex.quote(root)}"
        print(
            f"model: {model}\n"
            f'ask: aligngpt ask {model} IMAGE "QUESTION" --show-alignment\n'
            f"measure: aligngpt evaluate {model} QUESTIONS.json{images} --out {out}\n"
            f"then: aligngpt report {shlex.quote(read.output)}"
        )
    elif read.instruct is not None:
        recipe_of_run = shlex.quote(str(Path(read.output) / RECIPE_FILE))
        print(f"next: aligngpt train {recipe_of_run} --stage instruct")


def _prepare(recipe: "Recipe", stages: Sequence["StageName"]) -> None:
    from aligngpt.training.feed.datasets import prepare_data
    from aligngpt.training.feed.source_checks import source_problems

    wanted = [name for name in stages if recipe.stage(name) is not None]
    if problems := source_problems(recipe, wanted):
        raise AlignGPTError("; ".join(problems))
    for name in wanted:
        print(f"{name}: {prepare_data(recipe, name):,} samples are prepared")
