"""Converting models that others saved, weight by weight and shard by shard, into folders that we read."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from aligngpt.files import atomic_folder
from aligngpt.model.assembling import PUBLISHED_GATE_GRID, assemble, build_processor, end_tokens, fresh_alignment
from aligngpt.model.backbones import BackboneError, VisionTower, load_tokenizer, load_vision_tower, new_rows
from aligngpt.model.card import write_card
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.layouts import BY_TOKEN, EMBEDDINGS, HEAD, TABLE, Layout, LayoutError, OriginalLayout, layout_of
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import ALIGN_TOKEN, IMAGE_TOKEN, AlignGPTProcessor
from aligngpt.model.shards import read_shapes, read_shard, shard_files, write_shards
from aligngpt.model.templates import VICUNA

STAGE_ONE_FILE = "mm_projector_align.bin"
ALIGNMENT, TOWER = "model.alignment.", "model.vision_tower."


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        layout: what the source was, in words.
        parameters: how many numbers the model has.
        fresh: names of weights that the source does not have and that were drawn anew.
    """

    layout: str
    parameters: int
    fresh: tuple[str, ...]


def convert(
    source: Path,
    out: Path,
    *,
    vision_tower: str | Path | None = None,
    language_model: str | Path | None = None,
    tokenizer: str | Path | None = None,
    seed: int = 0,
) -> Conversion:
    """Turn a model that others saved into a folder that `from_pretrained` and every command read.

    What the source is, its `config.json` says: the original AlignGPT or one of its family, or a LLaVA of transformers'
    (which gets a fresh alignment module, to be trained). A `mm_projector_align.bin`, or a folder with nothing else, is
    what the original's first stage leaves; it needs `language_model`. One shard at a time is in memory.

    Args:
        source: a model folder, or a `mm_projector_align.bin`.
        out: the folder to write; it appears when it is complete.
        vision_tower: folder or hub name of the tower, with its image processor; what the source names when None.
        language_model: for what the first stage leaves: the language model it was trained for.
        tokenizer: folder or hub name; the source's own when None.
        seed: of weights that are drawn anew.

    Raises:
        LayoutError: the source is none of these, or weights are missing, unknown or of another shape.
        ShardError: its files are damaged, or hold more than tensors.
        BackboneError: the vision tower, the language model or the tokenizer cannot be loaded.
    """
    if source.name == STAGE_ONE_FILE or (source / STAGE_ONE_FILE).is_file():
        file = source if source.name == STAGE_ONE_FILE else source / STAGE_ONE_FILE
        return _convert_stage_one(file, out, vision_tower, language_model, seed)
    layout = layout_of(_read_config(source))
    named = vision_tower or layout.vision_tower
    if named is None:
        raise LayoutError(f"{source} does not name its vision tower; give it with --vision-tower")
    tower = load_vision_tower(named, pad_images=layout.pads_images, image_scales=layout.image_scales)
    _check_registers(source, tower.register_tokens)
    words = load_tokenizer(tokenizer or source, with_align=True)
    shapes = our_shapes(source, layout)
    if EMBEDDINGS not in shapes:
        raise LayoutError(f"{source}: the weights have no table of embeddings where its layout has one")
    config = layout.configuration(tower, shapes, max(len(words), shapes[EMBEDDINGS][0]))
    config.image_token_index = words.convert_tokens_to_ids(IMAGE_TOKEN)
    config.align_token_index = words.convert_tokens_to_ids(ALIGN_TOKEN)
    if TABLE not in shapes:
        config.gate_grid = min(PUBLISHED_GATE_GRID, round(tower.image_tokens**0.5))
    with atomic_folder(out) as folder:
        fresh, parameters = convert_weights(source, folder, layout, config, tower, seed)
        config.save_pretrained(folder)
        build_processor(tower, words, words.chat_template or VICUNA, with_align=True).save_pretrained(folder)
        _generation(config, words).save_pretrained(folder)
        tower_words = layout.vision_tower or "the one it came with"
        made_from = f"converted from `{source.name}`. Vision tower: {tower_words}."
        write_card(folder, out.name, config, made_from)
    return Conversion(layout.words, parameters, fresh)


def convert_weights(
    source: Path, folder: Path, layout: Layout, config: AlignGPTConfig, tower: VisionTower | None, seed: int = 0
) -> tuple[tuple[str, ...], int]:
    """Write the weights of a foreign folder under our names, with rows for new tokens and parts that are missing.

    Args:
        source: the foreign folder.
        folder: where our files go; it must exist.
        layout: of the source.
        config: ours.
        tower: whose weights are taken where the source has none of it.
        seed: of an alignment module that the source does not have.

    Returns:
        Names of what was drawn anew, and the number of parameters.

    Raises:
        LayoutError: weights are missing, unknown or of another shape, all of them named.
    """
    with torch.device("meta"):
        model = AlignGPTForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for tied in model._tied_weights_keys if config.tie_word_embeddings else ():
        expected.pop(tied, None)
    files = shard_files(source)
    found = our_shapes(source, layout)
    found = {name: shape for name, shape in found.items() if name in expected or name != HEAD}
    extra: dict[str, Tensor] = {}
    if not any(name.startswith(ALIGNMENT) for name in found):
        extra |= _fresh_weights(config, seed)
    fresh = tuple(extra)
    if tower is not None and not any(name.startswith(TOWER) for name in found):
        extra |= {TOWER + name: tensor for name, tensor in tower.model.state_dict().items()}
    for name in BY_TOKEN:
        if name in found and found[name][0] < expected.get(name, (0,))[0]:
            found[name] = (expected[name][0], *found[name][1:])
    _check(source, expected, found | {name: tuple(tensor.shape) for name, tensor in extra.items()})

    def shards() -> Iterator[Mapping[str, Tensor]]:
        for number, file in enumerate(files, start=1):
            tensors = {
                ours: _grown(ours, tensor, expected)
                for name, tensor in read_shard(file).items()
                if (ours := layout.rename(name)) is not None and ours in expected
            }
            yield tensors | (extra if number == len(files) else {})

    write_shards(folder, shards(), len(files))
    return fresh, sum(torch.Size(shape).numel() for shape in expected.values())


def to_original(source: Path, out: Path, *, vision_tower: str) -> int:
    """Write one of our models as the original code has it, in safetensors: what `convert` read comes back exactly.

    The rows of `<image>` and `<align>` are left out, where they are the last of the vocabulary. A tokenizer is not
    written: the original code takes the language model's own.

    Args:
        source: one of our model folders.
        out: the folder to write; it appears when it is complete.
        vision_tower: what the original code is to load the tower's configuration from.

    Returns:
        The number of parameters.

    Raises:
        LayoutError: the model has something that the original code does not know.
        ShardError: the weights are missing or damaged.
    """
    ours = _read_config(source)
    if ours.get("model_type") != AlignGPTConfig.model_type or "text_config" not in ours:
        raise LayoutError(f"{source} is not one of our model folders; only those can be written as the original's")
    config = AlignGPTConfig.from_pretrained(source)
    _check_registers(source, config.vision_register_tokens)
    pads = bool(AlignGPTProcessor.from_pretrained(source).image_processor.do_pad)
    files = shard_files(source)
    rows = read_shapes(files)[EMBEDDINGS][0]
    vocabulary = rows - 2 if sorted(config.placeholder_ids) == [rows - 2, rows - 1] else rows
    theirs = OriginalLayout.their_config(config, vocabulary, vision_tower, pads)
    parameters = 0

    def shards() -> Iterator[Mapping[str, Tensor]]:
        nonlocal parameters
        for file in files:
            tensors = {
                OriginalLayout.rename_back(name): tensor[:vocabulary] if name in BY_TOKEN else tensor
                for name, tensor in read_shard(file).items()
            }
            parameters += sum(tensor.numel() for tensor in tensors.values())
            yield tensors

    with atomic_folder(out) as folder:
        write_shards(folder, shards(), len(files))
        (folder / "config.json").write_text(json.dumps(theirs, indent=2, default=str) + "\n", encoding="utf-8")
    return parameters


def _convert_stage_one(
    file: Path, out: Path, vision_tower: str | Path | None, language_model: str | Path | None, seed: int
) -> Conversion:
    if language_model is None or vision_tower is None:
        raise LayoutError(
            f"{file} is what a first stage leaves, projector and levels; give the models it was trained for with "
            "--language-model and --vision-tower"
        )
    layout = layout_of({"mm_vision_tower": str(vision_tower)})
    tensors = {ours: tensor for name, tensor in read_shard(file).items() if (ours := layout.rename(name)) is not None}
    levels = tensors.get(TABLE)
    if levels is None:
        raise LayoutError(f"{file} has no table of levels (align_indicators.indicator_embs)")
    model, processor = assemble(vision_tower, language_model, num_levels=len(levels), text_pooling="all", seed=seed)
    _check_registers(file, model.config.vision_register_tokens)
    parts = {
        name: tuple(tensor.shape)
        for name, tensor in model.named_parameters()
        if "multi_modal_projector" in name or name == TABLE
    }
    _check(file, parts, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    model.load_state_dict(tensors, strict=False)
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    gate = tuple(name for name, _ in model.named_parameters() if name.startswith("model.alignment.gate."))
    return Conversion("The first stage of the original", model.num_parameters(), gate)


def _check_registers(source: Path, registers: int) -> None:
    if registers:
        raise LayoutError(
            f"the vision tower of {source} has {registers} register tokens; the original code and LLaVA of "
            "transformers keep them among the image tokens, here they are dropped, so neither can be made of the other"
        )


def our_shapes(source: Path, layout: Layout) -> dict[str, tuple[int, ...]]:
    """The shape of every weight in a foreign folder, by our names."""
    shapes = read_shapes(shard_files(source))
    return {ours: shape for name, shape in shapes.items() if (ours := layout.rename(name)) is not None}


def _check(source: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of such a model" for name in found if name not in expected]
    problems += [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise LayoutError(f"{source} cannot be converted: {'; '.join(sorted(problems))}")


def _grown(name: str, tensor: Tensor, expected: Mapping[str, tuple[int, ...]]) -> Tensor:
    """A table with rows for the tokens that were added."""
    missing = expected[name][0] - len(tensor) if name in BY_TOKEN else 0
    if not missing:
        return tensor
    rows = tensor.float().mean().to(tensor.dtype).expand(missing) if tensor.ndim == 1 else None
    return torch.cat([tensor, new_rows(tensor, missing, apart=name == EMBEDDINGS) if rows is None else rows])


def _fresh_weights(config: AlignGPTConfig, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = fresh_alignment(config)
    return {ALIGNMENT + name: tensor.detach() for name, tensor in module.state_dict().items()}


def _generation(config: AlignGPTConfig, tokenizer: Any) -> GenerationConfig:
    template = tokenizer.chat_template or VICUNA
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end_tokens(tokenizer, template, config.get_text_config().eos_token_id),
        suppress_tokens=config.placeholder_ids,
    )


def _read_config(source: Path) -> Mapping[str, Any]:
    path = source / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LayoutError(f"{path} cannot be read: {error.strerror}; give a model folder") from error
    except ValueError as error:
        raise LayoutError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path} must hold an object, found {type(content).__name__}")
    return content
