"""Weight files, read and written one file at a time: however large a model, only one of its files is in memory."""

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aligngpt.errors import AlignGPTError

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


class ShardError(AlignGPTError):
    """Weight files are missing, damaged, or contain more than weights."""


def shard_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, in order: safetensors if there are any, else `.bin`.

    Raises:
        ShardError: there are none, or one named in the index is missing.
    """
    for name in (SAFETENSORS, PICKLED):
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ShardError(f"{index} is damaged: {error}; download it again") from error
            missing = [file for file in named if not (folder / file).is_file()]
            if missing:
                raise ShardError(f"{folder} lacks {', '.join(missing)}, which {index.name} names; download it again")
            return [folder / file for file in named]
        if (folder / name).is_file():
            return [folder / name]
    raise ShardError(f"{folder} contains no weights: expected {SAFETENSORS}, {PICKLED}, or an index of such files")


def has_shards(folder: Path) -> bool:
    """Whether a model folder contains weight files or an index of them."""
    return any(
        (folder / name).is_file() or (folder / f"{name}.index.json").is_file() for name in (SAFETENSORS, PICKLED)
    )


def read_shard(file: Path) -> Mapping[str, Tensor]:
    """The tensors of one file. A `.bin` is memory-mapped and may contain only tensors; no code in it is run.

    Raises:
        ShardError: it cannot be read, or contains anything but tensors.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        content = _unpickle(file)
    except ShardError:
        raise
    except pickle.UnpicklingError as error:
        raise ShardError(
            f"{file} is refused: it is damaged, or contains more than tensors and could run code"
        ) from error
    # A truncated file makes torch raise nearly anything.
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        raise ShardError(f"{file} cannot be read: {first_line}; download it again") from error
    strange = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise ShardError(f"{file} contains entries that are not tensors: {', '.join(map(str, strange[:5]))}")
    return content


def read_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the given files, by name; only the headers of safetensors files are read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt") as opened:
                    held = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise ShardError(f"{file} cannot be read: {error}; download it again") from error
        else:
            held = {name: tuple(tensor.shape) for name, tensor in read_shard(file).items()}
        if twice := held.keys() & shapes.keys():
            raise ShardError(f"{file} contains {', '.join(sorted(twice)[:5])}, which another file contains too")
        shapes |= held
    return shapes


def write_shards(folder: Path, shards: Iterator[Mapping[str, Tensor]], count: int) -> None:
    """Write tensors to safetensors files, one per shard, and their index if there are several.

    Args:
        folder: the output folder; it must exist.
        shards: tensors by name; each is requested once the previous one is on disk.
        count: number of shards.
    """
    weight_map: dict[str, str] = {}
    size = 0
    for number, tensors in enumerate(shards, start=1):
        name = SAFETENSORS if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        # Contiguous copies where needed: a checkpoint may hold views of one larger tensor.
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(whole, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if count > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / f"{SAFETENSORS}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _unpickle(file: Path) -> Mapping[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        # Files from torch before 1.6 are not zip archives and cannot be memory-mapped.
        if "mmap" not in str(error):
            raise
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise ShardError(f"{file} contains a {type(content).__name__}, expected tensors by name")
    return content
