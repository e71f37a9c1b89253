"""Inspects what alignment does in a trained model, from choosing records to writing the page."""

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from aligngpt.data.rejects import Rejects
from aligngpt.data.sources.remote import located
from aligngpt.inference.engine import Engine
from aligngpt.inspecting.content import Inspection, RecordRow
from aligngpt.inspecting.maps import draw_maps
from aligngpt.inspecting.measuring import measure_records
from aligngpt.inspecting.page import check_can_write, headline, write_inspection
from aligngpt.inspecting.records import InspectError, choose_records, nothing_left, reasons_said
from aligngpt.inspecting.summaries import dose_response, gate_by_kind, level_table

DEFAULT_LIMIT = 200
DEFAULT_EXAMPLES = 6


class Written(NamedTuple):
    """What an inspection wrote, and its findings in a few sentences."""

    page: Path
    numbers: Path
    headline: str
    notes: list[str]


def inspect_model(
    model: str | Path,
    data: Path,
    out: Path,
    *,
    base: str | Path | None = None,
    image_root: Path | None = None,
    kind_field: str | None = None,
    limit: int = DEFAULT_LIMIT,
    examples: int = DEFAULT_EXAMPLES,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    force: bool = False,
) -> Written:
    """Write a page about what alignment does in a model, and its numbers as JSON beside it.

    Args:
        model: folder or hub name of a model with an alignment module.
        data: records with images and answers, see `choose_records`.
        out: the HTML file; the JSON file has the same name with the suffix `.json`.
        base: base model of an adapter folder, see `Engine.load`.
        image_root: folder that image paths are relative to; the source's own when None.
        kind_field: see `choose_records`.
        limit: largest number of records, drawn at random with `seed`.
        examples: largest number of similarity maps.
        seed: random seed of the draw.
        device, precision: see `Engine.load`.
        force: replace `out` and the JSON file if they exist.

    Raises:
        InspectError: the model has no alignment module, no record can be used, or the page may not be written.
        AlignGPTError: the model or the data cannot be read.
    """
    check_can_write(out, data, force=force)
    data = located(data)
    # The page says what was left out, so no share of it is too large as long as something is left.
    rejects = Rejects(None, max_share=1.0)
    chosen = choose_records(data, image_root=image_root, kind_field=kind_field, limit=limit, seed=seed, rejects=rejects)
    with Engine.load(model, base=base, device=device, dtype=precision) as engine:
        alignment, mode = engine.model.model.alignment, engine.model.config.alignment
        if alignment is None:
            raise InspectError(
                f"{model} has no alignment module (alignment: {mode}), so there is nothing to inspect; give a model "
                "that was trained with one"
            )
        measured = measure_records(engine, chosen, rejects)
        if not measured:
            raise nothing_left(data, rejects)
        maps = draw_maps(engine, chosen, measured, examples)
        found = Inspection(
            model=str(model),
            mode=mode,
            num_levels=engine.num_levels,
            data=str(data),
            facts={
                "The gate reads": {"instruction": "the first question", "all": "all of the text"}.get(
                    engine.model.config.text_pooling, engine.model.config.text_pooling
                ),
                "Precision": str(engine.model.dtype).removeprefix("torch."),
                "Seed of the draw": str(seed),
            },
            kind_field=chosen.kind_field,
            total=chosen.total,
            usable=chosen.usable,
            drawn=len(chosen.samples),
            used=len(measured),
            left_out=dict(rejects.by_reason),
            left_out_said=reasons_said(rejects.by_reason),
            dose=dose_response(measured),
            table=level_table(alignment.levels),
            gate=(gate := gate_by_kind(measured)),
            maps=maps.examples,
            absent=_absent(mode, has_gate=bool(gate), maps=maps.absent),
            records=[RecordRow(**asdict(one)) for one in measured],
        )
    numbers = write_inspection(found, maps.drawn, out)
    return Written(out, numbers, headline(found), [*found.absent, *_left_out(found)])


def _absent(mode: str, *, has_gate: bool, maps: str | None) -> list[str]:
    """A sentence on each part that this model does not have."""
    sentences = []
    if not has_gate:
        sentences.append(
            f"The gate's weights are not shown: the model forms its alignment embedding without a gate "
            f"(alignment: {mode})."
        )
    if maps is not None:
        sentences.append(f"Similarity maps are not shown: {maps}.")
    return sentences


def _left_out(found: Inspection) -> list[str]:
    return [f"left out: {found.left_out_said}"] if found.left_out_said else []
