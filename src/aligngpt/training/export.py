"""The output of instruction tuning: a complete model folder, or adapters and their base model."""

import torch

from aligngpt.files import atomic_folder
from aligngpt.model.adapters import save_adapter
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.training.recipe import LoraRecipe, Recipe
from aligngpt.training.setup.loading import load_model
from aligngpt.training.setup.lora import merge_lora
from aligngpt.training.stage import base_folder, model_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""The precisions that `save_dtype` names."""


def export_model(
    recipe: Recipe,
    model: AlignGPTForConditionalGeneration | None,
    processor: AlignGPTProcessor,
    trained: dict[str, torch.Tensor],
) -> None:
    """Write the result of instruction tuning, as a folder for `from_pretrained` or as adapters.

    With a `save_dtype` other than `trained`, the weights of a folder for `from_pretrained` are converted to it.

    Args:
        recipe: of the run.
        model: the trained model; None if this process does not hold it whole, or holds its frozen parameters in lower
            precision than their source. The model is then loaded again and the trained tensors are put into it.
        processor: saved with the model.
        trained: the trained parameters, by name; unused if `model` is given.
    """
    assert recipe.instruct is not None
    lora = recipe.instruct.lora
    if lora is not None and not lora.merge:
        _export_adapter(recipe, lora, trained)
        return
    if model is None:
        model, processor = load_model(recipe, "instruct")
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.data = parameter.data.to(trained[name].dtype)
        model.load_state_dict(trained, strict=False)
        merge_lora(model)
    if recipe.instruct.save_dtype != "trained":
        model.to(DTYPES[recipe.instruct.save_dtype])
    with atomic_folder(model_folder(recipe)) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)


def _export_adapter(recipe: Recipe, lora: LoraRecipe, trained: dict[str, torch.Tensor]) -> None:
    """Write the trained parameters as an adapter folder, and the base model they belong to next to it."""
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
