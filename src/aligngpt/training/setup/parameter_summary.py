"""The table printed before a stage begins: for each part its size, how much of it trains, and its learning rate."""

from collections.abc import Sequence
from typing import NamedTuple, get_args

from torch import nn

from aligngpt.training.recipe import Part, StageRecipe
from aligngpt.training.setup.freezing import NEW_PARTS, part_of
from aligngpt.training.setup.quantization import number_of

WORDS: dict[Part, str] = {part: part.replace("_", " ") for part in get_args(Part)}


class PartRow(NamedTuple):
    """One part of a model in one stage.

    Attributes:
        part: name of the part.
        parameters: number of parameters, including adapters.
        trained: number of trainable parameters.
        learning_rate: peak learning rate of these; None if there are none.
    """

    part: Part
    parameters: int
    trained: int
    learning_rate: float | None


def parts_of(model: nn.Module, stage: StageRecipe) -> list[PartRow]:
    """The parts of a model prepared by `freeze_all_but`; parts that it does not have are left out."""
    counts: dict[Part, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        all_of_it, trained = counts.get(part_of(name), (0, 0))
        size = number_of(parameter)
        counts[part_of(name)] = all_of_it + size, trained + size * parameter.requires_grad
    return [
        PartRow(part, *counts[part], learning_rate(part, stage) if counts[part][1] else None)
        for part in WORDS
        if part in counts
    ]


def learning_rate(part: Part, stage: StageRecipe) -> float:
    """The peak learning rate of a part if it trains."""
    if part in stage.learning_rates:
        return stage.learning_rates[part]
    if part in NEW_PARTS and stage.projector_learning_rate is not None:
        return stage.projector_learning_rate
    return stage.learning_rate


def parts_table(rows: Sequence[PartRow]) -> str:
    """The parts as a text table."""
    cells = [("part", "trains", "parameters", "learning rate")]
    for row in rows:
        trains = "frozen" if not row.trained else "trained" if row.trained == row.parameters else f"{row.trained:,}"
        rate = "" if row.learning_rate is None else f"{row.learning_rate:g}"
        cells.append((WORDS[row.part], trains, f"{row.parameters:,}", rate))
    total, trained = sum(row.parameters for row in rows), sum(row.trained for row in rows)
    cells.append(("all", f"{trained:,}", f"{total:,}", ""))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for part, trains, parameters, rate in cells:
        line = f"{part:<{widths[0]}}  {trains:>{widths[1]}}  {parameters:>{widths[2]}}  {rate:>{widths[3]}}"
        lines.append(line.rstrip())
    return "\n".join(lines)
