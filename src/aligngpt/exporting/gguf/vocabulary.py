"""The tokenizer of a model as llama.cpp reads it: byte-level BPE whose way of splitting words llama.cpp knows."""

import json
from dataclasses import dataclass
from typing import Any

from aligngpt.exporting.loading import ExportError

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
_USE = "expected byte-level BPE that splits words as GPT-2's, SmolLM's, Qwen 2's or Llama 3's does"


@dataclass(frozen=True)
class Vocabulary:
    """What goes into the fields `tokenizer.ggml.*`.

    Attributes:
        pre: llama.cpp's name for the way in which the tokenizer splits words.
        tokens, types: text and `gguf.TokenType` of each row of the embedding table.
        merges: pairs of tokens, most frequent first, separated by a space.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]


def vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        tokenizer: a fast tokenizer.
        rows: number of rows in the embedding table; those without a token are marked as unused.

    Raises:
        ExportError: llama.cpp would split texts into other tokens.
    """
    from gguf import TokenType

    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _pre_tokenizer(whole)
    texts: dict[int, str] = {number: text for text, number in tokenizer.get_vocab().items()}
    if len(tokenizer) > rows or max(texts) >= rows:
        raise ExportError(f"the tokenizer has {max(texts) + 1} tokens but the embedding table has {rows} rows")
    types = {number: int(TokenType.NORMAL) for number in texts}
    for added in whole["added_tokens"]:
        if any(added[option] for option in ("single_word", "lstrip", "rstrip")):
            raise ExportError(
                f"the tokenizer's token {added['content']!r} takes spaces or words around it into account, which "
                "llama.cpp does not; this model cannot be exported as GGUF"
            )
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    return Vocabulary(
        pre=pre,
        tokens=[texts.get(number, f"[PAD{number}]") for number in range(rows)],
        types=[types.get(number, int(TokenType.UNUSED)) for number in range(rows)],
        merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]],
    )


def _pre_tokenizer(whole: dict[str, Any]) -> str:
    model = whole["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or model.get("dropout"):
        raise ExportError(f"the tokenizer's model is {model['type']} or falls back on bytes; {_USE}")
    known = {
        "gpt-2": [("ByteLevel", True)],
        "smollm": [("Digits", True), ("ByteLevel", True)],
        "qwen2": [("Split", _QWEN), ("ByteLevel", False)],
        "llama-bpe": [("Split", _LLAMA3), ("ByteLevel", False)],
    }
    steps = [_step(one) for one in _parts(whole["pre_tokenizer"])]
    pre = next((name for name, expected in known.items() if steps == expected), None)
    # Texts in Unicode's composed form, as almost all are, are unchanged by NFC.
    normalisers = [one["type"] for one in _parts(whole["normalizer"])]
    if pre is None or normalisers not in ([], ["NFC"]):
        raise ExportError(f"the tokenizer splits words by {steps} after {normalisers or 'no'} normalisation; {_USE}")
    if bool(model.get("ignore_merges")) != (pre == "llama-bpe"):
        raise ExportError(f"the tokenizer's ignore_merges is {model.get('ignore_merges')}, unlike {pre}'s; {_USE}")
    return pre


def _parts(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return list(step.get("pretokenizers") or step.get("normalizers") or [])
    return [step]


def _step(step: dict[str, Any]) -> tuple[str, Any]:
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return kind, step["use_regex"]
    if kind == "Digits":
        return kind, step["individual_digits"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return kind, step["pattern"].get("Regex")
    return kind, step
