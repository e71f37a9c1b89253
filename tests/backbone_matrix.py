"""Tries backbones: what a family must do in AlignGPT, or the sentence that refuses it; writes docs/backbones.md.

`python tests/backbone_matrix.py` tries every family in a few minutes and writes the page anew; with names as arguments
it tries these and prints what it finds.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from language_families import LANGUAGES, Language, save_language
from PIL import Image
from timm_towers import TIMM_TOWERS
from torch import Tensor
from tower_families import PATCH, PATCHES, SIDE, TOWERS, save_tower
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.examples import Example, Row
from aligngpt.errors import AlignGPTError
from aligngpt.model.assembling import assemble
from aligngpt.model.backbones import BackboneError
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.packing.attention import NAME
from aligngpt.model.packing.leaks import can_pack
from aligngpt.model.vision_towers import INSTEAD
from aligngpt.training.setup.freezing import freeze_all_but, part_of
from aligngpt.training.setup.row_attention import check_rows_can_branch

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
LONGEST = 128
STEPS = 4
NEAR = 5e-3
TEXTS = [
    "<image> what colour is it ?",
    "<image> how many are there in this picture and please describe the small red square ?",
]
STAGES: dict[str, tuple[Any, ...]] = {
    "stage 1": ("projector", "level_table"),
    "stage 2": ("language_model", "projector", "level_table", "gate"),
    "stage 2 with the tower": ("vision_tower", "language_model", "projector", "level_table", "gate"),
}

INTRODUCTION = """# Vision towers and language models

The families of vision towers and language models in transformers, each tried with AlignGPT as a tiny model with random
weights. "Works" means:

- the model is assembled with the tower's and the language model's own weights, and text alone gets the language model's
  own logits;
- it trains a step of each stage;
- saved and loaded again, it computes the same;
- prompts in a batch are answered as each alone.

Otherwise the table has the reason for which AlignGPT refuses it.

The page is written by `python tests/backbone_matrix.py`; `pytest -m slow tests/model/test_backbone_matrix.py` tries all
families again and compares. It is about transformers {version}, and says nothing about quality. A family that is not
listed is checked when a model is assembled: AlignGPT computes on a few tokens and a blank image, and refuses a backbone
whose results are wrong.
"""
TOWERS_SAY = """
## Vision towers

"in CLIP" means that the folder contains the larger model; the tower is taken out of it. Tokens before the patches
(class token, registers) are dropped.

| vision tower | works | |
|---|---|---|
"""
TIMM_SAYS = """
### Vision transformers of timm

A folder or hub name of a timm checkpoint (`config.json` with `architecture` and `pretrained_cfg`) is a vision tower
too, if timm is installed: `pip install 'aligngpt[timm]'`. Size, mean, standard deviation and interpolation are those of
`pretrained_cfg`; its `crop_pct` is not used. The images have the size of the checkpoint, which `image_size` cannot
change, and `vision_blocks` is refused if timm keeps the blocks in an `nn.Sequential` (ViT). These families are tried by
`pytest tests/model/test_timm_tower.py`; networks without blocks and square patches (ConvNeXt) are refused.

| vision tower of timm | works | |
|---|---|---|
"""
LANGUAGES_SAY = """
## Language models

"packs" means that `packing` puts samples into rows without padding, "pads" that it does not; "shares images" that
`questions_per_prefix` may be more than 1. The tiny models attend to windows of 12 tokens where their family has
windows, and so pad; a family with windows packs samples that are no longer than the window, if it packs otherwise. A
model that generates without a cache is slow. "in Gemma 3" means that the folder contains the larger model; the language
model is taken out of it.

Adapters (`lora`) and fewer bits (`lora.bits`, `--bits`) change linear layers only. Of a mixture of experts these are
little more than the attention; a note then says which share of the weights is left out.

| language model | works | |
|---|---|---|
"""


@dataclass(frozen=True)
class Outcome:
    """Whether a family works, and how; or the sentence that refuses it."""

    works: bool
    said: str

    def row(self, name: str) -> str:
        """The family's row of the table."""
        return f"| {name} | {'yes' if self.works else 'no'} | {self.said.replace('|', '/')} |"


def try_tower(name: str, work: Path) -> Outcome:
    """Try a vision tower with a Llama.

    Raises:
        AssertionError: it is assembled but something is wrong.
    """
    folder = work / "tower"
    saved = save_tower(folder, TOWERS[name])
    save_language(work / "llama", LANGUAGES["llama"])
    try:
        model, processor = assemble(folder, work / "llama", chat_template="plain")
    except BackboneError as error:
        return Outcome(False, _said(error, folder))
    tensors: dict[tuple[int, ...], list[Tensor]] = {}
    for tensor in saved.state_dict().values():
        tensors.setdefault(tuple(tensor.shape), []).append(tensor)
    for own, tensor in model.model.vision_tower.named_parameters():
        assert any(torch.equal(tensor, one) for one in tensors.get(tuple(tensor.shape), [])), (
            f"{own} is not the tower's"
        )
    check_tower_works(model, processor, work)
    return _works_with(model.config.leading_tokens)


def check_tower_works(model: Any, processor: Any, work: Path) -> None:
    """Check a model whose language model is in `work/llama`: patches, a step of each stage, reloading, answers.

    Raises:
        AssertionError: something is wrong.
    """
    _check_patches(model)
    _check_training(model, processor, work / "saved", STAGES)
    assert not _check_answers(model, processor, work / "llama")


def _works_with(leading: int) -> Outcome:
    return Outcome(True, "" if not leading else f"{leading} token{'s' * (leading > 1)} before the patches")


def try_language(name: str, work: Path) -> Outcome:
    """Try a language model with a CLIP tower.

    Raises:
        AssertionError: it is assembled but something is wrong.
    """
    folder = work / "language"
    save_language(folder, LANGUAGES[name])
    save_tower(work / "tower", TOWERS["CLIP"])
    try:
        model, processor = assemble(work / "tower", folder, chat_template="plain")
    except BackboneError as error:
        return Outcome(False, _said(error, folder))
    _check_text(model, folder, LANGUAGES[name])
    _check_training(model, processor, work / "saved", dict(list(STAGES.items())[:2]))
    cache = _check_answers(model, processor, folder)
    return Outcome(True, ", ".join([*_rows(model, processor.tokenizer.pad_token_id), *([cache] if cache else [])]))


def _said(error: BackboneError, folder: Path) -> str:
    text = str(error).replace(f"{folder}: ", "").replace(str(folder), "the folder").replace(f"; {INSTEAD}", "")
    return " ".join(text.split())


def _check_text(model: Any, folder: Path, language: Language) -> None:
    """Logits of text alone are those of transformers' own model."""
    auto: Any = AutoModelForImageTextToText if language.within else AutoModelForCausalLM
    reference = auto.from_pretrained(folder).eval()
    if hasattr(getattr(reference, "language_model", None), "lm_head"):
        # Llama 4: the larger model's own forward pass fails without images.
        reference = reference.language_model
    known = min(len(reference.get_input_embeddings().weight), *model.config.placeholder_ids)
    ids = torch.randint(3, known, (2, 40), generator=torch.Generator().manual_seed(3))
    words = slice(0, known)
    with torch.no_grad():
        expected = reference(input_ids=ids).logits[..., words]
        wrong = _difference(model(input_ids=ids).logits[..., words], expected)
    assert wrong <= 1e-4, f"logits of text are wrong by {wrong:.2g}"


def _check_patches(model: Any) -> None:
    """Changing a patch of the image changes the token of that patch most, at the layer next to the input."""
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    kept, model.config.vision_feature_layer = model.config.vision_feature_layer, 1
    right = 0
    with torch.no_grad():
        base = model.model.tower_features(pixels)
        for place in range(PATCHES):
            top, left = (PATCH * one for one in divmod(place, SIDE // PATCH))
            other = pixels.clone()
            other[..., top : top + PATCH, left : left + PATCH] += 2
            right += int((model.model.tower_features(other) - base)[0].norm(dim=-1).argmax()) == place
    model.config.vision_feature_layer = kept
    assert right >= 0.75 * PATCHES, f"{right} of {PATCHES} patches change their own token most"


def _check_training(model: Any, processor: Any, folder: Path, stages: Mapping[str, Sequence[Any]]) -> None:
    for stage, parts in stages.items():
        _check_step(model, processor.tokenizer.pad_token_id, stage, parts)
    model.zero_grad()
    model.requires_grad_(False).eval()
    _check_reload(model, processor, folder)


def _check_step(model: Any, pad: int, stage: str, parts: Sequence[Any]) -> None:
    """A step has a finite loss, that of its samples alone, and gradients in the parts that train and no others."""
    rows = rows_of(model, levels=stage == "stage 1")
    freeze_all_but(model, parts, levels_given=stage == "stage 1")
    model.train()
    loss = _loss(model, Collator(pad)(rows), rows)
    loss.backward()
    sums: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            sums[part_of(name)] = sums.get(part_of(name), 0.0) + float(parameter.grad.abs().sum())
    assert set(sums) == set(parts) and all(0 < one < float("inf") for one in sums.values()), (
        f"{stage}: gradients {sums}"
    )
    # In training, some towers move the positions of the patches at random.
    if "vision_tower" not in parts:
        with torch.no_grad():
            alone = sum(float(_loss(model, Collator(pad)([row]), rows)) for row in rows)
        found = float(loss.detach())
        assert abs(found - alone) <= 1e-4 * alone, f"{stage}: loss {found} in a batch, {alone} alone"
    model.zero_grad(set_to_none=True)


def rows_of(model: Any, *, levels: bool) -> list[Row]:
    """Rows of a batch: a text alone, one with an image, one with two."""
    config, generator = model.config, torch.Generator().manual_seed(0)

    def row(words: list[int], answer: list[int], images: int, level: int) -> Row:
        shown = [config.align_token_index, *[config.image_token_index] * config.image_seq_length * images] * (
            images > 0
        )
        opening = [1, *shown, *words]
        pixels = torch.randn(images, 3, SIDE, SIDE, generator=generator) if images else None
        given = level if levels and images else None
        return (Example([*opening, *answer], [IGNORE_INDEX] * len(opening) + answer, pixels, given),)

    return [
        row([5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 7], [8, 9], 1, 2),
        row([6], [7, 7, 7, 4], 0, 1),
        row([9, 10, 11, 12, 13], [5], 2, 8),
    ]


def _loss(model: Any, batch: dict[str, Any], rows: Sequence[Row]) -> Tensor:
    counted = sum(label != IGNORE_INDEX for row in rows for one in row for label in one.labels)
    loss: Tensor = model(**batch, num_items_in_batch=counted).loss
    return loss


def _inputs(processor: Any, texts: Sequence[str], first: int = 0) -> dict[str, Any]:
    rng = [np.random.default_rng(first + number) for number in range(len(texts))]
    images = [Image.fromarray(one.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for one in rng]
    return dict(processor(images=images, text=list(texts), padding=True, return_tensors="pt"))


def _check_reload(model: Any, processor: Any, folder: Path) -> None:
    with torch.no_grad():
        expected = model(**_inputs(processor, TEXTS)).logits
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    loaded, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], f"reloading lacks {info['missing_keys']}"
    with torch.no_grad():
        found = loaded.eval()(**_inputs(AutoProcessor.from_pretrained(folder), TEXTS)).logits
    wrong = _difference(found, expected)
    assert wrong <= 1e-5, f"logits of the reloaded model are wrong by {wrong:.2g}"


def _wrong_by(model: Any, processor: Any, *, use_cache: bool) -> float:
    """Largest relative difference of the logits of answers in a batch from those of whole sequences without a cache."""
    options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "use_cache": use_cache}
    batch = _inputs(processor, TEXTS)
    together = model.generate(**batch, **options, output_logits=True, return_dict_in_generate=True)
    new = together.sequences[:, batch["input_ids"].shape[1] :]
    wrong = 0.0
    for row, text in enumerate(TEXTS):
        alone = _inputs(processor, [text], row)
        prompt = alone["input_ids"].shape[1]
        ids = torch.cat([alone["input_ids"], new[row : row + 1, :-1]], dim=1)
        asked = (torch.arange(ids.shape[1]) < prompt).unsqueeze(0)
        with torch.no_grad():
            expected = model(
                input_ids=ids, pixel_values=alone["pixel_values"], instruction_mask=asked, use_cache=False
            ).logits[0, prompt - 1 :]
        wrong = max(wrong, _difference(torch.stack(together.logits, dim=1)[row], expected))
    return wrong


def _check_answers(model: Any, processor: Any, folder: Path) -> str:
    """Answers are those of each prompt alone; returns what there is to say about the cache, if anything."""
    with_cache = bool(model.generation_config.use_cache)
    wrong = _wrong_by(model, processor, use_cache=with_cache)
    said = "" if with_cache else "generates without a cache"
    if with_cache and wrong > NEAR:
        own = _wrong_alone(folder)
        assert own > NEAR / 5, f"answers are wrong by {wrong:.2g}, and with transformers alone by {own:.2g}"
        said = "with a cache, logits are slightly off, as in transformers alone"
        wrong = _wrong_by(model, processor, use_cache=False)
    assert wrong <= NEAR, f"answers are wrong by {wrong:.2g}"
    return said


def _wrong_alone(folder: Path) -> float:
    """How far transformers' own language model is from itself with a cache, relative."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    wrong = 0.0
    for length in (6, 20, 36):
        ids = torch.randint(3, 40, (1, length), generator=torch.Generator().manual_seed(0))
        options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
        out = model.generate(input_ids=ids, **options, output_logits=True, return_dict_in_generate=True)
        with torch.no_grad():
            whole = model(input_ids=out.sequences[:, :-1], use_cache=False).logits[0, -STEPS:]
        wrong = max(wrong, _difference(torch.cat(out.logits), whole))
    return wrong


def _rows(model: Any, pad: int) -> Iterator[str]:
    """How rows are built; what is said to be possible is compared with each sample alone."""
    language, rows = model.model.language_model, rows_of(model, levels=False)
    branches = branches_of(model)
    stage: Any = SimpleNamespace(questions_per_prefix=3, max_length=LONGEST)
    packs = can_pack(language, LONGEST)
    try:
        check_rows_can_branch(model, stage)
        shares = True
    except AlignGPTError:
        shares = False
    for batch in [rows] * packs + [[branches]] * (packs and shares):
        alone = sum(float(_loss(model, Collator(pad)([(one,)]), batch)) for row in batch for one in row)
        with _packed(model):
            found = float(_loss(model, Collator(pad, packed=True)(batch), batch))
        assert abs(found - alone) <= 1e-4 * alone, f"packed loss {found}, {alone} alone"
    if shares:
        alone = sum(float(_loss(model, Collator(pad)([(one,)]), [branches])) for one in branches)
        found = float(_loss(model, Collator(pad)([branches]), [branches]))
        assert abs(found - alone) <= 1e-4 * alone, f"loss {found} of questions that share an image, {alone} alone"
    yield "packs" if packs else "pads"
    if shares:
        yield "shares images"


def branches_of(model: Any) -> Row:
    """Three questions about one image, its level given."""
    first = rows_of(model, levels=True)[0][0]
    shown = len(first.input_ids) - 13
    examples = []
    for words, answer in (([5, 9, 12, 7], [8, 3]), ([5, 9], [4, 9, 10]), ([12, 5], [6])):
        ids = [*first.input_ids[:shown], *words, *answer]
        labels = [IGNORE_INDEX] * (len(ids) - len(answer)) + answer
        examples.append(Example(ids, labels, first.pixel_values, 5))
    return tuple(examples)


@contextlib.contextmanager
def _packed(model: Any) -> Iterator[None]:
    kind = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": NAME})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": kind})


def _difference(found: Tensor, expected: Tensor) -> float:
    finite = expected.isfinite()
    assert finite.any(), "no logit is finite"
    return float((found - expected)[finite].abs().max() / expected[finite].abs().max())


def page(towers: Mapping[str, Outcome], languages: Mapping[str, Outcome]) -> str:
    """The page docs/backbones.md."""
    text = INTRODUCTION.replace("{version}", transformers.__version__)
    text += TOWERS_SAY + "".join(one.row(name) + "\n" for name, one in towers.items())
    text += TIMM_SAYS + "".join(_works_with(one.leading).row(name) + "\n" for name, one in TIMM_TOWERS.items())
    return text + LANGUAGES_SAY + "".join(one.row(name) + "\n" for name, one in languages.items())


def main(names: Sequence[str]) -> None:
    """Try the named families and print the outcomes; without names try all and write the page."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found: list[dict[str, Outcome]] = []
    faults = 0
    for families, attempt in ((TOWERS, try_tower), (LANGUAGES, try_language)):
        found.append({})
        for name in families:
            if names and name not in names:
                continue
            with tempfile.TemporaryDirectory() as work:
                try:
                    found[-1][name] = attempt(name, Path(work))
                    print(found[-1][name].row(name), flush=True)
                # Anything may go wrong in a family that is not refused.
                except Exception as error:
                    faults += 1
                    print(f"FAULT {name}: {type(error).__name__}: {' '.join(str(error).split())[:600]}", flush=True)
    if faults:
        sys.exit(f"{faults} families neither work nor are refused; mend them first")
    if not names:
        PAGE.write_text(page(*found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
