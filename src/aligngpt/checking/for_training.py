"""Looking at data as a model, or a stage of a recipe, would read it."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, AutoProcessor

from aligngpt.checking.files import Reading, check_files
from aligngpt.checking.result import FileCheck
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.templates import NAMED_TEMPLATES
from aligngpt.training.recipe import Recipe, RecipeError, StageName
from aligngpt.training.setup.loading import load_model


def check_for_model(
    paths: Sequence[Path], model: str, *, image_root: Path | None = None, levels: int | None = None, full: bool = False
) -> list[FileCheck]:
    """As `check_files`, with tokens counted by the processor of a model.

    Args:
        paths, image_root, levels, full: see `check_files`.
        model: folder or hub name; its weights are not read.

    Raises:
        AlignGPTError: there is no processor of an AlignGPT, or the image root is not a folder.
    """
    local_or_hub(model, "the processor of", AlignGPTError)
    try:
        if not Path(model).is_dir():
            # Where the hub has no such model, the many files of a processor would be asked for one after the other.
            AutoConfig.from_pretrained(model)
        processor = AutoProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
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
    """As `check_files`, with what a stage of a recipe asks of its data: levels, chat template, longest sample.

    Args:
        paths, full: see `check_files`.
        recipe: names the backbones, whose weights are not read.
        name: of the stage.
        image_root: that of the stage, or of the source that a file is in the recipe, when None.
        levels: those of the recipe when None.

    Raises:
        RecipeError: the recipe has no such stage.
        AlignGPTError: a backbone's configuration or tokenizer cannot be loaded, or the image root is not a folder.
    """
    stage = recipe.stage(name)
    if stage is None:
        raise RecipeError(f"the recipe has no section {name}; name the other stage")
    _, processor = load_model(recipe, name, weights=False)
    template = NAMED_TEMPLATES[stage.chat_template] if stage.chat_template else None
    in_levels = name == "pretrain" and recipe.model.alignment != "none"
    # Files that start from the same folder are looked at together: they are often about the same pictures.
    roots = {Path(source.data): source.image_root for source in stage.sources}
    by_root: dict[Path | None, list[Path]] = {}
    for path in paths:
        named = roots.get(path, stage.image_root)
        root = image_root if image_root is not None else Path(named) if named is not None else None
        by_root.setdefault(root, []).append(path)
    checks = {
        check.path: check
        for root, files in by_root.items()
        for check in check_files(
            files,
            image_root=root,
            levels=levels or (recipe.model.num_levels if in_levels else None),
            needs_level=in_levels,
            reading=Reading(processor, template, stage.max_length),
            full=full,
        )
    }
    return [checks[path] for path in paths]
