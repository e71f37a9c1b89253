"""`aligngpt derive`: further scores of a scored folder, from its embeddings."""

from pathlib import Path
from typing import Annotated

import typer

from aligngpt.cli.numbers import finite
from aligngpt.cli.options import Device, must_exist


def derive(
    scores: Annotated[Path, typer.Argument(help="Finished folder of `aligngpt score --embeddings`.")],
    add: Annotated[
        str,
        typer.Option(
            help="What to add, separated by commas: negcliploss (similarity minus the pair's contrastive normaliser), "
            "specificity (similarity minus the caption's mean similarity to the other images), duplicates (groups of "
            "near-duplicate images).",
        ),
    ],
    batch_size: Annotated[int, typer.Option(min=2, help="negcliploss: pairs per random batch.")] = 32768,
    batches: Annotated[int, typer.Option(min=1, help="negcliploss: number of random batches.")] = 10,
    temperature: Annotated[
        float, typer.Option(callback=finite, help="negcliploss: temperature of the loss, 0.0001 to 100.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(min=0, help="negcliploss: seed of the random batches.")] = 0,
    cosine: Annotated[
        float,
        typer.Option(min=-1, max=1, callback=finite, help="duplicates: smallest cosine of near-duplicate images."),
    ] = 0.95,
    device: Device = "auto",
) -> None:
    """Add further scores to a scored folder, as columns of its parts, computed from its embeddings.

    The same command resumes an interrupted one. With other settings, a score is computed again in all parts.
    """
    must_exist(scores, "the scores")

    from aligngpt.scoring.derived.adding import COLUMNS, Settings, add_scores

    measures = list(dict.fromkeys(name.strip() for name in add.split(",") if name.strip()))
    settings = Settings(batch_size=batch_size, batches=batches, seed=seed, temperature=temperature, cosine=cosine)
    added = add_scores(scores, measures, settings, device=device)
    names = ", ".join(COLUMNS[measure].name for measure in measures)
    written = f"written into {added.parts} parts" if added.parts else "in all parts already"
    print(f"{names} of {added.pairs} pairs {written}: {scores}")
    if added.duplicates is not None:
        print(f"{added.duplicates} pairs have an image that is a near-duplicate of an earlier pair's")
