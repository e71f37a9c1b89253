"""Language models: any causal one of transformers that accepts embeddings and has a linear output layer."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from aligngpt.model.backbones import (
    LOADING_ERRORS,
    BackboneError,
    load,
    load_config,
    name_of_part,
    network_class,
    on_meta,
    some,
)
from aligngpt.progress import say

NOTEWORTHY_SHARE = 0.1
"""Norms, convolutions and the like are a smaller share of a language model than this."""


def load_language_model(
    source: str | Path, dtype: torch.dtype = torch.float32, *, weights: bool = True
) -> PreTrainedModel:
    """Load a causal language model whose body accepts embeddings and whose head is linear.

    Of a multimodal model (Gemma 3, Llama 4, LLaVA) the language model is taken out.

    Args:
        source: folder or hub name.
        dtype: dtype of the parameters.
        weights: False reads only the configuration; the parameters then have shapes but no values.

    Raises:
        BackboneError: the source cannot be loaded, or is not such a model.
    """
    whole = load_config(source, "language model")
    config = whole.get_text_config(decoder=True)
    if config is not whole:
        _check_separable(source, whole, config)
    try:
        missing: list[str] = []
        if not weights:
            model = on_meta(AutoModelForCausalLM, config, dtype)
        else:
            model, missing = load(AutoModelForCausalLM, source, dtype, config=config)
            if missing and config is not whole:
                model, missing = _out_of_larger(source, config, dtype)
    except LOADING_ERRORS as error:
        raise BackboneError(f"the language model {source} cannot be loaded: {error}") from error
    if missing:
        raise BackboneError(
            f"{source} has no weights for {some(missing)} of {type(model).__name__}; they would be left random. "
            "Give a complete causal language model, with its output layer"
        )
    body_of(model, source)
    try:
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        rows, width = embeddings.weight.shape
    # Some classes look for them in the wrong place, others have none.
    except (AttributeError, NotImplementedError) as error:
        raise BackboneError(
            f"{source}: {type(model).__name__} does not expose its embeddings ({error}); this kind of language "
            "model is not supported"
        ) from error
    if not isinstance(head, nn.Linear):
        raise BackboneError(f"{source}: its output layer is {type(head).__name__}, expected a linear layer")
    if rows != head.out_features:
        raise BackboneError(
            f"{source}: it has embeddings for {rows} tokens and an output layer for {head.out_features}; they must "
            "match"
        )
    if width != config.hidden_size:
        raise BackboneError(
            f"{source}: its embeddings are {width} wide and its layers {config.hidden_size}; they must match"
        )
    tied = head.weight is embeddings.weight
    if config is not whole:
        # A larger model's class may say the contrary by default, and its text part something else than the whole.
        model.config.tie_word_embeddings = tied
    elif config.tie_word_embeddings and not tied:
        # Enlarging the vocabulary would replace the output layer.
        raise BackboneError(
            f"{source}: its configuration says that the output layer shares the embeddings' weights "
            "(tie_word_embeddings), but its files hold other weights for it; set tie_word_embeddings to false in its "
            "config.json"
        )
    language: PreTrainedModel = model.eval()
    return language


def body_of(model: PreTrainedModel, source: str | Path = "") -> PreTrainedModel:
    """The part of a language model between its ids or embeddings and its output layer, as AutoModel builds it.

    Raises:
        BackboneError: it has no such part; the message names `source`.
    """
    kind = network_class(model.config)
    name = None if kind is None else name_of_part(model, kind)
    if not name:
        raise BackboneError(
            f"{source or type(model).__name__}: {type(model).__name__} does not contain the network that AutoModel "
            "builds from its configuration, so a saved model could not be loaded again; this kind of language model is "
            "not supported"
        )
    body: Any = model.get_submodule(name)
    return body


def note_stacked_weights(body: nn.Module, they: str) -> None:
    """Print a note if more than a tenth of a language model's weights are in no linear layer.

    A mixture's experts are matrices stacked in one parameter, which adapters and quantisation leave out.

    Args:
        body: the language model without its head; its linear layers may be quantised.
        they: what the note says about these weights: they …
    """
    linear = stacked = 0
    for module in body.modules():
        if isinstance(module, nn.Linear):
            # Not the size of its weight, which is smaller in 4 bits.
            linear += module.in_features * module.out_features
        elif isinstance(module, Conv1D):
            linear += module.weight.numel()
        elif not isinstance(module, nn.Embedding):
            stacked += sum(parameter.numel() for parameter in module.parameters(recurse=False))
    share = stacked / max(linear + stacked, 1)
    if share > NOTEWORTHY_SHARE:
        say(
            f"note: {share:.0%} of the language model's weights are in no linear layer, as a mixture's experts are; "
            f"they {they}"
        )


def _check_separable(source: str | Path, whole: PretrainedConfig, config: PretrainedConfig) -> None:
    """Prepare the configuration of a language model in a larger one for use alone.

    Raises:
        BackboneError: transformers has no class for it alone.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BackboneError(
            f"{source}: transformers has no language model class for {config.model_type}, the text part of "
            f"{whole.model_type}, alone; give a text-only language model"
        )
    # The larger model decides whether the output layer shares the embeddings.
    if (tied := getattr(whole, "tie_word_embeddings", None)) is not None:
        config.tie_word_embeddings = tied


def _out_of_larger(source: str | Path, config: PretrainedConfig, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """The language model in a larger model that is loaded in full, and the names of its missing tensors."""
    larger, missing = load(AutoModelForImageTextToText, source, dtype)
    model = on_meta(AutoModelForCausalLM, config, dtype)
    kind = type(body_of(model, source))
    inside, own = name_of_part(larger, kind), name_of_part(model, kind)
    if not inside or not own:
        raise BackboneError(
            f"{source}: {type(larger).__name__} has no {kind.__name__} that could be taken out; give a text-only "
            "language model"
        )
    body: Any = larger.get_submodule(inside)
    model.set_submodule(own, body)
    model.config = body.config
    model.set_output_embeddings(larger.get_output_embeddings())
    model.generation_config = larger.generation_config
    return model, [name for name in missing if name.startswith((f"{inside}.", "lm_head."))]
