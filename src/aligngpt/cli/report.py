"""`aligngpt report`: the page of a run."""

from pathlib import Path
from typing import Annotated

import typer

from aligngpt.cli.options import must_exist


def report(
    run: Annotated[Path, typer.Argument(help="Run folder of `aligngpt quickstart` or `aligngpt train`.")],
    out: Annotated[Path | None, typer.Option(help="HTML file.", show_default="report.html in RUN")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Another run folder or a curve file, drawn behind the curves of RUN for comparison."),
    ] = None,
) -> None:
    """Write an HTML report of a run: levels, loss curves, accuracies, gate weights, right and wrong answers."""
    must_exist(run, "the run", advice="give a run folder of `aligngpt quickstart` or `aligngpt train`")
    if reference is not None:
        must_exist(reference, "the reference")

    from aligngpt.evaluation.run_report import write_report

    print(write_report(run, out, reference=reference))
