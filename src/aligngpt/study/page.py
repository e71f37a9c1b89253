"""The page of a study's findings: Markdown between two markers of a file, and figures beside it."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from aligngpt.files import atomic_write
from aligngpt.reports.figures import INK, to_svg
from aligngpt.study.analysis import figures, tables
from aligngpt.study.analysis.analysing import Analysis
from aligngpt.study.analysis.answer import answer, numbers
from aligngpt.study.analysis.words import number
from aligngpt.study.pairs import StudyError

BEGIN = "<!-- results: begin -->"
END = "<!-- results: end -->"
ANSWER_BEGIN = "<!-- answer: begin -->"
ANSWER_END = "<!-- answer: end -->"
PAGE = "findings.md"
IMAGES = "images"


def write_findings(analysis: Analysis, out_folder: Path, page: str = PAGE) -> Path:
    """Write the page and its figures; the same analysis gives the same bytes.

    Only what is between the two markers of the page is replaced, and between those of the answer, if it has them: the
    answer then stands there instead of at the beginning of the results. A page that does not exist is made.

    Args:
        analysis: the findings.
        out_folder: the page is in it, and the figures are in `images/` there.
        page: name of the page.

    Returns:
        The path of the page.

    Raises:
        StudyError: the page exists and does not have each marker once, in this order; those of the answer may be
            missing.
    """
    path = out_folder / page
    before, after = _around(path)
    drawn = _figures(analysis)
    addresses = {}
    for name, (figure, description) in drawn.items():
        file = out_folder / IMAGES / f"{path.stem}-{name}.svg"
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as out:
            # A picture of its own has no surrounding text whose colour it could take; grey is readable on any ground.
            out.write(to_svg(figure, name, description).replace("currentColor", INK) + "\n")
        addresses[name] = f"{IMAGES}/{file.name}"
    found, body = f"{answer(analysis)} {numbers(analysis)}".strip(), _body(analysis, addresses)
    if ANSWER_BEGIN in before:
        first, rest = before.split(ANSWER_BEGIN)
        before = f"{first}{ANSWER_BEGIN}\n{found}\n{ANSWER_END}{rest.split(ANSWER_END)[1]}"
    else:
        body = f"{found}\n\n{body}"
    with atomic_write(path) as out:
        out.write(f"{before}{BEGIN}\n{body}\n{END}{after}")
    return path


def _around(path: Path) -> tuple[str, str]:
    """What a page has before and after its generated part."""
    if not path.exists():
        return "# Findings\n\n", "\n"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"the page {path} cannot be read: {error}") from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise StudyError(f"{path} must have the lines {BEGIN} and {END} once, in this order, around the findings")
    before, rest = text.split(BEGIN)
    marks = [before.count(mark) for mark in (ANSWER_BEGIN, ANSWER_END)]
    if marks not in ([0, 0], [1, 1]) or before.find(ANSWER_BEGIN) > before.find(ANSWER_END):
        raise StudyError(f"{path} must have the lines {ANSWER_BEGIN} and {ANSWER_END} once, in this order, or neither")
    return before, rest.split(END)[1]


def _figures(analysis: Analysis) -> dict[str, tuple[Figure, str]]:
    """The figures that there are, with a text alternative of each."""
    baseline = analysis.baseline
    drawn: dict[str, tuple[Figure | None, str]] = {
        "forest": (
            figures.forest(analysis),
            f"Difference of each arm from {baseline} in both outcomes, with intervals",
        ),
        "noise": (
            figures.noise_curves(analysis),
            f"Difference of each arm from {baseline} over the share of bad captions",
        ),
        "dose": (figures.dose_response(analysis), "Log-probability of right and wrong captions at each forced level"),
        "detectors": (figures.detector_areas(analysis), "Area under the ROC curve of each score"),
    }
    for gate in figures.gates_shown(analysis):
        arm = gate.condition.arm
        drawn[f"gate-{arm}"] = (figures.gate_figure(analysis, gate), f"Mean gate weights by kind of question of {arm}")
    return {name: (figure, text) for name, (figure, text) in drawn.items() if figure is not None}


def _body(analysis: Analysis, images: dict[str, str]) -> str:
    environment = Environment(
        loader=PackageLoader("aligngpt.study", ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    results = analysis.results
    test = results.questions.first
    context: dict[str, Any] = {
        "analysis": analysis,
        "test": test,
        "questions": len(results.questions.splits[test].kind),
        "nats": f"{analysis.bounds.nats:g}",
        "points": f"{100 * analysis.bounds.accuracy:g}",
        "highest": results.place(results.noises[-1]),
        "images": images,
        "gate_images": [
            {"arm": gate.condition.arm, "path": images[f"gate-{gate.condition.arm}"]}
            for gate in figures.gates_shown(analysis)
        ],
        "tables": tables_of(analysis),
        "cost": _cost(analysis),
        "code": _code(results.codes),
    }
    return environment.get_template("findings.md.jinja").render(context).strip()


def tables_of(analysis: Analysis) -> dict[str, str]:
    """All tables of the page, by name."""
    makers = (
        tables.primary,
        tables.calibration,
        tables.predictions,
        tables.pretrainings,
        tables.parts,
        tables.secondary,
        tables.reached,
        tables.dose,
        tables.detectors,
        tables.gates,
        tables.falsifiers,
    )
    return {make.__name__: make(analysis) for make in makers}


def _code(codes: tuple[str, ...]) -> str:
    """The versions of the code that made the results."""
    named = [code if code.startswith("version ") else f"commit {code[:12]}{code[40:]}" for code in codes]
    return f"The code is that of {' and '.join(named)}."


def _cost(analysis: Analysis) -> str:
    cost = analysis.cost
    seconds = f"a run takes {number(cost.run, 0)} seconds of processor time (median of {cost.runs:,})"
    if cost.pretrainings:
        before = f"a pre-training {number(cost.pretraining, 0)} (median of {cost.pretrainings:,})"
        seconds += f", {before}; arms share pre-trainings"
    hours = number(cost.total / 3600, 1)
    return f"{seconds[0].upper()}{seconds[1:]}. Runs and pre-trainings together took {hours} core-hours."
