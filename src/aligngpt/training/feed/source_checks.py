"""Checks of a recipe's data files before anything is loaded, by `train` and by its dry run."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from aligngpt.data.records.sample import Sample
from aligngpt.data.samples.reading import mostly_questions, readable_samples
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.finding import archive_at, is_pattern
from aligngpt.data.sources.levels_file import levels_file
from aligngpt.data.sources.remote import RemotePath, located
from aligngpt.hub_names import near_paths
from aligngpt.training.recipe import Recipe, RecipeError, SourceRecipe, StageName
from aligngpt.training.stage import pretrained_file

LOOKED_AT = 100
"""Number of leading samples with an image by which captions and questions are told apart."""


def needs_level(recipe: Recipe, name: StageName) -> bool:
    """Whether the samples of a stage need a level if they have an image."""
    return name == "pretrain" and recipe.model.alignment != "none"


def is_there(data: Path) -> bool:
    """Whether a source exists; files missing from a pattern are reported when it is read."""
    data = located(data)
    return data.exists() or (is_pattern(data) and data.parent.is_dir())


def source_problems(recipe: Recipe, stages: Iterable[StageName]) -> list[str]:
    """Why training would refuse the data of these stages, one sentence per problem; empty if nothing was found.

    Found are missing files and image roots, pre-training data without levels, and files of two stages that were
    swapped. Records are read only until the first level; images are not opened.
    """
    stages = list(stages)
    problems = []
    for name in stages:
        if (stage := recipe.stage(name)) is None:
            continue
        problems += [found for one in stage.sources for found in _missing(f"{name}.data", one)]
        if stage.pretrained is not None:
            try:
                pretrained_file(stage.pretrained)
            except RecipeError as error:
                problems.append(f"{name}.{error}")
        if stage.validation is not None:
            root = stage.image_root
            problems += [
                found
                for one in stage.validation.sources(root)
                # A missing root of the stage has been reported already.
                for found in _missing(f"{name}.validation.data", one, reported=root)
            ]
    if "pretrain" in stages and recipe.pretrain is not None and needs_level(recipe, "pretrain"):
        for source in recipe.pretrain.sources:
            if is_there(Path(source.data)):
                try:
                    problems += _without_levels(recipe, source)
                except SourceError as error:
                    problems.append(str(error))
    return problems


def swapped_warning(recipe: Recipe) -> str | None:
    """A sentence if the data files of the two stages look swapped; None if they do not or cannot be read.

    For recipes that `source_problems` accepts: they are valid, but probably not what was meant.
    """
    pretrain, instruct = recipe.pretrain, recipe.instruct
    if pretrain is None or instruct is None:
        return None
    try:
        both = [_head([Path(source.data) for source in stage.sources]) for stage in (pretrain, instruct)]
    except (SourceError, OSError):
        return None
    if not all(both) or not mostly_questions(both[0]) or mostly_questions(both[1]):
        return None
    return (
        f"pretrain.data ({_names(pretrain.sources)}) looks like questions and instruct.data "
        f"({_names(instruct.sources)}) like captions; if they are swapped, exchange them in the recipe"
    )


def _missing(field: str, source: SourceRecipe, *, reported: str | None = None) -> Iterator[str]:
    data = located(source.data)
    if not is_there(data):
        near = [] if isinstance(data, RemotePath) else near_paths(data)
        said = f"did you mean {' or '.join(near)}?" if near else "correct the path in the recipe"
        yield f"{field}: {data} does not exist; {said}"
    if source.levels is not None and not Path(source.levels).is_file():
        near = near_paths(Path(source.levels))
        said = f"did you mean {' or '.join(near)}?" if near else "correct the path in the recipe"
        yield f"{field}: the levels {source.levels} do not exist; {said}"
    root = source.image_root
    if root is not None and root != reported and not located(root).is_dir():
        yield f"{field}: the image root {root} is not a folder"


def _without_levels(recipe: Recipe, source: SourceRecipe) -> Iterator[str]:
    """The problem of a pre-training source in which no sample has a level."""
    if source.levels is not None:
        return
    path = Path(source.data)
    pictured = False
    for sample in readable_samples(path):
        if sample.images:
            pictured = True
            if sample.level is not None:
                return
    if not pictured:
        return
    instruct = [] if recipe.instruct is None else [Path(source.data) for source in recipe.instruct.sources]
    if _look_swapped(path, [one for one in instruct if is_there(one)]):
        assert recipe.instruct is not None
        yield (
            f"pretrain.data ({path}) and instruct.data ({_names(recipe.instruct.sources)}) look swapped: the former "
            "has no levels and the latter looks like captions; exchange them in the recipe"
        )
        return
    like = " and looks like questions, not captions" if mostly_questions(_head([path])) else ""
    is_file = archive_at(path) is None
    path = located(path)
    root = [] if source.image_root is None else ["--image-root", str(located(source.image_root))]
    score = shlex.join(["aligngpt", "score", str(path), *root, "--out", "SCORES"])
    levels = shlex.join(["aligngpt", "levels", "SCORES", "--source", str(path), "--out", str(levels_file(path))])
    then = (
        f"then `{levels}`, and name that file in pretrain.data"
        if is_file
        else "then `aligngpt levels SCORES --out levels.parquet`, and name that table in pretrain.data: "
        f"[{{data: {path}, levels: levels.parquet}}]"
    )
    yield f"{path} (pretrain.data) has no levels{like}: run `{score} …`, {then}"


def _look_swapped(pretrain: Path, instruct: Sequence[Path]) -> bool:
    try:
        there = _head(instruct)
    except SourceError:
        return False
    if any(sample.level is not None for sample in there):
        return mostly_questions(_head([pretrain])) or not mostly_questions(there)
    return bool(there) and mostly_questions(_head([pretrain])) and not mostly_questions(there)


def _head(paths: Iterable[Path]) -> list[Sample]:
    """The leading samples with an image of the files together."""
    every = (sample for path in paths for sample in readable_samples(path) if sample.images)
    return list(islice(every, LOOKED_AT))


def _names(sources: Sequence[SourceRecipe]) -> str:
    return ", ".join(source.data for source in sources)
