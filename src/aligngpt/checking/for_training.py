"""Check data the way a model, or a stage of a recipe, would read it."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, AutoProcessor

from aligngpt.checking.files import Reading, check_files
from aligngpt.checking.result import FileCheck
from aligngpt.data.records.ratings import Lowest
from aligngpt.data.sources.remote import located
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.model.backbones import LOADING_ERRORS
from aligngpt.model.own_code import refuse_own_code
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.templates import NAMED_TEMPLATES
from aligngpt.training.recipe import Recipe, RecipeError, StageName
from aligngpt.training.setup.loading import load_model


def check_for_model(
    paths: Sequence[Path], model: str, *, image_root: Path | None = None, levels: int | None = None, full: bool = False
) -> list[FileCheck]:
    """Run `check_files` with tokens counted by the processor of a model.

    Args:
        paths, image_root, levels, full: see `check_files`.
        model: folder or hub name; its weights are not read.

    Raises:
        AlignGPTError: the model has no AlignGPT processor, brings code of its own, or the image root is not a folder.
    """
    local_or_hub(model, "the processor of", AlignGPTError)
    refuse_own_code(model, "the model", AlignGPTError)
    try:
        if not Path(model).is_dir():
            # Fail early: for a name unknown to the hub, AutoProcessor would request its many files one by one.
            AutoConfig.from_pretrained(model, trust_remote_code=False)
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise AlignGPTError(
            f"the processor of {model} cannot be loaded: {str(error).rstrip('.')}. Give a model folder or a hub name"
        ) from error
    if not isinstance(processor, AlignGPTProcessor):
        raise AlignGPTError(f"{model} has a {type(processor).__name__}, expected the processor of an AlignGPT model")
    return check_files(paths, image_root=image_root, levels=levels, reading=Reading(processor), full=full)


def check_for_recipe(
    paths: Sequence[Path],
    recipe: Recipe,
    name: StageName,
    *,
    image_root: Path | None = None,
    levels: int | None = None,
    full: bool = False,
) -> list[FileCheck]:
    """Run `check_files` with the settings of a recipe's stage: levels, lowest ratings, chat template, maximum length.

    Args:
        paths, full: see `check_files`.
        recipe: names the backbones; their weights are not read.
        name: name of the stage.
        image_root: when None, that of the recipe's source with the same path, else that of the stage; so too for the
            lowest ratings.
        levels: the recipe's number of levels when None.

    Raises:
        RecipeError: the recipe has no such stage.
        AlignGPTError: a backbone's configuration or tokenizer cannot be loaded, or the image root is not a folder.
    """
    stage = recipe.stage(name)
    if stage is None:
        raise RecipeError(f"the recipe has no section {name}; choose the other stage")
    _, processor = load_model(recipe, name, weights=False)
    template = NAMED_TEMPLATES[stage.chat_template] if stage.chat_template else None
    in_levels = name == "pretrain" and recipe.model.alignment != "none"
    # The results name each file as it is opened, which for an address differs from what was given.
    paths = [located(path) for path in paths]
    sources = {located(source.data).absolute(): source for source in stage.sources}
    # Files with the same image root are checked together: they often use the same images.
    by_root: dict[Path | None, list[Path]] = {}
    lowest: dict[Path, Lowest] = {}
    tables = {path: Path(source.levels) for path in paths if (source := sources.get(path.absolute())) and source.levels}
    for path in paths:
        source = sources.get(path.absolute())
        named = stage.image_root if source is None else source.image_root
        root = image_root if image_root is not None else Path(named) if named is not None else None
        by_root.setdefault(root, []).append(path)
        own = None if source is None else source.min_ratings
        lowest[path] = Lowest((stage.min_ratings or {}) if own is None else own, needed=own is not None)
    checks = {
        check.path: check
        for root, files in by_root.items()
        for check in check_files(
            files,
            image_root=root,
            levels=levels or (recipe.model.num_levels if in_levels else None),
            needs_level=in_levels,
            reading=Reading(processor, template, stage.max_length),
            lowest=lowest,
            tables=tables,
            full=full,
        )
    }
    return [checks[path] for path in paths]
