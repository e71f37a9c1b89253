"""The output of finished stages: whether it is still there and whole, and whether the next stage may start from it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.model.tensor_bytes import tensor_bytes
from aligngpt.training.loop.checkpoints import newest_checkpoint
from aligngpt.training.recipe import Recipe, RecipeError, StageName
from aligngpt.training.setup.pretrained_parts import PRETRAINED_FILE
from aligngpt.training.stage import DESCRIPTIONS, fingerprint_of, result_folders, stage_folder, stage_result

START_FILE = "started_from"
"""In the folder of instruction tuning: a digest of the result of pre-training that it started from."""


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


def note_start(recipe: Recipe) -> None:
    """Note which result of pre-training an instruction tuning starts from, for `check_start`; not if it is resumed."""
    folder = stage_folder(recipe, "instruct")
    if newest_checkpoint(folder / "checkpoints") is None and (started_from := _pretrained_digest(recipe)) is not None:
        with atomic_write(folder / START_FILE) as file:
            file.write(started_from)


def check_start(recipe: Recipe) -> None:
    """Check that an instruction tuning that was begun or finished belongs to the result of pre-training that is there.

    Pre-training that is done again gives other weights if it is limited by time or runs on another machine.

    Raises:
        RecipeError: pre-training was done again since.
    """
    folder = stage_folder(recipe, "instruct")
    if stage_result(recipe, "instruct") is None and newest_checkpoint(folder / "checkpoints") is None:
        return
    noted, now = folder / START_FILE, _pretrained_digest(recipe)
    if now is not None and noted.is_file() and noted.read_text(encoding="utf-8") != now:
        raise RecipeError(
            f"{stage_folder(recipe, 'pretrain') / PRETRAINED_FILE} is not the one that instruction tuning in {folder} "
            f"started from: pre-training was done again. Restore the earlier file, or remove {folder} and run the same "
            "command to train the stage again"
        )


def _pretrained_digest(recipe: Recipe) -> str | None:
    """A SHA-256 of the run's own pre-training; None if it is gone, or instruction tuning does not start from it.

    Of its tensors, because a file of the same tensors may have its header's entries in another order.

    Raises:
        AlignGPTError: the file cannot be read.
    """
    path = stage_folder(recipe, "pretrain") / PRETRAINED_FILE
    if recipe.pretrain is None or recipe.instruct is None or recipe.instruct.pretrained is not None:
        return None
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    try:
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor_bytes(tensor))
    except (OSError, SafetensorError) as error:
        raise AlignGPTError(f"{path} cannot be read: {error}; run the stage that writes it again") from error
    return digest.hexdigest()


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
    folders = result_folders(recipe)
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
    for index in folder.glob("[!.]*.safetensors.index.json"):
        try:
            return sorted(
                {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            )
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            # Not a weight file, so that it is reported as damaged.
            return [index]
    return sorted(folder.glob("[!.]*.safetensors")) or [folder / "model.safetensors"]


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
