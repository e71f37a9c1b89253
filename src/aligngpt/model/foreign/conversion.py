"""Convert foreign models, one weight file at a time, to our model folders, and back to the original format."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from aligngpt.files import atomic_folder
from aligngpt.model.assembling import PUBLISHED_GATE_GRID, build_processor, chosen_template, end_tokens, fresh_alignment
from aligngpt.model.card import write_card
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.foreign.checkpoint_formats import (
    BY_TOKEN,
    EMBEDDINGS,
    HEAD,
    PUBLISHED_LEVELS,
    TABLE,
    TOWER,
    Layout,
    LayoutError,
    OriginalLayout,
    layout_of,
)
from aligngpt.model.foreign.checks import Conversion, check_registers, check_weights, read_config
from aligngpt.model.foreign.embedding_scale import embedding_scale, rescaled
from aligngpt.model.foreign.first_stage import ALIGNMENT, convert_first_stage, first_stage_file
from aligngpt.model.foreign.settings import (
    carry_pictures,
    check_before_loading,
    check_framing,
    check_kind,
    check_settings,
)
from aligngpt.model.foreign.tokens import carried_generation, check_tokens, without_our_tokens
from aligngpt.model.foreign.weight_files import read_shapes, read_shard, shard_files, write_shards
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.new_folder import check_new_folder
from aligngpt.model.processing import ALIGN_TOKEN, IMAGE_TOKEN, AlignGPTProcessor
from aligngpt.model.templates import VICUNA, for_images, one_template, stored_template
from aligngpt.model.vision_towers import VisionTower, load_vision_tower
from aligngpt.model.vocabulary import load_tokenizer, new_rows
from aligngpt.progress import say

__all__ = ["Conversion", "convert", "convert_weights", "our_shapes", "to_original"]


def convert(
    source: Path,
    out: Path,
    *,
    vision_tower: str | Path | None = None,
    language_model: str | Path | None = None,
    tokenizer: str | Path | None = None,
    chat_template: str | None = None,
    seed: int = 0,
) -> Conversion:
    """Convert a foreign model to a folder that `from_pretrained` and every command can read.

    The source is recognised by its `config.json`: the original AlignGPT or a relative, or transformers' LLaVA (which
    gets a fresh alignment module, still to be trained). A `mm_projector_align.bin` or LLaVA's `mm_projector.bin`, or a
    folder with no other weights, is the output of a first stage and needs `language_model`. Only one weight file at a
    time is in memory.

    Args:
        source: a model folder, or a `mm_projector_align.bin` or `mm_projector.bin`.
        out: the output folder, new or empty; it appears only once it is complete.
        vision_tower: folder or hub name of the tower, with its image processor; the one the source names when None.
        language_model: only for the output of a first stage: the language model it was trained for.
        tokenizer: folder or hub name; the source's own when None.
        chat_template: a name in `NAMED_TEMPLATES` or a Jinja file; the source's own when None, and Vicuna's if it
            has none.
        seed: random seed of freshly initialised weights.

    Raises:
        LayoutError: the source is none of these, weights are missing, unknown or of a wrong shape, its tokenizer has
            tokens without an embedding row, a setting that changes its answers cannot be kept, or `out` is not empty.
        ShardError: its files are damaged, or contain more than tensors.
        ChatTemplateError: its chat template cannot be used.
        BackboneError: the vision tower, the language model or the tokenizer cannot be loaded.
    """
    check_new_folder(out, LayoutError)
    stage_one = first_stage_file(source)
    if stage_one is not None:
        if tokenizer is not None:
            raise LayoutError(f"{stage_one} uses the tokenizer of its language model; omit --tokenizer")
        return convert_first_stage(stage_one, out, vision_tower, language_model, chat_template, seed)
    check_kind(source)
    layout = layout_of(read_config(source))
    check_before_loading(source, layout)
    if language_model is not None:
        raise LayoutError(f"{source} contains its language model; --language-model is for the output of a first stage")
    named = vision_tower or layout.vision_tower
    if named is None:
        raise LayoutError(f"{source} does not name its vision tower; give it with --vision-tower")
    tower = load_vision_tower(named, pad_images=layout.pads_images, image_scales=layout.image_scales)
    check_registers(source, tower.register_tokens)
    words = load_tokenizer(tokenizer or source, with_align=True)
    shapes = our_shapes(source, layout)
    if EMBEDDINGS not in shapes:
        raise LayoutError(f"{source}: the weights lack the embedding table that its layout requires")
    check_tokens(str(tokenizer or source), words, shapes[EMBEDDINGS][0])
    notes = check_settings(source, layout, tower, shapes) + carry_pictures(source, layout, tower)
    template, taken_from = _template(source, words, tokenizer, chat_template)
    config = layout.configuration(tower, shapes, max(len(words), shapes[EMBEDDINGS][0]))
    config.image_token_index = words.convert_tokens_to_ids(IMAGE_TOKEN)
    config.align_token_index = words.convert_tokens_to_ids(ALIGN_TOKEN)
    if TABLE not in shapes:
        config.gate_grid = min(PUBLISHED_GATE_GRID, round(tower.image_tokens**0.5))
    notes += _untied(source, layout, config, shapes)
    generation = _generation(source, config, words, template)
    with atomic_folder(out) as folder:
        fresh, parameters = convert_weights(source, folder, layout, config, tower, seed)
        config.save_pretrained(folder)
        build_processor(tower, words, template, with_align=True).save_pretrained(folder)
        generation.save_pretrained(folder)
        tower_words = layout.vision_tower or "the one it came with"
        made_from = f"converted from `{source.name}`. Vision tower: {tower_words}."
        write_card(folder, out.name, config, made_from)
    return Conversion(layout.words, parameters, fresh, taken_from, notes)


def convert_weights(
    source: Path, folder: Path, layout: Layout, config: AlignGPTConfig, tower: VisionTower | None, seed: int = 0
) -> tuple[tuple[str, ...], int]:
    """Write the weights of a foreign folder under our names, adding rows for new tokens and missing modules.

    Args:
        source: the foreign folder.
        folder: the output folder; it must exist.
        layout: the layout of the source.
        config: our configuration.
        tower: the vision tower whose weights are used if the source has none.
        seed: random seed of the alignment module if the source has none.

    Returns:
        Names of freshly initialised weights, and the number of parameters.

    Raises:
        LayoutError: weights are missing, unknown or of a wrong shape; the message names all of them.
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
    check_weights(source, expected, found | {name: tuple(tensor.shape) for name, tensor in extra.items()})

    def shards() -> Iterator[Mapping[str, Tensor]]:
        for number, file in enumerate(files, start=1):
            tensors = {
                ours: rescaled(ours, _grown(ours, tensor, expected), layout.embedding_scale)
                for name, tensor in read_shard(file).items()
                if (ours := layout.rename(name)) is not None and ours in expected
            }
            yield tensors | (extra if number == len(files) else {})

    write_shards(folder, shards(), len(files))
    return fresh, sum(torch.Size(shape).numel() for shape in expected.values())


def to_original(source: Path, out: Path, *, vision_tower: str) -> int:
    """Write one of our models in the original code's layout, as safetensors: the exact inverse of `convert`.

    If the gate of the model reads the instruction only, its answers in the original code differ, because that gate
    averages all text; this is printed, and `convert` finds the setting again. If the number of levels is not 8, only
    the code of the authors' later models reads the folder, which is printed too. The rows of `<image>` and `<align>`
    are omitted if they are the last two of the vocabulary, and then so are these two tokens in the tokenizer.

    Args:
        source: one of our model folders.
        out: the output folder, new or empty; it appears only once it is complete.
        vision_tower: where the original code will load the tower from, with its weights; a folder is compared with the
            model's own tower.

    Returns:
        The number of parameters.

    Raises:
        LayoutError: the model has a feature that the original code does not support, its vision tower has other
            weights than that in the folder `vision_tower`, or `out` is not empty.
        BackboneError: the folder `vision_tower` contains no vision tower.
        ShardError: the weights are missing or damaged.
    """
    check_new_folder(out, LayoutError)
    ours = read_config(source)
    if ours.get("model_type") != AlignGPTConfig.model_type or "text_config" not in ours:
        raise LayoutError(f"{source} is not one of our model folders; only those can be written in the original layout")
    config = AlignGPTConfig.from_pretrained(source, trust_remote_code=False)
    check_registers(source, config.vision_register_tokens)
    processor = AlignGPTProcessor.from_pretrained(source)
    pads = bool(processor.image_processor.do_pad)
    check_framing(source, processor.image_processor, config.vision_config.model_type)
    OriginalLayout.check(config)
    files = shard_files(source)
    rows = read_shapes(files)[EMBEDDINGS][0]
    vocabulary = rows - 2 if sorted(config.placeholder_ids) == [rows - 2, rows - 1] else rows
    if compared := Path(vision_tower).is_dir():
        _check_tower(source, files, vision_tower)
    theirs = OriginalLayout.their_config(config, vocabulary, vision_tower, pads)
    for note in _notes_of_differences(config, None if compared else vision_tower):
        say(f"note: {note}")
    parameters = 0
    scale = 1 / embedding_scale(config.get_text_config().to_dict())

    def shards() -> Iterator[Mapping[str, Tensor]]:
        nonlocal parameters
        for file in files:
            tensors = {
                OriginalLayout.rename_back(name): tensor[:vocabulary]
                if name in BY_TOKEN
                else rescaled(name, tensor, scale)
                for name, tensor in read_shard(file).items()
            }
            parameters += sum(tensor.numel() for tensor in tensors.values())
            yield tensors

    with atomic_folder(out) as folder:
        write_shards(folder, shards(), len(files))
        (folder / "config.json").write_text(json.dumps(theirs, indent=2, default=str) + "\n", encoding="utf-8")
        processor.tokenizer.save_pretrained(folder)
        if vocabulary < rows:
            without_our_tokens(folder)
    return parameters


def _check_tower(source: Path, files: Sequence[Path], vision_tower: str) -> None:
    """Raise a LayoutError if a weight of the model's vision tower differs from that in a folder, beyond rounding."""
    others = load_vision_tower(vision_tower).model.state_dict()
    for file in files:
        for name, tensor in read_shard(file).items():
            other = others.get(name.removeprefix(TOWER)) if name.startswith(TOWER) else None
            rounded = (tensor.dtype, torch.bfloat16, torch.float16)
            if other is not None and not any(torch.equal(tensor, other.to(kind).to(tensor.dtype)) for kind in rounded):
                raise LayoutError(
                    f"the vision tower of {source} has other weights than {vision_tower}, from which the original code "
                    "would load it; write this model's own with model.model.vision_tower.save_pretrained(FOLDER), copy "
                    f"preprocessor_config.json of {vision_tower} there, and give --vision-tower FOLDER"
                )


def _notes_of_differences(config: AlignGPTConfig, not_compared: str | None) -> Iterator[str]:
    """What the original code does otherwise with one of our models, one sentence each.

    `not_compared` names the vision tower that it loads, if it is not known whether it is that of the model.
    """
    if not_compared is not None:
        yield (
            f"the original code loads the weights of the vision tower from {not_compared}; if this model's tower was "
            "trained, give a folder as --vision-tower, which is then compared"
        )
    if (tower := config.vision_config.model_type) != "clip_vision_model":
        yield f"the code of AlignGPT builds a CLIP only, and the vision tower of this model is a {tower}"
    if config.text_pooling != "all":
        yield (
            f"the gate of this model reads the text by text_pooling: {config.text_pooling}; the original code averages "
            "all text, so its gate weights and answers there differ"
        )
    if config.num_alignment_levels != PUBLISHED_LEVELS:
        yield (
            f"this model has {config.num_alignment_levels} levels; only the code of AlignGPT_family reads that, that "
            f"of AlignGPT always has {PUBLISHED_LEVELS}"
        )


def our_shapes(source: Path, layout: Layout) -> dict[str, tuple[int, ...]]:
    """The shape of every weight in a foreign folder, by our names."""
    shapes: dict[str, tuple[int, ...]] = {}
    names: dict[str, str] = {}
    for name, shape in read_shapes(shard_files(source)).items():
        ours = layout.rename(name)
        if ours is None:
            continue
        if ours in names:
            raise LayoutError(f"{source} has the same weight twice, as {names[ours]} and as {name}; remove one of them")
        shapes[ours], names[ours] = shape, name
    return shapes


def _grown(name: str, tensor: Tensor, expected: Mapping[str, tuple[int, ...]]) -> Tensor:
    """A tensor with rows added for new tokens, if it has one row per token."""
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


def _template(source: Path, words: Any, tokenizer: str | Path | None, wanted: str | None) -> tuple[str, str]:
    """The chat template and its origin: the requested one, else the processor's, the tokenizer's, or Vicuna's."""
    if wanted is not None:
        return chosen_template(wanted, words, source), wanted
    if stored := stored_template(source):
        return for_images(stored[0], f"{source / stored[1]}"), stored[1]
    where = str(tokenizer or source)
    if own := one_template(words.chat_template, f"the tokenizer of {where}"):
        return for_images(own, where), f"the tokenizer of {where}"
    return VICUNA, f"Vicuna's, as {source} has none"


def _untied(
    source: Path, layout: Layout, config: AlignGPTConfig, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Untie head and embeddings in the configuration if their weights differ; return a note if so."""
    if not config.tie_word_embeddings or HEAD not in shapes:
        return ()
    both = {
        ours: tensor
        for file in shard_files(source)
        for name, tensor in read_shard(file).items()
        if (ours := layout.rename(name)) in (HEAD, EMBEDDINGS)
    }
    if both[HEAD].shape == both[EMBEDDINGS].shape and torch.equal(both[HEAD], both[EMBEDDINGS]):
        return ()
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    return ("its configuration ties the head to the embeddings, but their weights differ: they were untied",)


def _generation(source: Path, config: AlignGPTConfig, words: Any, template: str) -> GenerationConfig:
    """The source's own settings, plus this model's end tokens and with our placeholders suppressed."""
    settings = carried_generation(source)
    ends = [*_listed(config.get_text_config().eos_token_id), *_listed(settings.pop("eos_token_id", None))]
    suppressed = _listed(settings.pop("suppress_tokens", None))
    generation = GenerationConfig(
        **settings,
        bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
        eos_token_id=end_tokens(words, template, ends),
        suppress_tokens=[*config.placeholder_ids, *(token for token in suppressed if token >= 0)],
    )
    try:
        generation.validate(strict=True)
    except ValueError as error:
        raise LayoutError(f"generation_config.json of {source} is inconsistent: {error}") from error
    return generation


def _listed(value: int | list[int] | None) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]
