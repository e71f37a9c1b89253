"""Activation checkpointing by layer: some layers of the language model are recomputed, the others keep what they saved.

transformers counts the layers of the whole model, those of the vision tower first, and recomputes every n-th.
"""

from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.training.recipe import RecipeError, StageRecipe
from aligngpt.training.setup.compiling import layers_of


def checkpointing_arguments(stage: StageRecipe) -> dict[str, Any]:
    """What `TrainingArguments` needs to recompute the layers that a stage names."""
    every = int(stage.gradient_checkpointing)
    return {"activation_checkpointing": every > 0} | (
        {"activation_checkpointing_kwargs": {"every_n_layers": every}} if every > 1 else {}
    )


def recomputed_layers(model: AlignGPTForConditionalGeneration, every: bool | int) -> list[bool]:
    """Whether each layer of the language model, from the first to the last, is recomputed in the backward pass.

    Args:
        model: with or without values in its weights.
        every: the recipe's `gradient_checkpointing`.

    Raises:
        RecipeError: a number greater than 1 is given, and the language model can only recompute all layers or none.
    """
    if int(every) < 2:
        return [bool(every)] * int(model.config.get_text_config().num_hidden_layers)
    layers = layers_of(model)
    counted = [id(one) for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    number = {key: place for place, key in enumerate(counted)}
    if any(id(layer) not in number for layer in layers):
        kind = model.config.get_text_config().model_type
        raise RecipeError(
            f"gradient_checkpointing is {every}, but the language model {kind} recomputes all of its layers or none; "
            "set it to true or false"
        )
    return [number[id(layer)] % int(every) == 0 for layer in layers]
