"""Writes a model as `model.gguf` and `mmproj.gguf`, which llama.cpp runs as a LLaVA."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from aligngpt.exporting.engines import OURS
from aligngpt.exporting.folding import chosen_fold, fold
from aligngpt.exporting.gguf.chat_template import for_llama_cpp
from aligngpt.exporting.gguf.refusals import ARCHITECTURES, TOWER_GELU, feature_layer, refused_by_llama_cpp
from aligngpt.exporting.gguf.tensors import language_tensors, rope_factors, vision_tensors
from aligngpt.exporting.gguf.vocabulary import Vocabulary, vocabulary
from aligngpt.exporting.gguf.writing import GGUFType, write_gguf
from aligngpt.exporting.loading import NOTES_FILE, ExportError, Loaded, check_target, load_model
from aligngpt.files import atomic_folder

MODEL_FILE, VISION_FILE = "model.gguf", "mmproj.gguf"

LARGEST_DIFFERENCE = 2e-2
"""How far the projected image may differ by llama.cpp's form of GELU, relative to its largest value."""

_CARD = """\
# {name}

Two files for llama.cpp made by `aligngpt export --gguf` from `{source}`, an
[AlignGPT](https://arxiv.org/abs/2405.14129). {alignment} They are subject to the licences of the models they were made
from.

    llama-server -m model.gguf --mmproj mmproj.gguf --jinja

Send only square images: llama.cpp pads others, which this model never saw. Leave `LLAMA_MEDIA_MARKER` unset.
"""


@dataclass(frozen=True)
class GGUFExport:
    """An exported folder.

    Attributes:
        fold: the alignment embedding in it, `level:K`, `average` or `mean`; None for a model without one.
        parameters: number of parameters in both files.
        stored: how matrices are stored.
        projector_difference: how far an image after the projector differs by llama.cpp's form of GELU, relative to its
            largest value.
    """

    fold: str | None
    parameters: int
    stored: GGUFType
    projector_difference: float


def export_gguf(
    source: str | Path,
    out: Path,
    *,
    chosen: str | None = None,
    stored: GGUFType = "f16",
    square_images: bool = False,
    base: str | Path | None = None,
) -> GGUFExport:
    """Write a model as the two files that llama.cpp reads.

    Args:
        source: model folder, hub name or adapter folder.
        out: the output folder; it appears only once it is complete. An earlier export there is replaced.
        chosen: `global`, `average`, `mean` or `level:K`, see `chosen_fold`.
        stored: how matrices are stored.
        square_images: the images to be sent are squares; llama.cpp prepares others differently.
        base: base model of an adapter folder; the one it names when None.

    Raises:
        ExportError: llama.cpp computes something else than the model, or the package `gguf` is missing.
        AdapterError: an adapter folder or its base cannot be used.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ExportError("writing GGUF needs the package gguf; run: pip install 'aligngpt[gguf]'") from error
    check_target(out, source, base)
    loaded = load_model(source, base)
    model, processor = loaded
    kept = chosen_fold(chosen, model.config)
    if refusal := refused_by_llama_cpp(model.config, processor, square_images=square_images):
        raise ExportError(f"llama.cpp cannot run {source} as it is: {refusal}; {OURS}")
    template = for_llama_cpp(processor)
    words = vocabulary(processor.tokenizer, model.get_input_embeddings().weight.shape[0])
    ends = _end_tokens(model.generation_config)
    if (difference := _by_form_of_gelu(loaded)) > LARGEST_DIFFERENCE:
        raise ExportError(
            f"llama.cpp's form of GELU changes images after the projector by {difference:.2g} of their largest value, "
            f"{LARGEST_DIFFERENCE} at most expected; {OURS}"
        )
    state = fold(model, kept)
    language, vision = list(language_tensors(state, model.config)), list(vision_tensors(state, model.config))
    text = model.config.get_text_config()
    parameters = sum(tensor.numel() for _, tensor in (*language, *vision))
    if (factors := rope_factors(model, text)) is not None:
        language.append(("rope_freqs.weight", factors))
    done = GGUFExport(None if kept is None else str(kept), parameters, stored, difference)
    name = Path(source).name
    with atomic_folder(out) as folder:
        about_text = _language_fields(name, loaded, words, template, ends)
        write_gguf(folder / MODEL_FILE, _architecture(text), about_text, language, stored)
        write_gguf(folder / VISION_FILE, "clip", _vision_fields(name, loaded), vision, stored)
        notes = {"from": name, "kind": "gguf"} | asdict(done)
        (folder / NOTES_FILE).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
        alignment = "They have no alignment embedding."
        if done.fold is not None:
            alignment = f"The alignment embedding is the same for every image and question: `{done.fold}`."
        card = _CARD.format(name=out.name, source=name, alignment=alignment)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return done


def _architecture(text: Any) -> str:
    import gguf

    return str(gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[ARCHITECTURES[text.model_type]]])


def _end_tokens(settings: Any) -> list[int]:
    found = settings.eos_token_id
    ends = [] if found is None else [found] if isinstance(found, int) else list(found)
    if not 1 <= len(ends) <= 3:
        raise ExportError(f"the model ends answers at {len(ends)} tokens (eos_token_id); GGUF has room for 1 to 3")
    return ends


def _by_form_of_gelu(loaded: Loaded) -> float:
    """How far an image after the projector differs if the projector's GELU has the tanh form."""
    model, processor = loaded
    projector: Any = model.model.multi_modal_projector
    picture = Image.linear_gradient("L").convert("RGB")
    pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"].to(model.dtype)
    exact = projector.act
    found = []
    try:
        for act in (exact, nn.GELU(approximate="tanh")):
            projector.act = act
            with torch.inference_mode():
                found.append(_projected(model, pixels).float())
    finally:
        projector.act = exact
    return float((found[1] - found[0]).abs().max() / found[0].abs().max().clamp(min=1e-6))


def _projected(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    features = model.model.get_image_features(pixel_values=pixels)
    features = getattr(features, "pooler_output", features)
    return features if isinstance(features, torch.Tensor) else torch.cat(list(features))


def _language_fields(
    name: str, loaded: Loaded, words: Vocabulary, template: str, ends: list[int]
) -> Callable[[Any], None]:
    model, processor = loaded
    text, tokenizer = model.config.get_text_config(), processor.tokenizer
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads

    def add(writer: Any) -> None:
        writer.add_name(name)
        writer.add_block_count(text.num_hidden_layers)
        writer.add_context_length(text.max_position_embeddings)
        writer.add_embedding_length(text.hidden_size)
        writer.add_feed_forward_length(text.intermediate_size)
        writer.add_head_count(text.num_attention_heads)
        writer.add_head_count_kv(text.num_key_value_heads)
        writer.add_key_length(size)
        writer.add_value_length(size)
        writer.add_rope_dimension_count(size)
        writer.add_rope_freq_base(text.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(text.rms_norm_eps)
        writer.add_vocab_size(len(words.tokens))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(words.pre)
        writer.add_token_list(words.tokens)
        writer.add_token_types(words.types)
        writer.add_token_merges(words.merges)
        # The chat template writes BOS.
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)
        for number, put in zip(
            ends, (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), strict=False
        ):
            put(number)
        if tokenizer.bos_token_id is not None:
            writer.add_bos_token_id(tokenizer.bos_token_id)
        if tokenizer.pad_token_id is not None:
            writer.add_pad_token_id(tokenizer.pad_token_id)
        writer.add_chat_template(template)

    return add


def _vision_fields(name: str, loaded: Loaded) -> Callable[[Any], None]:
    model, processor = loaded
    vision, images = model.config.vision_config, processor.image_processor
    used = feature_layer(model.config)

    def add(writer: Any) -> None:
        writer.add_name(name)
        writer.add_clip_has_vision_encoder(True)
        writer.add_bool("clip.has_llava_projector", True)
        writer.add_clip_projector_type("mlp")
        writer.add_vision_use_gelu(TOWER_GELU[vision.hidden_act])
        writer.add_vision_image_size(vision.image_size)
        writer.add_vision_patch_size(vision.patch_size)
        writer.add_vision_embedding_length(vision.hidden_size)
        writer.add_vision_feed_forward_length(vision.intermediate_size)
        writer.add_vision_projection_dim(model.config.get_text_config().hidden_size)
        writer.add_vision_head_count(vision.num_attention_heads)
        writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
        writer.add_vision_block_count(used)
        writer.add_array("clip.vision.feature_layer", [used])
        writer.add_vision_image_mean([float(value) for value in images.image_mean])
        writer.add_vision_image_std([float(value) for value in images.image_std])

    return add
