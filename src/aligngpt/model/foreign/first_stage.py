"""Conversion of the output of a first training stage (the original's or LLaVA's), given its backbones."""

from pathlib import Path
from typing import Any

from aligngpt.files import atomic_folder
from aligngpt.model.assembling import assemble
from aligngpt.model.foreign.checkpoint_formats import PUBLISHED_LEVELS, TABLE, LayoutError, OriginalLayout, layout_of
from aligngpt.model.foreign.checks import Conversion, check_registers, check_weights, read_config
from aligngpt.model.foreign.embedding_scale import embedding_scale, rescaled
from aligngpt.model.foreign.settings import check_before_loading
from aligngpt.model.foreign.weight_files import has_shards, read_shard
from aligngpt.model.templates import VICUNA
from aligngpt.model.vision_towers import load_vision_tower, stretch

STAGE_ONE_FILE = "mm_projector_align.bin"
STAGE_ONE_FILES = (STAGE_ONE_FILE, "mm_projector.bin")
"""Output files of a first stage: the original's, with the level table, and LLaVA's, without it."""

ALIGNMENT = "model.alignment."


def first_stage_file(source: Path) -> Path | None:
    """The first-stage output file in a source; None if the source is a complete model or something else."""
    if source.name in STAGE_ONE_FILES:
        return source
    left = next((source / name for name in STAGE_ONE_FILES if (source / name).is_file()), None)
    return None if left is None or has_shards(source) else left


def convert_first_stage(
    file: Path,
    out: Path,
    vision_tower: str | Path | None,
    language_model: str | Path | None,
    chat_template: str | None,
    seed: int,
) -> Conversion:
    """As `conversion.convert`, for the output file of a first stage and the `config.json` beside it, if any."""
    if language_model is None or vision_tower is None:
        raise LayoutError(
            f"{file} is the output of a first stage, a projector and perhaps a level table; give the models it was "
            "trained for with --language-model and --vision-tower"
        )
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = {}
    layout = layout_of({"mm_vision_tower": str(vision_tower), "mm_projector_type": "mlp2x_gelu"})
    if (file.parent / "config.json").is_file() and OriginalLayout.recognises(beside := read_config(file.parent)):
        layout = OriginalLayout(beside)
        check_before_loading(file.parent, layout)
        settings = {"pad_images": layout.pads_images, "image_scales": layout.image_scales}
        settings["vision_feature_layer"] = layout.our_fields()["vision_feature_layer"]
    else:
        notes = (
            "there is no config.json of its training beside it: images are padded to a square and the features are "
            "taken from the last layer but one, as in LLaVA-1.5",
        )
    tensors = {ours: tensor for name, tensor in read_shard(file).items() if (ours := layout.rename(name)) is not None}
    levels = tensors.get(TABLE)
    if levels is None and file.name == STAGE_ONE_FILE:
        raise LayoutError(f"{file} has no level table (align_indicators.indicator_embs)")
    model, processor = assemble(
        vision_tower,
        language_model,
        num_levels=PUBLISHED_LEVELS if levels is None else len(levels),
        text_pooling="all",
        chat_template=chat_template,
        seed=seed,
        **settings,
    )
    check_registers(file, model.config.vision_register_tokens)
    if settings.get("pad_images") is False and load_vision_tower(vision_tower, weights=False).stretches:
        stretch(processor.image_processor)
    parts = {
        name: tuple(tensor.shape)
        for name, tensor in model.named_parameters()
        if "multi_modal_projector" in name or (name == TABLE and levels is not None)
    }
    check_weights(file, parts, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    scale = embedding_scale(model.config.get_text_config().to_dict())
    model.load_state_dict({name: rescaled(name, tensor, scale) for name, tensor in tensors.items()}, strict=False)
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    fresh = tuple(
        name
        for name, _ in model.named_parameters()
        if name.startswith(ALIGNMENT) and not (name == TABLE and levels is not None)
    )
    words = "The first stage of the original" if levels is not None else "The first stage of LLaVA"
    taken = chat_template or ("Vicuna's, as there is no other" if processor.chat_template == VICUNA else language_model)
    return Conversion(words, model.num_parameters(), fresh, str(taken), notes)
