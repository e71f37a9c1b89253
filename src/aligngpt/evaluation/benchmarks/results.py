"""The result of a benchmark, with everything that its figure depends on."""

from dataclasses import dataclass, field

from aligngpt import __version__


@dataclass(frozen=True)
class BenchmarkResult:
    """One figure and how it came about; `results.json` has the same fields.

    Attributes:
        name, title, split: which benchmark, and which part of it.
        figure, low, high: the figure and its 95 % interval, in `unit`; None if it cannot be computed here.
        unit: `%` or `points`.
        interval: how the interval was computed.
        parts: further figures.
        rules, scorer: the rule set and the program whose rules it follows.
        column: the column of published figures; None if none can be compared.
        as_published: whether rules, picture mode and number of questions are those of the published figures.
        model: name of the model; for answers from a file, as far as known.
        answers: the file that the answers came from.
        answers_sha256: its content hash.
        picture_mode, new_tokens, decoding: how the model was asked; None where answers came from elsewhere.
        hint: help in the prompt besides the question, such as OCR tokens.
        example_prompt: the first prompt, complete.
        questions, pictures: how many of each.
        files: content hash (SHA-256) of every question and label file.
        uploads: files written for an evaluation server.
        notes: what a reader of the figure has to know.
        judge: what a judge's verdicts depend on, by name; empty if there are none, or they are from elsewhere.
        version: of this package.
    """

    name: str
    title: str
    split: str
    figure: float | None
    low: float | None
    high: float | None
    unit: str
    interval: str
    parts: dict[str, float]
    rules: str
    scorer: str
    column: str | None
    as_published: bool
    model: str
    answers: str
    answers_sha256: str
    picture_mode: str | None
    new_tokens: int | None
    decoding: str | None
    hint: str | None
    example_prompt: str
    questions: int
    pictures: int
    files: dict[str, str]
    uploads: list[str]
    notes: list[str]
    judge: dict[str, str] = field(default_factory=dict)
    version: str = field(default=__version__)
