"""Assemble an AlignGPT model from any vision tower and any causal language model."""

from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from aligngpt.alignment.modes import AlignmentMode
from aligngpt.alignment.module import AlignmentModule
from aligngpt.model.backbones import BackboneError
from aligngpt.model.configuration import AlignGPTConfig, TextPooling
from aligngpt.model.language_models import body_of, load_language_model
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import ALIGN_TOKEN, IMAGE_TOKEN, AlignGPTProcessor
from aligngpt.model.projector import AlignGPTProjector
from aligngpt.model.templates import NAMED_TEMPLATES, TURN_ENDS, VICUNA, breaks_answers, one_template, with_images
from aligngpt.model.token_merging import merged_tokens
from aligngpt.model.vision_towers import Framing, VisionTower, load_vision_tower
from aligngpt.model.vocabulary import grow_vocabulary, load_tokenizer
from aligngpt.progress import say

PUBLISHED_GATE_GRID = 24


def assemble(
    vision_tower: str | Path,
    language_model: str | Path,
    *,
    alignment: AlignmentMode = "adaptive",
    num_levels: int = 8,
    vision_feature_layer: int | list[int] = -2,
    gate_grid: int | None = None,
    text_pooling: TextPooling = "instruction",
    chat_template: str | None = None,
    pad_images: Framing = True,
    image_size: int | None = None,
    image_scales: Sequence[int] | None = None,
    merge_image_tokens: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    weights: bool = True,
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """Build an AlignGPT from a vision tower and a causal language model, with a fresh projector and alignment module.

    Args:
        vision_tower: folder or hub name of CLIP, SigLIP, DINOv2 (with or without registers) or another patch
            transformer.
        language_model: folder or hub name of a causal language model with its tokenizer; of a multimodal model, the
            language model is taken out.
        alignment, num_levels, vision_feature_layer, gate_grid, text_pooling: see `AlignGPTConfig`; `gate_grid` is
            that of the image tokens when None, at most 24 per side.
        chat_template: a name in `NAMED_TEMPLATES` (`vicuna`, `chatml`, …), a Jinja file, or None for the tokenizer's
            own (Vicuna's if the tokenizer has none).
        pad_images: pad images to a square with the mean colour, as in the paper; False takes a centre crop, `stretch`
            resizes images to the square without keeping their proportions.
        image_size: side in pixels that images are resized to; the tower's own when None.
        image_scales: several sides at which each image is read; see `AlignGPTConfig`.
        merge_image_tokens: side of the square of patches that become one image token; see `AlignGPTConfig`.
        dtype: dtype of all parameters.
        seed: random seed of the fresh parameters.
        weights: False reads only configurations and the tokenizer and returns a model whose parameters have shapes
            but no values (on torch's meta device), so that a model of any size can be planned in little memory.

    Returns:
        The model on the CPU in evaluation mode, and its processor.

    Raises:
        BackboneError: a backbone cannot be loaded or is of an unsupported kind, the tower has no such layer, or
            `merge_image_tokens` does not divide its grid.
    """
    tower = load_vision_tower(
        vision_tower,
        pad_images=pad_images,
        image_size=image_size,
        image_scales=image_scales,
        dtype=dtype,
        weights=weights,
    )
    _check_layers(vision_feature_layer, tower, vision_tower)
    try:
        image_tokens = merged_tokens(tower.image_tokens, merge_image_tokens)
    except ValueError as error:
        raise BackboneError(f"{vision_tower}: {error}") from error
    language = load_language_model(language_model, dtype, weights=weights)
    tokenizer = load_tokenizer(language_model, with_align=alignment != "none")
    template = chosen_template(chat_template, tokenizer, language_model)
    grow_vocabulary(language, len(tokenizer))

    config = AlignGPTConfig(
        vision_config=tower.model.config,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        align_token_index=tokenizer.convert_tokens_to_ids(ALIGN_TOKEN) if alignment != "none" else -1,
        image_seq_length=image_tokens,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=tower.select_strategy,
        alignment=alignment,
        num_alignment_levels=num_levels,
        gate_grid=gate_grid or min(PUBLISHED_GATE_GRID, isqrt(image_tokens)),
        text_pooling=text_pooling,
        lm_head_bias=language.get_output_embeddings().bias is not None,
        image_scales=list(image_scales) if image_scales else None,
        merge_image_tokens=merge_image_tokens,
        vision_register_tokens=tower.register_tokens,
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
        dtype=dtype,
    )
    model = _put_together(config, tower.model, language, dtype, seed)
    if weights:
        _check_values(model)
        _check_language(model, language, language_model)
    generation = model.generation_config
    generation.bos_token_id = tokenizer.bos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    generation.eos_token_id = end_tokens(tokenizer, template, language.generation_config.eos_token_id)
    generation.suppress_tokens = config.placeholder_ids
    return model.eval(), build_processor(
        tower, tokenizer, template, with_align=alignment != "none", image_tokens=image_tokens
    )


def _check_layers(layers: int | Sequence[int], tower: VisionTower, source: str | Path) -> None:
    """Check that the tower has these hidden states: 0, the input of its first block, to the output of its last."""
    named = [layers] if isinstance(layers, int) else list(layers)
    depth = tower.model.config.num_hidden_layers
    wrong = [layer for layer in named if not -depth - 1 <= layer <= depth]
    if wrong or not named:
        raise BackboneError(
            f"vision_feature_layer is {wrong[0] if wrong else layers}, but the vision tower {source} has the layers 0 "
            f"to {depth}, or -{depth + 1} to -1 counted from the end"
        )


def build_processor(
    tower: VisionTower, tokenizer: Any, template: str, *, with_align: bool, image_tokens: int | None = None
) -> AlignGPTProcessor:
    """The processor of a model with this vision tower, tokenizer and chat template.

    `image_tokens` is the number of tokens per image; one per patch when None.
    """
    if isinstance(tokenizer.chat_template, dict):
        # The other templates would otherwise be saved along with the chosen one.
        tokenizer.chat_template = template
    return AlignGPTProcessor(
        image_processor=tower.image_processor,
        tokenizer=tokenizer,
        patch_size=tower.patch_size,
        vision_feature_select_strategy=tower.select_strategy,
        num_additional_image_tokens=1 if tower.select_strategy == "default" else 0,
        image_seq_length=tower.image_tokens if image_tokens is None else image_tokens,
        align_token=ALIGN_TOKEN if with_align else None,
        chat_template=template,
    )


def _put_together(
    config: AlignGPTConfig, tower: PreTrainedModel, language: PreTrainedModel, dtype: torch.dtype, seed: int
) -> AlignGPTForConditionalGeneration:
    """An AlignGPT around the given networks; only the projector and the alignment module are newly allocated."""
    with torch.device("meta"):
        model = AlignGPTForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = body_of(language)
    model.lm_head = language.get_output_embeddings()
    if language.device.type == "meta":
        return model.to(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.model.multi_modal_projector = AlignGPTProjector(config).to(dtype)
        if model.model.alignment is not None:
            model.model.alignment = fresh_alignment(config).to(dtype)
    return model


def _check_values(model: AlignGPTForConditionalGeneration) -> None:
    stray = [name for name, tensor in _tensors(model) if tensor.is_meta]
    if stray:
        raise BackboneError(f"the backbones have no values for {', '.join(stray)}")


def _check_language(model: AlignGPTForConditionalGeneration, language: PreTrainedModel, source: str | Path) -> None:
    """Check that without an image the model's logits equal its language model's, alone and in a batch, with a cache.

    If only the cached logits differ, generation without a cache is set as the default.

    Raises:
        BackboneError: the logits differ, or the model cannot be run.
    """
    kind = type(language).__name__
    ids = torch.arange(8).unsqueeze(0)
    try:
        with torch.no_grad():
            expected = language(input_ids=ids, use_cache=False).logits
            found = model(input_ids=ids, use_cache=False).logits
    # Unsupported language models may raise anything here.
    except Exception as error:
        raise BackboneError(
            f"{source}: {kind} cannot be run on embeddings ({error}); this kind of language model is not supported"
        ) from error
    words = torch.ones(expected.shape[-1], dtype=torch.bool)
    words[model.config.placeholder_ids] = False
    if not _alike(found[..., words], expected[..., words]):
        raise BackboneError(
            f"{source}: {kind} does more between its embeddings and its logits than AlignGPT supports; this kind of "
            "language model is not supported"
        )
    if _generates_alike(model, words, use_cache=True):
        return
    if not _generates_alike(model, words, use_cache=False):
        raise BackboneError(
            f"{source}: {kind} answers a prompt in a batch, padded on the left, differently than alone; this kind of "
            "language model is not supported"
        )
    model.generation_config.use_cache = False


def _generates_alike(model: AlignGPTForConditionalGeneration, words: torch.Tensor, *, use_cache: bool) -> bool:
    """Whether two prompts of different lengths get the same logits in one batch as each alone without a cache."""
    prompts = [torch.arange(2, 8), torch.arange(5, 8)]
    padding = [len(prompts[0]) - len(prompt) for prompt in prompts]
    ids = torch.stack([F.pad(prompt, (before, 0)) for prompt, before in zip(prompts, padding, strict=True)])
    mask = torch.ones_like(ids)
    mask[1, : padding[1]] = 0
    steps = 2
    options = {"max_new_tokens": steps, "do_sample": False, "use_cache": use_cache, "eos_token_id": None}
    try:
        with torch.no_grad():
            together = model.generate(
                input_ids=ids,
                attention_mask=mask,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
                **options,
            )
            found = torch.stack(together.logits, dim=1)
            for row, before in enumerate(padding):
                alone = together.sequences[row, before:-1].unsqueeze(0)
                expected = model(input_ids=alone, use_cache=False).logits[0, -steps:]
                if not _alike(found[row][..., words], expected[..., words]):
                    return False
    # Language models with custom caches may raise anything here.
    except Exception:
        return False
    return True


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits are equal up to rounding in the precision of `expected`; NaN never is.

    `generate` returns single-precision logits, whatever precision they were computed in.
    """
    tolerance = 2e-3 if expected.dtype == torch.float32 else 5e-2
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def fresh_alignment(config: AlignGPTConfig) -> AlignmentModule:
    """A freshly initialised alignment module of the configuration's sizes."""
    return AlignmentModule(
        config.num_alignment_levels, config.get_text_config().hidden_size, config.gate_grid, config.gate_hidden_size
    )


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def chosen_template(wanted: str | None, tokenizer: Any, source: str | Path) -> str:
    """The requested chat template, by name or as a Jinja file; when None the tokenizer's own.

    If the tokenizer has none, it is Vicuna's; if it has one that `breaks_answers`, ChatML or Vicuna's, by its marks.

    Raises:
        BackboneError: `wanted` is neither a name nor a readable file.
    """
    if wanted is None:
        own = one_template(tokenizer.chat_template, f"the tokenizer of {source}")
        if own is None:
            return VICUNA
        template = with_images(own)
        if (trouble := breaks_answers(template)) is None:
            return template
        name = "chatml" if "<|im_start|>" in own else "vicuna"
        _note(f"the chat template of {source} does not suit training: {trouble}; {name} is used instead")
        return NAMED_TEMPLATES[name]
    if wanted in NAMED_TEMPLATES:
        return NAMED_TEMPLATES[wanted]
    try:
        template = with_images(Path(wanted).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BackboneError(
            f"chat template {wanted!r} is neither one of {', '.join(NAMED_TEMPLATES)} nor a readable Jinja file: "
            f"{error}"
        ) from error
    if trouble := breaks_answers(template):
        _note(f"the chat template {wanted} does not suit training: {trouble}; change it, or choose another")
    return template


def _note(what: str) -> None:
    say(f"note: {what}")


def end_tokens(tokenizer: Any, template: str, known: int | list[int] | None = None) -> list[int]:
    """Ids of the tokens that end an answer: the language model's own, and the mark the template writes after a turn."""
    ends = [*known] if isinstance(known, list) else [known]
    ends.append(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    ends += [vocabulary[mark] for mark in TURN_ENDS if mark in template and mark in vocabulary]
    return sorted({end for end in ends if end is not None})
