"""Compare this package with values from the published AlignGPT code: `python tests/parity/check_golden.py FOLDER`.

The folder contains a checkpoint as saved by the original code (`original_checkpoint/`), its vision tower's
configuration (`vision_tower/`), and inputs and outputs (`cases.safetensors`). Every comparison is printed; the first
that exceeds its tolerance ends the program with exit code 1. Other sets of the same form work too, whatever their
sizes.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from aligngpt.alignment.module import mean_text_embedding
from aligngpt.model.foreign.checkpoint_formats import OriginalLayout, layout_of
from aligngpt.model.foreign.conversion import convert_weights, our_shapes
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.vision_towers import load_vision_tower

IGNORE_INDEX, ORIGINAL_IMAGE = -100, -200
TOLERANCES = {"logits": 1e-4, "gate weights": 1e-5, "loss": 1e-5, "gradients": 1e-4, "features": 1e-5}


@dataclass(frozen=True)
class Comparison:
    """One compared quantity: the difference between ours and theirs, and the tolerance."""

    case: str
    what: str
    difference: float

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance; NaN never is."""
        return self.difference <= TOLERANCES.get(self.what, 0.0)


def load_model(folder: Path) -> AlignGPTForConditionalGeneration:
    """The converted original checkpoint, with two more rows in the vocabulary: `<image>` and `<align>`."""
    source = folder / "original_checkpoint"
    layout = layout_of(json.loads((source / "config.json").read_text()))
    tower = load_vision_tower(folder / "vision_tower", pad_images=layout.pads_images)
    size = layout.text_config()["vocab_size"]
    config = layout.configuration(tower, our_shapes(source, layout), size + 2)
    config.image_token_index, config.align_token_index = size, size + 1
    with TemporaryDirectory() as out:
        convert_weights(source, Path(out), layout, config, tower=None)
        config.save_pretrained(out)
        model, loading = AlignGPTForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval()


def renamed(name: str) -> str:
    """Our name for a parameter of the original checkpoint."""
    return OriginalLayout({}).rename(name) or name


def our_inputs(cases: dict[str, Tensor], case: str, model: AlignGPTForConditionalGeneration) -> dict[str, Tensor]:
    """The inputs of a case for our model: `<align>` at position 1, image tokens expanded, padded on the right."""
    config, mine = model.config, {name[len(case) + 1 :]: t for name, t in cases.items() if name.startswith(case + ".")}
    rows: list[tuple[list[int], list[int]]] = []
    images = []
    for row, ids in enumerate(mine["input_ids"]):
        length = int(mine["attention_mask"][row].sum()) if "attention_mask" in mine else len(ids)
        labels = mine["labels"][row] if "labels" in mine else torch.full_like(ids, IGNORE_INDEX)
        new_ids, new_labels = [], []
        has_image = ORIGINAL_IMAGE in ids.tolist()
        for place, (token, label) in enumerate(zip(ids[:length].tolist(), labels[:length].tolist(), strict=True)):
            count = config.image_seq_length if token == ORIGINAL_IMAGE else 1
            new_ids += [config.image_token_index if token == ORIGINAL_IMAGE else token] * count
            new_labels += [IGNORE_INDEX if token == ORIGINAL_IMAGE else label] * count
            if place == 0 and has_image:
                new_ids.append(config.align_token_index)
                new_labels.append(IGNORE_INDEX)
        rows.append((new_ids, new_labels))
        if has_image:
            images.append(int(mine["image_index"][row]))
    longest = max(len(ids) for ids, _ in rows)

    def padded(index: int, value: int) -> Tensor:
        return torch.tensor([row[index] + [value] * (longest - len(row[index])) for row in rows])

    inputs = {"input_ids": padded(0, 0), "pixel_values": cases["pixel_values"][images]}
    inputs["attention_mask"] = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    if "labels" in mine:
        inputs["labels"] = padded(1, IGNORE_INDEX)
    if "alignment_level" in mine:
        inputs["alignment_level"] = mine["alignment_level"] + 1
    return inputs


def compare_parts(model: AlignGPTForConditionalGeneration, cases: dict[str, Tensor]) -> Iterator[Comparison]:
    """Compare vision tower, projector and alignment module separately."""
    with torch.no_grad():
        features = model.model.get_image_features(cases["pixel_values"]).pooler_output
        yield Comparison("vision", "features", apart(torch.stack(list(features)), cases["vision.projected"]))
        module: Any = model.model.alignment
        text = mean_text_embedding(cases["module.text_embeds"], cases["module.text_mask"])
        aligned = module(cases["module.image_embeds"], text)
        yield Comparison("module", "gate weights", apart(aligned.weights, cases["module.gate_weights"]))
        yield Comparison("module", "features", apart(module.combine(cases["module.weights"]), cases["module.combined"]))


def compare_training(
    model: AlignGPTForConditionalGeneration, cases: dict[str, Tensor], case: str
) -> Iterator[Comparison]:
    """Compare logits at non-padding positions, gate weights, loss and gradients of a labelled case."""
    inputs = our_inputs(cases, case, model)
    model.zero_grad()
    model.requires_grad_(True)
    out = model(**inputs)
    out.loss.backward()
    expected = float(cases[f"{case}.loss"])
    yield Comparison(case, "loss", abs(out.loss.item() - expected) / abs(expected))
    if f"{case}.gate_weights" in cases:
        has_image = (inputs["input_ids"] == model.config.align_token_index).any(dim=-1)
        yield Comparison(case, "gate weights", apart(out.alignment_weights[has_image], cases[f"{case}.gate_weights"]))
    ours = dict(model.named_parameters())
    for name, gradient in cases.items():
        if not name.startswith(f"{case}.grad."):
            continue
        found: Any = ours[renamed(name.removeprefix(f"{case}.grad."))].grad
        found = torch.zeros_like(gradient) if found is None else found[: len(gradient)]
        difference = (found - gradient).norm() / gradient.norm().clamp(min=1e-12)
        yield Comparison(f"{case} {name.removeprefix(f'{case}.grad.')}", "gradients", float(difference))
    logits = logits_without_labels(model, inputs)
    real = inputs["attention_mask"].bool()
    theirs = cases[f"{case}.logits"]
    yield Comparison(case, "logits", apart(logits[..., : theirs.shape[-1]][real], theirs[:, : real.shape[1]][real]))


def compare_inference(
    model: AlignGPTForConditionalGeneration, cases: dict[str, Tensor], case: str
) -> Iterator[Comparison]:
    """Compare the logits and gate weights of a prompt and its greedy answer."""
    inputs = our_inputs(cases, case, model)
    with torch.no_grad():
        out = model(**inputs)
    theirs = cases[f"{case}.prefill_logits"]
    yield Comparison(case, "logits", apart(out.logits[..., : theirs.shape[-1]], theirs))
    yield Comparison(case, "gate weights", apart(out.alignment_weights, cases[f"{case}.gate_weights"]))
    expected = cases[f"{case}.generated_ids"]
    ids = model.generate(**inputs, max_new_tokens=expected.shape[1], do_sample=False, eos_token_id=None, pad_token_id=0)
    new = ids[:, inputs["input_ids"].shape[1] :]
    yield Comparison(case, "greedy ids", float((new != expected).sum()))


def logits_without_labels(model: AlignGPTForConditionalGeneration, inputs: dict[str, Tensor]) -> Tensor:
    """Logits at all positions, which a training call with labels does not compute."""
    with torch.no_grad():
        return model(**{name: tensor for name, tensor in inputs.items() if name != "labels"}).logits


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference; infinite if the shapes differ."""
    return float((ours - theirs).detach().abs().max()) if ours.shape == theirs.shape else float("inf")


def compare(folder: Path) -> Iterator[Comparison]:
    """Yield all comparisons for the cases in the folder."""
    model, cases = load_model(folder), load_file(folder / "cases.safetensors")
    yield from compare_parts(model, cases)
    for case in sorted({name.partition(".")[0] for name in cases}):
        if f"{case}.loss" in cases:
            yield from compare_training(model, cases, case)
        elif f"{case}.generated_ids" in cases:
            yield from compare_inference(model, cases, case)


def main() -> int:
    """Print each comparison; return 1 at the first that exceeds its tolerance."""
    if len(sys.argv) != 2:
        print("usage: python tests/parity/check_golden.py FOLDER", file=sys.stderr)
        return 2
    for one in compare(Path(sys.argv[1])):
        allowed = TOLERANCES.get(one.what, 0.0)
        print(f"{'ok  ' if one.holds else 'MISS'} {one.case}: {one.what} {one.difference:.2e} (at most {allowed:.0e})")
        if not one.holds:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
