"""Writes a model as a plain LLaVA folder, and compares what transformers makes of it with the model itself."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from aligngpt.exporting.chat_template import PROBES, self_contained
from aligngpt.exporting.engines import Engine, plain_model, refused_by_vllm
from aligngpt.exporting.folding import Fold, chosen_fold, fold
from aligngpt.exporting.loading import NOTES_FILE, ExportError, Loaded, check_target, load_model
from aligngpt.files import atomic_folder
from aligngpt.model.adapters import is_adapter
from aligngpt.model.processing import AlignGPTProcessor

TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-2}
"""Largest difference of two logits that count as equal, relative to the largest logit, by precision of the weights."""

TOLERANCE_ELSE = 5e-2

_CARD = """\
# {name}

A plain LLaVA (`LlavaForConditionalGeneration`) made by `aligngpt export` from `{source}`, an
[AlignGPT](https://arxiv.org/abs/2405.14129). {alignment} It is subject to the licences of the models it was made from.

Give it conversations rendered with its own chat template, which writes BOS{and_align}, and tokenize them without adding
special tokens.

{readers}
"""


@dataclass(frozen=True)
class Export:
    """An exported folder.

    Attributes:
        fold: the alignment embedding in it, `level:K`, `mean` or `average`; None for a model without one.
        parameters: number of parameters.
        engines: what reads the folder: for each program None, or why it cannot.
        difference: the largest difference of logits between the model and the folder as transformers reads it,
            relative to the largest logit.
    """

    fold: str | None
    parameters: int
    engines: Mapping[Engine, str | None]
    difference: float


def export_llava(
    source: str | Path,
    out: Path,
    *,
    chosen: str | None = None,
    engine: Engine = "transformers",
    base: str | Path | None = None,
) -> Export:
    """Write a model as a folder that `LlavaForConditionalGeneration` and `LlavaProcessor` read without this package.

    Its answers are those of the model with one fixed alignment embedding. Before the folder appears, transformers loads
    it, and its token ids and logits for three conversations are compared with the model's.

    Args:
        source: model folder, hub name or adapter folder.
        out: the output folder; it appears only once it is complete. An earlier export there is replaced.
        chosen: `global`, `average`, `mean` or `level:K`, see `chosen_fold`.
        engine: the program that must be able to read the folder.
        base: base model of an adapter folder; the one it names when None.

    Raises:
        ExportError: the model cannot be exported, or not for `engine`; or what transformers reads differs.
        AdapterError: an adapter folder or its base cannot be used.
    """
    check_target(out, source, base)
    loaded = load_model(source, base)
    model, processor = loaded
    kept = chosen_fold(chosen, model.config)
    empty = plain_model(model.config)
    uses_cache = model.generation_config.use_cache is not False
    vllm = refused_by_vllm(empty.config, model.config.image_side, uses_cache=uses_cache)
    if engine == "vllm" and vllm is not None:
        raise ExportError(
            f"vLLM cannot run {source}: {vllm}; transformers can (--engine transformers), and so can aligngpt ask and "
            "aligngpt evaluate"
        )
    plain = plain_processor(processor)
    expected = _logits_of_ours(loaded, kept)
    with atomic_folder(out) as folder:
        # Not all versions of transformers read the names that this one uses in memory (of DINOv2 for one);
        # `save_pretrained` writes those that the published weights have.
        empty.save_pretrained(folder, state_dict=fold(model, kept))
        plain.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        # The folder is read back below; two copies of a large model may not fit into memory.
        del model, loaded
        parameters, difference = _compare(folder, expected)
        done = Export(None if kept is None else str(kept), parameters, {"transformers": None, "vllm": vllm}, difference)
        _describe(folder, out.name, source, done)
    return done


def plain_processor(processor: AlignGPTProcessor) -> LlavaProcessor:
    """A `LlavaProcessor` whose chat template writes `<align>`; it shares no tokenizer with `processor`."""
    template = self_contained(processor)
    words = copy.deepcopy(processor.tokenizer)
    # Some servers read the tokenizer's template rather than the processor's.
    words.chat_template = template
    return LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=words,
        patch_size=processor.patch_size,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        chat_template=template,
        image_token=processor.image_token,
        num_additional_image_tokens=processor.num_additional_image_tokens,
    )


@dataclass(frozen=True)
class _Expected:
    """For each probe, the prompt's token ids `(1, length)` and the next token's logits `(vocabulary,)`."""

    ids: list[Tensor]
    logits: list[Tensor]


def _pictures(count: int) -> list[Image.Image] | None:
    made = [Image.linear_gradient("L").rotate(90 * place).convert("RGB") for place in range(count)]
    return made or None


def _images_in(messages: list[dict[str, Any]]) -> int:
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def _inputs(processor: Any, messages: list[dict[str, Any]], dtype: torch.dtype) -> dict[str, Tensor]:
    """A conversation as a processor renders and tokenizes it, BOS added only if the text does not begin with it."""
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    bos = processor.tokenizer.bos_token
    inputs = dict(
        processor(
            images=_pictures(_images_in(messages)),
            text=[text],
            add_special_tokens=not (bos and text.startswith(bos)),
            return_tensors="pt",
        )
    )
    inputs.pop("token_type_ids", None)
    return {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}


def _logits_of_ours(loaded: Loaded, kept: Fold | None) -> _Expected:
    """Our model's logits with the chosen alignment embedding."""
    model, processor = loaded
    expected = _Expected([], [])
    own_mode = model.config.alignment
    try:
        if kept is not None and isinstance(kept.choice, str):
            model.config.alignment = kept.choice
        for messages in PROBES:
            inputs = _inputs(processor, messages, model.dtype)
            if kept is not None and isinstance(kept.choice, int):
                inputs["alignment_level"] = torch.tensor([kept.choice])
            with torch.inference_mode():
                logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
            expected.ids.append(inputs["input_ids"])
            expected.logits.append(logits.float())
    finally:
        model.config.alignment = own_mode
    return expected


def _compare(folder: Path, expected: _Expected) -> tuple[int, float]:
    """Load the folder with transformers' classes and compare it; returns its parameters and the largest difference.

    Raises:
        ExportError: weights are missing or left over, or token ids or logits differ.
    """
    model, loading = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
    model.eval()
    if stray := sorted({*loading["missing_keys"], *loading["unexpected_keys"]}):
        raise ExportError(
            f"LlavaForConditionalGeneration has other weights than this model, {len(stray)}, such as {stray[0]}; "
            "this vision tower or language model cannot be exported"
        )
    processor = LlavaProcessor.from_pretrained(folder)
    tolerance = TOLERANCE.get(model.dtype, TOLERANCE_ELSE)
    largest = 0.0
    for messages, ids, logits in zip(PROBES, expected.ids, expected.logits, strict=True):
        inputs = _inputs(processor, messages, model.dtype)
        if not torch.equal(inputs["input_ids"], ids):
            raise ExportError(
                f"LlavaProcessor makes other tokens of a conversation than this model's processor: "
                f"{inputs['input_ids'].tolist()}, expected {ids.tolist()}; this model cannot be exported"
            )
        with torch.inference_mode():
            found = model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        words = logits.isfinite()
        difference = ((found - logits)[words].abs().max() / logits[words].abs().max().clamp(min=1e-6)).item()
        if not difference <= tolerance or not words[found.argmax()]:
            raise ExportError(
                f"LlavaForConditionalGeneration computes other logits than this model: they differ by "
                f"{difference:.2g} of the largest, {tolerance} at most expected; this model cannot be exported"
            )
        largest = max(largest, difference)
    return model.num_parameters(), largest


def _describe(folder: Path, name: str, source: str | Path, done: Export) -> None:
    kind = "an adapter and its base" if is_adapter(source) else "a model"
    notes = {"from": Path(source).name, "kind": kind, "transformers": transformers.__version__} | asdict(done)
    (folder / NOTES_FILE).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
    if done.fold is None:
        alignment = "It has no alignment embedding."
    else:
        alignment = f"Its alignment embedding is the same for every image and question: `{done.fold}`."
    card = _CARD.format(
        name=name,
        source=Path(source).name,
        alignment=alignment,
        and_align="" if done.fold is None else " and, for a conversation with an image, `<align>`",
        readers="\n".join(_read_by(done)),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _read_by(done: Export) -> list[str]:
    vllm = done.engines["vllm"]
    lines = [
        f"- transformers {transformers.__version__} read it: same token ids, logits equal up to {done.difference:.1e} "
        "of the largest."
    ]
    lines.append(
        "- vLLM: should read it, by its source code; this was not tried."
        if vllm is None
        else f"- vLLM does not: {vllm}."
    )
    return lines
