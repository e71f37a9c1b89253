"""The sections and rows of a run's report: validated plain numbers, text and image paths."""

from dataclasses import field

from pydantic.dataclasses import dataclass

from aligngpt.reports.figures import Line
from aligngpt.reports.pages import Count, Counts, Number, Numbers, PathText, Text, page_config, require
from aligngpt.reports.statistics import wilson_interval


@dataclass(frozen=True, config=page_config)
class LevelExample:
    """One pair; `level` is 1…N, `image_path` is inside its image root (the report's if None): absolute or relative."""

    level: Count
    image_path: PathText
    caption: Text
    score: Number
    note: Text = ""
    image_root: PathText | None = None


@dataclass(frozen=True, config=page_config)
class LevelsSection:
    """The scores and their levels.

    Attributes:
        scores: similarity score of every pair.
        borders: the N-1 ascending scores between the N levels.
        counts_per_level: number of pairs in level 1…N.
        examples: pairs to show.
        wrong_share: share (0…1) of captions known to be wrong in level 1…N, if known; NaN for a level without captions.
        wrong_intervals: ends of the 95 % interval of each.
        auc: probability that a right caption scores higher than a wrong one, if known.
        auc_interval: ends of its 95 % interval, by picture.
        paired: share of pictures whose right caption scores higher than the wrong one of the same picture, and the
            ends of its 95 % interval.
        paired_pictures: number of these pictures.
    """

    scores: Numbers
    borders: Numbers
    counts_per_level: Counts
    examples: list[LevelExample] = field(default_factory=list)
    wrong_share: Numbers | None = None
    auc: Number | None = None
    wrong_intervals: list[tuple[Number, Number]] | None = None
    auc_interval: tuple[Number, Number] | None = None
    paired: tuple[Number, Number, Number] | None = None
    paired_pictures: Count | None = None

    def __post_init__(self) -> None:
        levels = len(self.borders) + 1
        found = len(self.counts_per_level)
        require(found == levels, f"expected {levels} counts_per_level for {levels - 1} borders, found {found}")
        if self.wrong_share is not None:
            found = len(self.wrong_share)
            require(found == levels, f"expected {levels} values of wrong_share, found {found}")
        if self.wrong_intervals is not None:
            found = len(self.wrong_intervals)
            require(found == levels, f"expected {levels} wrong_intervals, found {found}")
        for example in self.examples:
            require(1 <= example.level <= levels, f"expected a level in 1…{levels}, found {example.level}")


@dataclass(frozen=True, config=page_config)
class Reference:
    """The same curve of a reference run; `places` are steps or minutes, `about` describes the run."""

    about: Text
    places: Numbers
    values: Numbers

    def __post_init__(self) -> None:
        places, values = len(self.places), len(self.values)
        require(places == values, f"expected a value for each of {places} points of the reference, found {values}")

    def line(self) -> Line:
        """The curve in the form that the figures expect."""
        return Line(self.places, self.values)


@dataclass(frozen=True, config=page_config)
class LossCurve:
    """The training loss (nats per token) of one stage at each logged step."""

    name: Text
    steps: Counts
    losses: Numbers
    reference: Reference | None = None

    def __post_init__(self) -> None:
        steps, losses = len(self.steps), len(self.losses)
        require(steps == losses, f"expected a loss for each of {steps} steps, found {losses}")


@dataclass(frozen=True, config=page_config)
class AccuracyCurve:
    """Validation accuracy (0…1) by minutes of training."""

    name: Text
    minutes: Numbers
    accuracies: Numbers
    reference: Reference | None = None

    def __post_init__(self) -> None:
        minutes, accuracies = len(self.minutes), len(self.accuracies)
        require(minutes == accuracies, f"expected an accuracy for each of {minutes} times, found {accuracies}")


@dataclass(frozen=True, config=page_config)
class GateSection:
    """The gate's mean weights `(kinds, N-1)` by kind of question.

    `counts` are the numbers of questions averaged, and `mode` is the model's `alignment`; None if unknown.
    """

    kinds: list[Text]
    weights: list[Numbers]
    counts: Counts
    mode: Text | None = None

    def __post_init__(self) -> None:
        rows = len(self.kinds)
        require(rows > 0, "expected at least one kind of question, found none")
        found = (len(self.weights), len(self.counts))
        require(
            found == (rows, rows),
            f"expected {rows} rows of weights and counts, found {found[0]} and {found[1]}",
        )
        widths = {len(row) for row in self.weights}
        require(
            len(widths) == 1 and 0 not in widths,
            f"expected rows of equal, non-zero length, found lengths {sorted(widths)}",
        )


@dataclass(frozen=True, config=page_config)
class AnswerExample:
    """One question with the expected answer and the model's; for `image_root` see `LevelExample`."""

    image_path: PathText | None
    question: Text
    expected: Text
    answer: Text
    correct: bool
    kind: Text | None = None
    image_root: PathText | None = None


@dataclass(frozen=True, config=page_config)
class AccuracyRow:
    """The accuracy of one system.

    `accuracy` and the ends `low` and `high` of its 95 % interval are shares in 0…1. A `baseline` is drawn in grey, for
    comparison; the first row is the system that the report is about. A `part` is one kind of question of the row above.
    `by_picture` says that the interval counts pictures, not questions.
    """

    name: Text
    accuracy: Number
    correct: Count
    total: Count
    low: Number
    high: Number
    note: Text = ""
    baseline: bool = False
    part: bool = False
    by_picture: bool = False

    def __post_init__(self) -> None:
        shares = (0.0, self.low, self.accuracy, self.high, 1.0)
        require(list(shares) == sorted(shares), f"expected 0 ≤ low ≤ accuracy ≤ high ≤ 1, found {shares[1:4]}")

    @classmethod
    def from_counts(
        cls,
        name: str,
        correct: int,
        total: int,
        *,
        interval: tuple[float, float] | None = None,
        by_picture: bool = False,
        note: str = "",
        baseline: bool = False,
        part: bool = False,
    ) -> "AccuracyRow":
        """Create a row of `correct` answers out of `total` (at least 1); the interval is Wilson's if not given."""
        low, high = wilson_interval(correct, total) if interval is None else interval
        return cls(name, correct / total, correct, total, low, high, note, baseline, part, by_picture)


@dataclass(frozen=True, config=page_config)
class DifferenceRow:
    """How much more often the first system is right than a baseline, on the questions that both answered.

    `difference` and the ends `low` and `high` of its 95 % interval are shares in −1…1; `baseline` is its name.
    """

    baseline: Text
    difference: Number
    low: Number
    high: Number
    questions: Count
    by_picture: bool = False


@dataclass(frozen=True, config=page_config)
class TimingRow:
    """Time and memory used by one stage."""

    stage: Text
    seconds: Number
    samples: Count | None = None
    peak_memory_gib: Number | None = None
