"""How the language model attends over the rows of a stage: packed, padded, or branching after a shared image."""

import torch

from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.packing.attention import NAME as PACKED_ATTENTION
from aligngpt.model.packing.leaks import can_pack, computes_as_alone, shortest_window
from aligngpt.model.packing.pieces import PROBE, Pieces
from aligngpt.model.packing.self_check import kernel_trouble
from aligngpt.model.packing.ways import dense_mask
from aligngpt.model.padded_attention import NAME as PADDED_ATTENTION
from aligngpt.progress import warn
from aligngpt.training.distributed.processes import is_main_process
from aligngpt.training.recipe import Recipe, RecipeError, StageRecipe


def check_rows_can_branch(model: AlignGPTForConditionalGeneration, stage: StageRecipe) -> None:
    """Check that the language model can process padded rows of several samples.

    Such rows need attention that can mask arbitrary positions and covers the whole length of a sample. This is tested
    on a few tokens: a recurrent language model, or one that uses distances within the row, gives different outputs.

    Raises:
        RecipeError: rows have several samples, and the language model does not support them.
    """
    if stage.questions_per_prefix == 1:
        return
    config = model.config.get_text_config()
    window = shortest_window(config)
    if model._is_stateful:
        what = "has a recurrent state instead of attention"
    elif window is not None and window < stage.max_length:
        what = f"attends over {window} tokens only"
    elif not _branches_as_alone(model):
        what = "gives different outputs for questions that share an image than for each question alone"
    else:
        return
    raise RecipeError(
        f"questions_per_prefix is {stage.questions_per_prefix}, but the language model {config.model_type} {what}; "
        "set it to 1"
    )


def _branches_as_alone(model: AlignGPTForConditionalGeneration) -> bool:
    pieces = PROBE[:3]
    mask = dense_mask(Pieces(pieces), None, model.device)[None, None]

    def run(ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        return model.model(input_ids=ids, use_cache=False, **inputs).last_hidden_state

    try:
        return computes_as_alone(
            model.model.language_model,
            pieces,
            together=lambda ids, positions: run(ids, attention_mask=mask, position_ids=positions),
            reference=run,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # Language models that do not accept such a mask raise all kinds of exceptions.
        return False


def decide_packing(
    model: AlignGPTForConditionalGeneration,
    recipe: Recipe,
    stage: StageRecipe,
    device: torch.device,
    dtype: torch.dtype,
) -> bool:
    """Whether the rows of a stage are packed; then `pack_rows` prepares the model.

    Args:
        model: with its weights on any device.
        recipe: of the run.
        stage: its settings.
        device: that training runs on.
        dtype: that training computes in.

    Raises:
        RecipeError: the recipe asks for packed rows, but the language model or the device does not support them.
    """
    if stage.packing == "padded" or (stage.packing == "auto" and recipe.model.attention):
        return False
    language_model = model.model.language_model
    kind = language_model.config.model_type
    if not can_pack(language_model, stage.max_length):
        what = f"the language model {kind} does not support it"
    elif trouble := kernel_trouble(language_model.config, device, dtype):
        what = f"attention over packed rows {trouble} on this {device.type} device with torch {torch.__version__}"
        if stage.packing == "auto" and is_main_process():
            warn(f"rows are padded: {what}")
    else:
        return True
    if stage.packing == "packed":
        raise RecipeError(f"packing is packed, but {what}; set it to auto")
    return False


def pack_rows(model: AlignGPTForConditionalGeneration) -> None:
    """Set the language model's attention for packed rows."""
    model.set_attn_implementation({"text_config": PACKED_ATTENTION})


def keep_masks(model: AlignGPTForConditionalGeneration, device: torch.device) -> None:
    """On CUDA, spare padded rows the look at their mask that transformers would wait for the GPU for."""
    if device.type == "cuda" and model.config.get_text_config()._attn_implementation == "sdpa":
        model.set_attn_implementation({"text_config": PADDED_ATTENTION})
