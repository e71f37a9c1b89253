"""The model at the start of a stage: the previous stage's output, with adapters if the recipe asks for them."""

import torch

from aligngpt.device import resolve_device
from aligngpt.model.assembling import assemble
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.training.recipe import Recipe, RecipeError, StageName
from aligngpt.training.setup.checkpointing import recomputed_layers
from aligngpt.training.setup.lora import add_lora
from aligngpt.training.setup.pretrained_parts import PRETRAINED_FILE, load_pretrained_parts
from aligngpt.training.setup.quantization import quantize_language_model
from aligngpt.training.stage import pretrained_file, stage_folder


def load_model(
    recipe: Recipe, name: StageName, *, weights: bool = True, bits_in: torch.dtype | None = None
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """The model of a stage and its processor.

    Args:
        recipe: names the backbones.
        name: of the stage.
        weights: False for parameters that have shapes but no values, see `assemble`.
        bits_in: compute precision if the recipe's `lora.bits` holds the language model in 4 bits; None ignores
            `lora.bits` and keeps the weights unquantised.

    Raises:
        BackboneError: a backbone cannot be loaded.
        AlignGPTError: the previous stage's output is missing or damaged.
        RecipeError: the attention implementation named by the recipe is not available, or the language model can only
            recompute all layers or none.
    """
    settings = recipe.model.model_dump()
    attention = settings.pop("attention")
    model, processor = assemble(
        settings.pop("vision_tower"), settings.pop("language_model"), **settings, seed=recipe.seed, weights=weights
    )
    if attention is not None:
        _set_attention(model, attention)
    stage = recipe.stage(name)
    if stage is not None and int(stage.gradient_checkpointing) > 1:
        recomputed_layers(model, stage.gradient_checkpointing)  # Refuses what the language model cannot do.
    if weights and stage is not None and stage.pretrained is not None:
        without_levels = stage.fresh_level_table
        load_pretrained_parts(model, pretrained_file(stage.pretrained), without_levels=without_levels)
    elif weights and name == "instruct" and recipe.pretrain is not None:
        load_pretrained_parts(model, stage_folder(recipe, "pretrain") / PRETRAINED_FILE)
    if weights and stage is not None and stage.fresh_level_table:
        _draw_level_table(model, recipe.seed)
    if stage is not None and stage.lora is not None:
        if stage.lora.bits is not None and bits_in is not None:
            device = resolve_device()
            quantize_language_model(model, device, bits_in)
            # The layers in 4 bits are there already. What follows runs the model, so all of it must be on one device.
            model.to(device)
        add_lora(model, stage.lora, seed=recipe.seed)
    return model, processor


def _draw_level_table(model: AlignGPTForConditionalGeneration, seed: int) -> None:
    assert model.model.alignment is not None
    with torch.random.fork_rng(devices=[]):
        # The seed itself drew the projector and the table that pre-training began with.
        torch.manual_seed(seed + 1)
        model.model.alignment.reset_level_table()


def _set_attention(model: AlignGPTForConditionalGeneration, attention: str) -> None:
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise RecipeError(f"model.attention {attention!r} cannot be used here: {error}") from error
