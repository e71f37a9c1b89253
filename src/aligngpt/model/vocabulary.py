"""The tokenizer of a language model, and its vocabulary with room for the placeholders."""

from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, AutoTokenizer, PreTrainedModel

from aligngpt.hub_names import local_or_hub
from aligngpt.model.backbones import LOADING_ERRORS, BackboneError
from aligngpt.model.processing import ALIGN_TOKEN, IMAGE_TOKEN


def load_tokenizer(source: str | Path, *, with_align: bool) -> Any:
    """The language model's tokenizer with the special tokens `<image>` and, if `with_align`, `<align>`.

    Raises:
        BackboneError: the tokenizer is missing or cannot be loaded.
    """
    local_or_hub(source, "the tokenizer of", BackboneError)
    try:
        # Passed here because a padding side set later is not saved.
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise BackboneError(f"the tokenizer of {source} cannot be loaded: {error}") from error
    names = [IMAGE_TOKEN, ALIGN_TOKEN] if with_align else [IMAGE_TOKEN]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def grow_vocabulary(language: PreTrainedModel, size: int) -> None:
    """Resize the vocabulary to at least `size` tokens; new rows of embedding and head hold the mean of the old ones.

    The embedding rows come from `new_rows`.

    Raises:
        BackboneError: the vocabulary cannot be enlarged.
    """
    embeddings: Any = language.get_input_embeddings()
    old = len(embeddings.weight)
    if size <= old:
        return
    try:
        language.resize_token_embeddings(size, mean_resizing=False)
    # It initialises new rows with the model's own code, which may raise anything.
    except Exception as error:
        raise BackboneError(
            f"{type(language).__name__} cannot be given {size - old} more tokens ({error}); this kind of language "
            "model is not supported"
        ) from error
    if embeddings.weight.is_meta:
        return
    with torch.no_grad():
        head: Any = language.get_output_embeddings()
        head.weight[old:] = head.weight[:old].float().mean(dim=0).to(head.weight.dtype)
        if head.bias is not None:
            head.bias[old:] = head.bias[:old].mean()
        embeddings.weight[old:] = new_rows(embeddings.weight[:old], size - old)


def new_rows(table: torch.Tensor, count: int, *, apart: bool = True) -> torch.Tensor:
    """Rows for new tokens, `(count, hidden)`: the mean of the existing ones, `(tokens, hidden)`.

    With `apart`, a little fixed-seed noise (1 % of the standard deviation) makes them distinct: if a caller passes
    embeddings instead of ids, placeholders are identified by their embeddings.
    """
    spread, mean = torch.std_mean(table.float(), dim=0)
    noise = (
        torch.randn(count, len(mean), generator=torch.Generator().manual_seed(0)) if apart else torch.zeros(count, 1)
    )
    return (mean + 0.01 * spread * noise).to(table.dtype)
