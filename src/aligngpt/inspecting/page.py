"""Writes an inspection as one self-contained HTML page, and its numbers as JSON beside it."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import ChoiceLoader, PackageLoader
from markupsafe import Markup
from pydantic import TypeAdapter

from aligngpt.files import atomic_write
from aligngpt.inspecting.content import Estimate, Inspection
from aligngpt.inspecting.figures import cosine_heat_map, dose_figure
from aligngpt.inspecting.maps import Drawn
from aligngpt.inspecting.records import InspectError
from aligngpt.reports.figures import gate_heat_map, to_svg
from aligngpt.reports.pages import page_environment
from aligngpt.scoring.places import same_place

PAGE_SUFFIXES = (".html", ".htm")


def numbers_beside(out: Path) -> Path:
    """The JSON file beside a page."""
    return out.with_suffix(".json")


def check_can_write(out: Path, data: Path, *, force: bool) -> None:
    """Check that the page and its JSON file may be written, before anything that takes long.

    Raises:
        InspectError: `out` is not the name of a page, one of the two is the data, or exists and `force` is not given.
    """
    if out.suffix.lower() not in PAGE_SUFFIXES:
        raise InspectError(f"the page must end in {PAGE_SUFFIXES[0]}, got {out.name}; name it with --out")
    for path in (out, numbers_beside(out)):
        if same_place(path, data):
            raise InspectError(f"{path}, which would be written, is the data; choose another page with --out")
        if path.is_dir():
            raise InspectError(f"{path}, which would be written, is a folder; choose another page with --out")
        if path.exists() and not force:
            raise InspectError(f"{path} exists already; name another page with --out, or replace it with --force")


def write_inspection(found: Inspection, drawn: Sequence[Drawn], out: Path) -> Path:
    """Write the page and the JSON file, each atomically.

    Args:
        found: the content.
        drawn: the pictures of `found.maps`, in the same order.
        out: the HTML file; missing folders are created.

    Returns:
        Path of the JSON file.

    Raises:
        OSError: a file cannot be written.
    """
    environment = page_environment()
    assert environment.loader is not None
    environment.loader = ChoiceLoader([PackageLoader("aligngpt.inspecting", ""), environment.loader])
    environment.filters["number"] = signless
    environment.filters["signed"] = signed
    html = environment.get_template("inspection.html.jinja").render(
        page=found, drawn=drawn, figures=_figures(found), headline=headline(found), numbers=numbers_beside(out).name
    )
    numbers = TypeAdapter(Inspection).dump_json(found, indent=2).decode("utf-8")
    target = numbers_beside(out)
    with atomic_write(target) as file:
        file.write(numbers + "\n")
    with atomic_write(out) as file:
        file.write(html)
    return target


def headline(found: Inspection) -> str:
    """What the forced levels say, in one sentence."""
    value, low, high = found.dose.highest_minus_lowest
    first, last = "level 1", f"level {found.num_levels}"
    if low is None or high is None:
        return f"All records are about one picture, so nothing can be said about {last} and {first} in general."
    between = f"by {signless(abs(value))} nats per token (95% interval of the difference {_between(low, high)})"
    if low > 0:
        return f"With {last} forced, the reference answers are more likely than with {first}, {between}."
    if high < 0:
        return f"With {last} forced, the reference answers are less likely than with {first}, {between}."
    return (
        f"No difference between forcing {last} and forcing {first} can be told in the likelihood of the reference "
        f"answers: {signed(value)} nats per token (95% interval {_between(low, high)})."
    )


def signless(value: float, digits: int = 3) -> str:
    """A number with a typographic minus and no plus; what rounds to zero has no sign."""
    return f"{value:z.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A difference, with its sign."""
    return f"{value:+z.{digits}f}".replace("-", "−")


def _between(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"


def _figures(found: Inspection) -> dict[str, Markup]:
    dose = "; ".join(f"level {row.level}: {_said(row.log_probability)}" for row in found.dose.levels)
    drawn = {
        "dose": to_svg(
            dose_figure(found.dose),
            "dose",
            f"Log-probability per token at each forced level. {dose}. The model's own: {_said(found.dose.own)}.",
        ),
        "cosines": to_svg(
            cosine_heat_map(found.table.cosines), "cosines", "Cosine similarity of each two level embeddings."
        ),
    }
    if found.gate:
        kinds = [row.kind for row in found.gate]
        weights = [[one[0] for one in row.weights] for row in found.gate]
        counts = [row.records for row in found.gate]
        drawn["gate"] = to_svg(
            gate_heat_map(kinds, weights, counts), "gate", "Mean gate weight of each level by kind of task."
        )
    return {name: Markup(svg) for name, svg in drawn.items()}


def _said(one: Estimate) -> str:
    return signless(one[0])
