"""Tokens of foreign models: rows in the embedding table, generation settings, and our special tokens."""

import json
from pathlib import Path
from typing import Any

from aligngpt.model.foreign.checkpoint_formats import LayoutError
from aligngpt.model.processing import ALIGN_TOKEN, IMAGE_TOKEN

OUR_TOKENS = (IMAGE_TOKEN, ALIGN_TOKEN)
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_DECIDED_HERE = ("bos_token_id", "pad_token_id", "transformers_version", "_from_model_config")
_LENGTHS = ("max_length", "max_new_tokens")


def check_tokens(where: str, tokenizer: Any, rows: int) -> None:
    """Refuse a tokenizer with tokens that have no row in the embedding table, apart from our own and padding.

    Args:
        where: source of the tokenizer, for the message.
        tokenizer: the tokenizer, including `<image>` and `<align>`.
        rows: number of rows of the table.

    Raises:
        LayoutError: there are such tokens; the message states both sizes.
    """
    allowed = {*OUR_TOKENS, tokenizer.pad_token}
    vocabulary = tokenizer.get_vocab()
    above = sorted((index, token) for token, index in vocabulary.items() if index >= rows and token not in allowed)
    if above:
        own = sum(token not in OUR_TOKENS for token in vocabulary)
        named = ", ".join(repr(token) for _, token in above[:5]) + (" …" if len(above) > 5 else "")
        raise LayoutError(
            f"the tokenizer of {where} has {own} tokens but the embedding table has {rows} rows: {named} would have "
            "no trained row. Give the tokenizer that the model was trained with (--tokenizer)"
        )


def carried_generation(source: Path) -> dict[str, Any]:
    """The settings of a source's `generation_config.json` to keep; empty if it has none.

    Length limits are left to the caller.

    Raises:
        LayoutError: the file cannot be read.
    """
    path = source / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LayoutError(f"{path} cannot be read: {error}; download it again, or remove it") from error
    # Without sampling these have no effect, and transformers refuses to save them.
    idle = () if stored.get("do_sample") else _SAMPLING
    left_out = (*_DECIDED_HERE, *_LENGTHS, *idle)
    return {name: value for name, value in stored.items() if value is not None and name not in left_out}


def without_our_tokens(folder: Path) -> None:
    """Remove `<image>` and `<align>` from a tokenizer's files, to match a table without their rows."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        file = folder / name
        if file.is_file():
            content = _without(json.loads(file.read_text(encoding="utf-8")))
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without(content: Any) -> Any:
    """JSON content without the entries for our tokens, which are never in its base vocabulary."""
    if isinstance(content, list):
        return [_without(one) for one in content if not _is_ours(one)]
    if isinstance(content, dict):
        return {
            key: _without(value)
            for key, value in content.items()
            if key not in OUR_TOKENS and not (key != "chat_template" and _is_ours(value))
        }
    return content


def _is_ours(value: Any) -> bool:
    return (
        value in OUR_TOKENS
        if isinstance(value, str)
        else isinstance(value, dict) and value.get("content") in OUR_TOKENS
    )
