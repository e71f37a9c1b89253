"""What a stage leaves when it ends: projector and level table, a whole model, or adapters beside their model."""

import torch

from aligngpt.files import atomic_folder
from aligngpt.model.adapters import save_adapter
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.training.recipe import LoraRecipe, Recipe
from aligngpt.training.setup.loading import load_model
from aligngpt.training.setup.lora import merge_lora
from aligngpt.training.stage import base_folder, model_folder


def export_model(
    recipe: Recipe,
    model: AlignGPTForConditionalGeneration | None,
    processor: AlignGPTProcessor,
    trained: dict[str, torch.Tensor],
) -> None:
    """Leave what instruction tuning made, as a folder for `from_pretrained` or as adapters.

    Args:
        recipe: of the run.
        model: the trained one; None where this process holds no such thing, or holds the frozen part of it in less
            precision than it came in. It is then loaded anew, and gets the trained tensors.
        processor: saved beside it.
        trained: the parameters that trained, by name; of no use where `model` is given.
    """
    assert recipe.instruct is not None
    lora = recipe.instruct.lora
    if lora is not None and not lora.merge:
        _export_adapter(recipe, lora, trained)
        return
    if model is None:
        model, processor = load_model(recipe, "instruct")
        model.load_state_dict(trained, strict=False)
        merge_lora(model)
    with atomic_folder(model_folder(recipe)) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)


def _export_adapter(recipe: Recipe, lora: LoraRecipe, trained: dict[str, torch.Tensor]) -> None:
    """Leave what instruction tuning trained as an adapter folder, and beside it the model that this belongs to."""
    assert recipe.instruct is not None
    instruct = recipe.instruct.model_copy(update={"lora": None})
    base, processor = load_model(recipe.model_copy(update={"instruct": instruct}), "instruct")
    with atomic_folder(base_folder(recipe)) as temporary:
        base.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    with atomic_folder(model_folder(recipe)) as temporary:
        save_adapter(
            temporary,
            base,
            processor,
            trained,
            base_folder=base_folder(recipe),
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
        )
