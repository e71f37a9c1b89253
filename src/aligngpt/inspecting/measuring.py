"""One pass over the chosen records: the gate's weights, and how likely the reference answers are at each level."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aligngpt.data.images.opening import ImageError
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects
from aligngpt.inference.engine import Engine, EngineError
from aligngpt.inference.requests import Request
from aligngpt.inspecting.records import Chosen
from aligngpt.progress import Meter


@dataclass(frozen=True)
class Measured:
    """What was measured about one record.

    Attributes:
        record, id, kind: its index in the data, its id and its kind of task.
        picture: name of its first image, which intervals count by.
        weights: the gate's weights of levels 1…N-1; None for a model whose alignment embedding needs no gate.
        tokens: number of tokens of the reference answer, with the end of the turn.
        own: log-probability of the reference answer under the model's own alignment embedding, in nats.
        forced: the same under each forced level 1…N.
    """

    record: int
    id: str
    kind: str
    picture: str
    weights: tuple[float, ...] | None
    tokens: int
    own: float
    forced: tuple[float, ...]


def measure_records(engine: Engine, chosen: Chosen, rejects: Rejects) -> list[Measured]:
    """Measure every chosen record; those that the model cannot be asked about go to `rejects`.

    The reference answer is the last turn of a record; the earlier turns are the conversation before it.
    """
    levels = [None, *range(1, engine.num_levels + 1)]
    found = []
    with Meter(f"rating answers at {len(levels) - 1} levels", len(chosen.samples), unit="records") as meter:
        for sample, kind in zip(chosen.samples, chosen.kinds, strict=True):
            if (one := _measure(engine, chosen, sample, kind, levels, rejects)) is not None:
                found.append(one)
            meter.advance()
    return found


def request_of(chosen: Chosen, sample: Sample) -> Request:
    """The conversation before a record's last answer.

    Raises:
        ImageError: an image cannot be decoded.
    """
    return Request(sample.messages()[:-1], tuple(chosen.source.open_image(name) for name in sample.images))


def _measure(
    engine: Engine, chosen: Chosen, sample: Sample, kind: str, levels: Sequence[int | None], rejects: Rejects
) -> Measured | None:
    try:
        request = request_of(chosen, sample)
        (weights,) = engine.alignment_weights([request])
        rated = [row[0] for row in engine.likelihood(request, [sample.turns[-1].text], levels=levels)]
    except ImageError as error:
        rejects.add(sample.record, sample.id, error.reason, str(error))
        return None
    except EngineError as error:
        rejects.add(sample.record, sample.id, "cannot_be_asked", str(error))
        return None
    own, *forced = [one.log_probability for one in rated]
    if not all(map(math.isfinite, [own, *forced, *(weights or ())])):
        rejects.add(sample.record, sample.id, "not_finite", "a likelihood or a weight is not a finite number")
        return None
    tokens = len(rated[0].token_log_probabilities)
    return Measured(sample.record, sample.id, kind, sample.images[0], weights, tokens, own, tuple(forced))
