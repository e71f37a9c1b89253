"""The output of finished stages: whether it is still there and whole, and whether the next stage may start from it."""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from aligngpt.errors import AlignGPTError
from aligngpt.training.recipe import Recipe, RecipeError, StageName
from aligngpt.training.setup.freezing import PRETRAINED_FILE
from aligngpt.training.stage import DESCRIPTIONS, base_folder, fingerprint_of, model_folder, stage_folder, stage_result


def check_output(recipe: Recipe, name: StageName) -> None:
    """Check that the output of a finished stage exists and that none of its weight files is cut short.

    Raises:
        AlignGPTError: a file is missing or damaged.
    """
    for problem in _problems(recipe, name):
        raise AlignGPTError(
            f"{DESCRIPTIONS[name]} is finished, but {problem}; restore it, or remove "
            f"{stage_folder(recipe, name)} and run the same command to train the stage again"
        )


def check_pretrained(recipe: Recipe) -> None:
    """Check that instruction tuning can start from the result of pre-training in the output folder.

    Raises:
        RecipeError: pre-training is not finished, or was done with other settings or data.
        AlignGPTError: its output is missing or damaged.
    """
    assert recipe.pretrain is not None
    folder = stage_folder(recipe, "pretrain")
    done = stage_result(recipe, "pretrain")
    if done is not None:
        if done.fingerprint != fingerprint_of(recipe, "pretrain", recipe.pretrain):
            raise other_settings(recipe, "pretrain")
        check_output(recipe, "pretrain")
    elif not (folder / PRETRAINED_FILE).is_file() or (folder / "fingerprint").is_file():
        # A file without a run beside it was put there by the user.
        raise RecipeError(
            f"instruction tuning starts from the result of pre-training, but pre-training in {folder} is not finished; "
            "run `aligngpt train` with `--stage pretrain` first, or without `--stage`"
        )


def without_pretraining(recipe: Recipe) -> str | None:
    """A warning if instruction tuning starts from a projector and levels that nothing has trained; else None.

    Raises:
        RecipeError: the output folder holds a pre-training that would be ignored.
    """
    if recipe.pretrain is not None or recipe.instruct is None or recipe.instruct.pretrained is not None:
        return None
    there = stage_folder(recipe, "pretrain") / PRETRAINED_FILE
    if there.is_file():
        raise RecipeError(
            f"the recipe has no pre-training, so that the one in {there} would be ignored; set instruct.pretrained to "
            "that file, restore the section pretrain, or choose another output"
        )
    fresh = "the projector starts" if recipe.model.alignment == "none" else "projector and levels start"
    stays = (
        ""
        if recipe.model.alignment == "none" or "level_table" in recipe.instruct.train
        else (", and the levels stay so, because level_table does not train")
    )
    return f"the recipe has no pre-training and no instruct.pretrained: {fresh} as drawn at random{stays}"


def other_settings(recipe: Recipe, name: StageName) -> RecipeError:
    """The error for a finished stage of another recipe."""
    return RecipeError(
        f"{stage_folder(recipe, name)} holds a finished stage with other settings or data; choose another "
        "output or remove that folder to train again"
    )


def _problems(recipe: Recipe, name: StageName) -> Iterator[str]:
    if name == "pretrain":
        yield from _damage([stage_folder(recipe, name) / PRETRAINED_FILE])
        return
    assert recipe.instruct is not None
    lora = recipe.instruct.lora
    folders = [model_folder(recipe)]
    if lora is not None and not lora.merge:
        folders.append(base_folder(recipe))
    for folder in folders:
        if not folder.is_dir():
            yield f"{folder} is missing"
            continue
        settings = folder / ("adapter_config.json" if folder == folders[0] and len(folders) == 2 else "config.json")
        if not settings.is_file():
            yield f"{settings} is missing"
        yield from _damage(_weight_files(folder))


def _weight_files(folder: Path) -> list[Path]:
    """The weight files that a folder has, or that its index names."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            return sorted(
                {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            )
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            # Not a weight file, so that it is reported as damaged.
            return [index]
    return sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"]


def _damage(files: list[Path]) -> Iterator[str]:
    for path in files:
        if not path.is_file():
            yield f"{path} is missing"
            continue
        try:
            # Opening reads the header and compares the file's size with it.
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            yield f"{path} is damaged ({error})"
