"""Similarity maps of a few records, and the pictures that they are drawn on."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image
from torch import Tensor

from aligngpt.inference.engine import Engine, EngineError
from aligngpt.inference.similarity_map import similarity_map
from aligngpt.inspecting.content import MapExample
from aligngpt.inspecting.measuring import Measured, request_of
from aligngpt.inspecting.records import Chosen
from aligngpt.progress import track
from aligngpt.reports.thumbnails import Thumbnail, shrunk

SIDE = 160
OPACITY = 0.75
_HEAT = LinearSegmentedColormap.from_list("heat", ["#12263f", "#35679c", "#a9b18f", "#f0a63c", "#fff3c4"])


class Drawn(NamedTuple):
    """A picture as the model sees it, and its map over a grey copy."""

    picture: Thumbnail
    map: Thumbnail


class Maps(NamedTuple):
    """The maps of some records: their numbers, their pictures in the same order, and why there are none."""

    examples: list[MapExample]
    drawn: list[Drawn]
    absent: str | None


def draw_maps(engine: Engine, chosen: Chosen, measured: Sequence[Measured], count: int) -> Maps:
    """The maps of the first image of a few records, from as many kinds as possible.

    Args:
        engine: a model with an alignment module.
        chosen: the records.
        measured: those that could be measured.
        count: largest number of maps.
    """
    samples = {sample.record: sample for sample in chosen.samples}
    found = Maps([], [], None)
    for one in track(in_turn(measured, count), "drawing similarity maps", unit="maps"):
        sample = samples[one.record]
        request = request_of(chosen, sample)
        try:
            cosines = similarity_map(engine, request)
        except EngineError as error:
            # That the image tokens are not a square grid holds for all records.
            return Maps([], [], str(error))
        pixels = engine.prompts.write(request, 1).pixels
        assert pixels is not None
        found.drawn.append(draw(picture_of(pixels[0], engine.processor.image_processor), cosines))
        found.examples.append(
            MapExample(
                record=one.record,
                id=one.id,
                kind=one.kind,
                question=sample.turns[-2].text,
                answer=sample.turns[-1].text,
                images=len(sample.images),
                cosines=cosines.tolist(),
                weights=None if one.weights is None else list(one.weights),
            )
        )
    return found


def in_turn(measured: Sequence[Measured], count: int) -> list[Measured]:
    """The first record of each kind, then the second of each, and so on, `count` in all."""
    kinds: dict[str, list[Measured]] = defaultdict(list)
    for one in measured:
        kinds[one.kind].append(one)
    deepest = max(map(len, kinds.values()), default=0)
    ordered = [members[depth] for depth in range(deepest) for members in kinds.values() if depth < len(members)]
    return ordered[:count]


def picture_of(pixels: Tensor, image_processor: Any) -> Image.Image:
    """The image that a model gets as pixels `(3, height, width)`: cut or padded, without the normalisation."""
    shown = pixels.detach().float().cpu()
    if image_processor.do_normalize:
        mean, deviation = (
            torch.tensor(values).view(-1, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
        )
        shown = shown * deviation + mean
    values = (shown.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(values, "RGB")


def draw(picture: Image.Image, cosines: np.ndarray) -> Drawn:
    """A picture, and the map `(grid, grid)` over it: the lighter and warmer a part, the better it matches the text.

    The colours span the smallest to the largest cosine of the map; a map of equal cosines has one colour.
    """
    least, most = float(cosines.min()), float(cosines.max())
    share = (cosines - least) / (most - least) if most > least else np.full_like(cosines, 0.5)
    coloured = Image.fromarray((_HEAT(share)[..., :3] * 255).round().astype(np.uint8), "RGB")
    base = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    over = coloured.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return Drawn(shrunk(base), shrunk(Image.blend(base.convert("L").convert("RGB"), over, OPACITY)))
