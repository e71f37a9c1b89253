"""What others saved about tokens: that each has a row of the embedding table, how answers end, what is special."""

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
    """Refuse a tokenizer with tokens that the embedding table has no row for, our own and padding aside.

    Args:
        where: what the tokenizer was loaded from.
        tokenizer: with `<image>` and `<align>`.
        rows: of the table.

    Raises:
        LayoutError: there are such tokens; the message has both numbers.
    """
    allowed = {*OUR_TOKENS, tokenizer.pad_token}
    vocabulary = tokenizer.get_vocab()
    above = sorted((index, token) for token, index in vocabulary.items() if index >= rows and token not in allowed)
    if above:
        own = sum(token not in OUR_TOKENS for token in vocabulary)
        named = ", ".join(repr(token) for _, token in above[:5]) + (" …" if len(above) > 5 else "")
        raise LayoutError(
            f"the tokenizer of {where} has {own} tokens and the embedding table {rows} rows: {named} would have no row "
            "that was trained. Give the tokenizer that the model was trained with (--tokenizer)"
        )


def carried_generation(source: Path) -> dict[str, Any]:
    """The settings of a source's `generation_config.json` that go with the model; empty where it has none.

    How long an answer may be is the caller's to say.

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
    # Without sampling these say nothing, and transformers refuses to write them.
    idle = () if stored.get("do_sample") else _SAMPLING
    left_out = (*_DECIDED_HERE, *_LENGTHS, *idle)
    return {name: value for name, value in stored.items() if value is not None and name not in left_out}


def without_our_tokens(folder: Path) -> None:
    """Take `<image>` and `<align>` out of a tokenizer's files: a table without their rows is beside them."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        file = folder / name
        if file.is_file():
            content = _without(json.loads(file.read_text(encoding="utf-8")))
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without(content: Any) -> Any:
    """A piece of JSON without entries that are one of our tokens; its vocabulary never has them."""
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
