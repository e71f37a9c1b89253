"""`aligngpt evaluate`: the accuracy on a file of questions."""

from pathlib import Path
from typing import Annotated

import typer

from aligngpt.cli.options import Base, Device, Precision, must_exist
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub


def evaluate(
    model: Annotated[str, typer.Argument(help="Model: folder, hub name or adapter folder.")],
    questions: Annotated[
        Path,
        typer.Argument(
            help="Questions with answers: JSON, JSON lines, CSV, TSV (also compressed), Parquet or tar files."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for predictions and results.")],
    base: Base = None,
    image_root: Annotated[
        Path | None,
        typer.Option(help="Folder that image paths are relative to.", show_default="the folder of QUESTIONS"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only this many questions, drawn at random.")] = None,
    shuffle_images: Annotated[
        bool,
        typer.Option(
            "--shuffle-images",
            help="Pair each question with the image of another question: a baseline of what the text alone gives.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 32,
    seed: Annotated[
        int | None, typer.Option(help="Random seed for --limit and --shuffle-images.", show_default="0")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Answer the questions of a file and count the right answers.

    The same command resumes an interrupted evaluation.
    """
    if seed is not None and limit is None and not shuffle_images:
        raise typer.BadParameter("--seed does nothing without --limit or --shuffle-images; omit it, or add one of them")

    must_exist(questions, "the questions")
    local_or_hub(model, "the model", AlignGPTError, with_owner=True)

    from aligngpt.evaluation.accuracy import evaluate_file
    from aligngpt.evaluation.matching import JUDGING
    from aligngpt.evaluation.results import PREDICTIONS_FILE, RESULTS_FILE, read_predictions, wrong_answers
    from aligngpt.evaluation.run_evaluations import run_of

    result = evaluate_file(
        model,
        questions,
        out=out,
        base=base,
        image_root=image_root,
        limit=limit,
        shuffle_images=shuffle_images,
        batch_size=batch_size,
        seed=0 if seed is None else seed,
        device=device,
        precision=precision,
    )
    print(result.table())
    print(f"judged by comparison: {JUDGING}")
    if wrong := wrong_answers(read_predictions(out / PREDICTIONS_FILE).values()):
        print(wrong)
    print(f"predictions: {out / PREDICTIONS_FILE}\nresults: {out / RESULTS_FILE}")
    if (run := run_of(out)) is not None:
        print(f"next: aligngpt report {run}")
