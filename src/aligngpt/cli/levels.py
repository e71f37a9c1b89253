"""`aligngpt levels`: scores become levels."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from aligngpt.cli.options import CAPTION_COLUMNS, ID_COLUMNS, IMAGE_COLUMNS, must_exist
from aligngpt.progress import warn


def levels(
    scores: Annotated[
        Path,
        typer.Argument(
            help="Folder written by `aligngpt score` or `aligngpt judge`; or a Parquet, CSV, JSON or JSON lines file, "
            "or a folder of Parquet files, with a score column."
        ),
    ],
    levels: Annotated[int | None, typer.Option(min=2, help="N, the number of levels.", show_default="8")] = None,
    method: Annotated[
        Literal["quantile", "width"] | None,
        typer.Option(help="Levels with equal numbers of pairs, or of equal width.", show_default="quantile"),
    ] = None,
    borders: Annotated[
        Path | None, typer.Option(help="Use the borders of this levels.json instead of fitting new ones.")
    ] = None,
    score_column: Annotated[
        list[str] | None,
        typer.Option(
            help="Score column of a table, or of a folder of `aligngpt score`. For several, give the option once for "
            "each, with its weight, as in clip=0.7: the score is the weighted mean of their ranks.",
            show_default="score",
        ),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Id column, if SCORES is a table.", show_default=ID_COLUMNS)
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="Source that was scored, for REPORT; for a JSON OUT, the file or folder that was scored."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=".json or .jsonl: the source records with their level in the field `similarity` (0…N-1). .parquet: a "
            "table of id, score and level (1…N)."
        ),
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Levels whose ids are written to UIDS, as in 5-8 or 1,3.")] = None,
    uids: Annotated[
        Path | None, typer.Option(help=".npy: the kept ids, sorted, in DataComp's format. .txt: one id per line.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help=".html: a page about the levels; with SOURCE, it also shows images and captions."),
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(help="Folder that image paths are relative to, for REPORT.", show_default="the folder of SOURCE"),
    ] = None,
    caption_column: Annotated[
        str | None,
        typer.Option(help="Field with the caption, for REPORT.", show_default=CAPTION_COLUMNS),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(help="Field with the image, for REPORT.", show_default=IMAGE_COLUMNS),
    ] = None,
) -> None:
    """Divide scores into N levels, from 1 (worst aligned) to N (best), and add the levels to the data."""
    must_exist(scores, "the scores")
    if borders is not None:
        must_exist(borders, "the borders")

    from aligngpt.alignment.levels import thin_levels
    from aligngpt.levels.columns import parse_columns
    from aligngpt.levels.making import make_levels
    from aligngpt.levels.writing import JSON_SUFFIXES

    columns = parse_columns(score_column or [])
    look = None
    if report is not None:
        from aligngpt.levels.page import prepare_look

        look = prepare_look(
            scores,
            report,
            source=source,
            image_root=image_root,
            score_column=columns,
            id_column=id_column,
            caption_column=caption_column,
            image_column=image_column,
            written=(out, uids),
            borders=borders,
        )
    elif image_root is not None or caption_column is not None or image_column is not None:
        raise typer.BadParameter("--image-root, --caption-column and --image-column require --report")
    # The page can read any kind of source, but records can only be written for a JSON source.
    records = source if look is None or (out is not None and out.suffix in JSON_SUFFIXES) else None
    replaced = {path for path in (out, uids, report) if path is not None and path.exists()}
    made = make_levels(
        scores,
        source=records,
        out=out,
        num_levels=levels,
        method=method,
        borders=borders,
        score_column=columns,
        id_column=id_column,
        keep=keep,
        uids=uids,
    )
    for level, count in enumerate(made.counts, start=1):
        print(f"level {level}: {count} pairs")
    if made.without:
        print(f"skipped, no score: {made.without} rows")
    if made.levels.rank_error and made.taken_from is None:
        print(f"too many scores to sort: borders are approximate (KLL sketch, rank error {made.levels.rank_error:.2%})")
    for note in made.notes:
        print(note)
    if thin := thin_levels(made.counts):
        names = ", ".join(map(str, thin))
        warn(f"level {names}: less than a quarter of an equal share of the pairs, too few to train on well")
    for warning in made.warnings:
        warn(warning)
    if look is not None:
        look.write(made)
    written = {"borders": made.borders, "data": out, "uids": uids, "report": report}
    for name, path in written.items():
        if path is not None:
            print(f"{name}: {path}{' (replaced)' if path in replaced else ''}")
    if out is not None and out.suffix in JSON_SUFFIXES:
        print(f"next: name {out} in pretrain.data of a recipe (see `aligngpt recipe`), then aligngpt train RECIPE")
