"""`aligngpt study`: many small runs that show whether levels help, and what came out."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from aligngpt.cli.options import Verb, must_exist

if TYPE_CHECKING:
    from aligngpt.study.plan import Plan

Quick = Annotated[
    bool,
    typer.Option(
        "--quick", help="Three arms, four seeds, the highest share of bad captions: a try, too small to conclude from."
    ),
]


class PlanByDefault(TyperGroup):
    """A group whose first argument is a command or, otherwise, the plan of the command `run`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=PlanByDefault,
    no_args_is_help=True,
    help="Find out whether levels help: run the arms of a plan with several seeds, and analyse them. "
    "`aligngpt study PLAN.yaml` is `aligngpt study run PLAN.yaml`.",
)


@app.command(cls=Verb)
def run(
    plan: Annotated[Path, typer.Argument(help="YAML file: data, model, both stages, and the grid of arms and seeds.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that run at once, with one thread each.")] = 2,
    quick: Quick = False,
    done: Annotated[
        Path | None,
        typer.Option("--done", help="The results.parquet of a part of the same study; its runs are not done again."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs; with --done, those that are still to do.")
    ] = False,
) -> None:
    """Do every run of a plan that is not done yet.

    The same command resumes an interrupted study.
    """
    must_exist(plan, "the plan")
    if done is not None:
        must_exist(done, "the results")
    from aligngpt.study.plan import load_plan

    read = load_plan(plan)
    read = read.quick() if quick else read
    if dry_run:
        runs, pretrainings = read.runs(), {one.pretraining_id for one in read.runs()}
        if done is not None:
            there = _done_runs(read, done)
            runs = [one for one in runs if one.id not in there]
            pretrainings = {one.pretraining_id for one in runs} - there
        print("".join(f"{one.id}\n" for one in runs), end="")
        print(f"{len(runs)} runs after {len(pretrainings)} pre-trainings")
        return

    from aligngpt.study.driving import run_study

    print(f"results: {run_study(read, workers=workers, done=done)}")
    print(f"next: {shlex.join(['aligngpt', 'study', 'report', str(plan), *(['--quick'] if quick else [])])}")


def _done_runs(plan: "Plan", done: Path) -> set[str]:
    """The names of the runs and pre-trainings with results in a file of all results, or in the study's own folder."""
    import pyarrow.parquet as pq

    from aligngpt.study.claiming import check_file

    check_file(plan, done)
    names = pq.read_table(done, columns=["run"])["run"].to_pylist()
    results = Path(plan.output) / "results"
    return {*map(str, names), *(str(one.relative_to(results).with_suffix("")) for one in results.rglob("*.parquet"))}


@app.command(cls=Verb)
def report(
    plan: Annotated[Path, typer.Argument(help="The plan of the study.")],
    results: Annotated[
        Path | None,
        typer.Option(
            help="Results: a folder of result files, or one file of all.", show_default="those in the plan's output"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page `findings.md`.", show_default="the plan's output")
    ] = None,
    quick: Quick = False,
) -> None:
    """Write a page with tables and figures from the results of a study; no model is needed.

    Of a page that exists, only the part between its two marker lines is replaced.
    """
    must_exist(plan, "the plan")
    if results is not None:
        must_exist(results, "the results")
    from aligngpt.study.plan import load_plan

    read = load_plan(plan)
    read = read.quick() if quick else read

    from aligngpt.study.analysis.analysing import analyse
    from aligngpt.study.analysis.contrasts import PRIMARY
    from aligngpt.study.claiming import check_file
    from aligngpt.study.driving import collect
    from aligngpt.study.page import write_findings

    folder = Path(read.output)
    if results is not None:
        check_file(read, results)
    analysis = analyse(
        collect(read, folder) if results is None else results,
        pairs=read.primary or PRIMARY,
        planned=read.runs(),
        quick=quick,
    )
    print(f"page: {write_findings(analysis, out or folder)}")
