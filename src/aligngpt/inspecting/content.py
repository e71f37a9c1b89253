"""The content of an inspection's page and of the JSON file beside it: every number of the one is in the other."""

from dataclasses import field

from pydantic.dataclasses import dataclass

from aligngpt.reports.pages import Count, Number, Numbers, Text, page_config

Estimate = tuple[Number, Number | None, Number | None]
"""A mean and the two ends of its 95 % interval; the ends are None if all records are about one picture."""


@dataclass(frozen=True, config=page_config)
class GateRow:
    """The gate's mean weights of levels 1…N-1 for one kind of task."""

    kind: Text
    records: Count
    pictures: Count
    weights: list[Estimate]


@dataclass(frozen=True, config=page_config)
class DoseRow:
    """One forced level: mean log-probability per token in nats, and its difference from the model's own mix."""

    level: Count
    log_probability: Estimate
    minus_own: Estimate


@dataclass(frozen=True, config=page_config)
class Dose:
    """The likelihood of the reference answers under the model's own mix and under each forced level.

    Attributes:
        records, pictures: numbers of records, and of different first images.
        own: mean log-probability per token in nats, under the model's own alignment embedding.
        levels: level 1…N.
        highest_minus_lowest: difference of level N and level 1.
    """

    records: Count
    pictures: Count
    own: Estimate
    levels: list[DoseRow]
    highest_minus_lowest: Estimate


@dataclass(frozen=True, config=page_config)
class LevelTable:
    """The level embeddings: Euclidean norms `(levels,)` and cosine similarities `(levels, levels)`."""

    norms: Numbers
    cosines: list[Numbers]


@dataclass(frozen=True, config=page_config)
class MapExample:
    """The similarity map of one record.

    Attributes:
        question, answer: the last question and its reference answer.
        images: number of images of the record; the map is of the first.
        cosines: the map, `(grid, grid)`, its top row first.
        weights: the gate's weights of levels 1…N-1.
    """

    record: Count
    id: Text
    kind: Text
    question: Text
    answer: Text
    images: Count
    cosines: list[Numbers]
    weights: Numbers | None


@dataclass(frozen=True, config=page_config)
class RecordRow:
    """What was measured about one record; log-probabilities are sums over the answer's tokens, in nats."""

    record: Count
    id: Text
    kind: Text
    picture: Text
    tokens: Count
    weights: Numbers | None
    own: Number
    forced: Numbers


@dataclass(frozen=True, config=page_config)
class Inspection:
    """Everything that an inspection found.

    Attributes:
        model, mode, num_levels: the model, its alignment mode and N.
        data: the data.
        facts: further facts, by name.
        kind_field: field of the records that names their kind; None if all are one group.
        total, usable, drawn, used: numbers of records in the data, of those with an image, of those drawn from these,
            and of those measured.
        left_out: number of records left out, by reason.
        left_out_said: the same in words.
        gate: by kind of task; empty if the model has no gate.
        absent: a sentence on each part that the page does not have.
        records: the measured records.
    """

    model: Text
    mode: Text
    num_levels: Count
    data: Text
    facts: dict[Text, Text]
    kind_field: Text | None
    total: Count
    usable: Count
    drawn: Count
    used: Count
    left_out: dict[Text, Count]
    left_out_said: Text
    dose: Dose
    table: LevelTable
    gate: list[GateRow] = field(default_factory=list)
    maps: list[MapExample] = field(default_factory=list)
    absent: list[Text] = field(default_factory=list)
    records: list[RecordRow] = field(default_factory=list)
