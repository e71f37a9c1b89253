"""The small file that pre-training writes: projector and level table."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.model.foreign.weight_files import shard_files
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.training.recipe import Part
from aligngpt.training.setup.freezing import LEVEL_TABLE, part_of

PRETRAINED_PARTS: tuple[Part, ...] = ("projector", "level_table")
PRETRAINED_FILE = "aligned.safetensors"


def is_pretrained(name: str) -> bool:
    """Whether pre-training writes a parameter of this name."""
    return part_of(name) in PRETRAINED_PARTS


def save_pretrained_parts(
    tensors: Mapping[str, torch.Tensor], folder: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the result of pre-training, projector and level table, to `folder/aligned.safetensors`.

    Args:
        tensors: those for which `is_pretrained` is true, by name.
        folder: of the stage.
        metadata: entries for the file's header.
    """
    exact = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(folder / PRETRAINED_FILE, "wb") as file:
        file.write(save(exact, metadata={"format": "pt", **(metadata or {})}))


def load_pretrained_parts(model: AlignGPTForConditionalGeneration, path: Path, *, without_levels: bool = False) -> None:
    """Load projector and level table from a file that `save_pretrained_parts` wrote, or from a model folder.

    The level table of a model folder is left out if this model has none.

    Args:
        model: to load into.
        path: of the file or folder.
        without_levels: whether a model folder may lack the level table, because another one is drawn.

    Raises:
        AlignGPTError: the file is missing, the folder has no level table for this model, or the tensors do not fit it.
    """
    expected = {name: tensor for name, tensor in model.named_parameters() if is_pretrained(name)}
    if path.is_dir():
        found = pretrained_parts_of(path)
        if LEVEL_TABLE not in expected:
            found.pop(LEVEL_TABLE, None)
        elif LEVEL_TABLE not in found and without_levels:
            del expected[LEVEL_TABLE]
        elif LEVEL_TABLE not in found:
            raise AlignGPTError(
                f"{path} has no level table, which model.alignment {model.config.alignment} needs; set model.alignment "
                "to none, or name weights that were trained with levels"
            )
        _fill(path, found, expected)
        return
    if not path.is_file():
        raise AlignGPTError(
            f"there is no {path}, which pre-training writes; run `aligngpt train` with `--stage pretrain` first"
        )
    load_tensors(path, expected)


def pretrained_parts_of(folder: Path) -> dict[str, torch.Tensor]:
    """Projector and, if there is one, level table of a model folder, by name; nothing else of its weights is read.

    Raises:
        AlignGPTError: its weight files are missing or cannot be read.
    """
    parts: dict[str, torch.Tensor] = {}
    for file in shard_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                parts |= {name: opened.get_tensor(name) for name in opened.keys() if is_pretrained(name)}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise AlignGPTError(f"{file} cannot be read: {error}; make or download its folder again") from error
    return parts


def load_tensors(path: Path, expected: dict[str, torch.Tensor] | dict[str, nn.Parameter]) -> None:
    """Fill the `expected` tensors from a safetensors file that has exactly these.

    Raises:
        AlignGPTError: the file cannot be read, or names or shapes differ.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AlignGPTError(f"{path} cannot be read: {error}; run the stage that writes it again") from error
    _fill(path, found, expected)


def _fill(
    path: Path, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor] | Mapping[str, nn.Parameter]
) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not part of this model" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        raise AlignGPTError(f"{path} does not fit the model: {'; '.join(sorted(problems)[:10])}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])
