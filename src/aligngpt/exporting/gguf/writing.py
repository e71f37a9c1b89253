"""Writes a GGUF file tensor by tensor, so that a model never stands twice in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from aligngpt.exporting.loading import ExportError
from aligngpt.progress import Meter

GGUFType = Literal["f32", "f16", "bf16", "q8_0"]

FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}

_ALWAYS_F32 = ("v.patch_embd.", "v.position_embd.", "rope_freqs.")


def stored_as(name: str, shape: Sequence[int], wanted: GGUFType) -> Any:
    """The `gguf.GGMLQuantizationType` of a tensor: vectors and embeddings of patches stay in F32.

    Matrices whose rows do not divide into blocks of 32 values are stored as F16 instead of Q8_0.
    """
    from gguf import GGMLQuantizationType as Stored

    if len(shape) == 1 or name.startswith(_ALWAYS_F32):
        return Stored.F32
    if wanted == "q8_0" and shape[-1] % 32:
        return Stored.F16
    return Stored[wanted.upper()]


def write_gguf(
    path: Path,
    architecture: str,
    fields: Callable[[Any], None],
    tensors: Sequence[tuple[str, Tensor]],
    wanted: GGUFType,
) -> None:
    """Write a file.

    Args:
        path: the file to write; not atomic, so give one in a folder from `atomic_folder`.
        architecture: llama.cpp's name of the network.
        fields: adds the metadata to a `gguf.GGUFWriter`.
        tensors: names and values.
        wanted: how matrices are stored.

    Raises:
        ExportError: a value does not fit into the type.
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    try:
        fields(writer)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[wanted]])
        if wanted == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for name, tensor in tensors:
            kind = stored_as(name, tensor.shape, wanted)
            shape = gguf.quant_shape_to_byte_shape(tuple(tensor.shape), kind)
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with Meter(path.name, len(tensors), unit="tensors") as meter:
            for name, tensor in tensors:
                writer.write_tensor_data(encoded(name, tensor, stored_as(name, tensor.shape, wanted)))
                meter.advance()
    finally:
        writer.close()


def encoded(name: str, tensor: Tensor, kind: Any) -> Any:
    """The bytes of a tensor as an array of the given `gguf.GGMLQuantizationType`.

    Raises:
        ExportError: a finite value becomes infinite.
    """
    import gguf

    values = tensor.detach().cpu().float().contiguous().numpy()
    # Blocks of Q8_0 have a half-precision scale: the largest value over 127.
    limit = {"F16": 65504.0, "Q8_0": 65504.0 * 127}.get(kind.name)
    if not np.isfinite(values).all() or (limit is not None and np.abs(values).max() > limit):
        raise ExportError(f"{name} has values that {kind.name} cannot hold; use --gguf-type bf16 or f32")
    return np.ascontiguousarray(gguf.quantize(values, kind))
