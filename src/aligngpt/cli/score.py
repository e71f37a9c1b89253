"""`aligngpt score`: the similarity of image and caption of every pair."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from aligngpt.cli.numbers import finite
from aligngpt.cli.options import (
    CaptionColumn,
    Device,
    IdColumn,
    ImageColumn,
    MaxRejectShare,
    Precision,
    image_root_option,
)
from aligngpt.cli.scoring import SHARD_SIZE, next_command
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.progress import say, warn


def score(
    source: Annotated[
        str,
        typer.Argument(
            help="Image–caption pairs: a JSON, JSON lines, CSV or TSV file (also compressed), COCO captions, Parquet "
            "or tar files or a folder of them, a pattern such as {00000..00041}.tar, a folder of images with texts, or "
            "a data set on the hub."
        ),
    ],
    model: Annotated[
        list[str],
        typer.Option(
            help="CLIP-like model: folder or hub name. Repeat it to score with several models in one pass; each after "
            "the first gets its own score column."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the scores.")],
    image_root: Annotated[Path | None, image_root_option("the folder of SOURCE")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or captions encoded at once.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Threads or processes that open images; 0 for one thread.",
            show_default="chosen for this machine",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="i/n, with i in 0…n-1: score only every n-th shard, starting at shard i; other processes score the "
            "rest."
        ),
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Also write the image and caption embeddings, of the first model.")
    ] = False,
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pairs per shard; an interruption loses only the shards in progress. A tar file is always one shard.",
            show_default="10000",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Score only the first records, as a try; OUT cannot be resumed without this option."),
    ] = None,
    caption_column: CaptionColumn = None,
    image_column: ImageColumn = None,
    id_column: IdColumn = None,
    max_reject_share: MaxRejectShare = 0.05,
    device: Device = "auto",
    precision: Precision = "auto",
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This process, or a pool of Ray actors.")] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Address of a Ray cluster; auto: the cluster of this machine.",
            show_default="a Ray instance for this job only",
        ),
    ] = None,
    ray_actors: Annotated[
        int | None,
        typer.Option(min=1, help="Number of Ray actors.", show_default="one per GPU, or one per 2 CPUs"),
    ] = None,
    gpus_per_actor: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=finite,
            help="GPUs per Ray actor; may be a fraction.",
            show_default="1, or 0 if there is no GPU",
        ),
    ] = None,
) -> None:
    """Compute the cosine similarity of image and caption for every pair.

    The same command resumes an interrupted job.
    """
    from functools import partial

    from aligngpt.data.records.pairs import open_pairs

    if engine == "ray" and shard is not None:
        raise typer.BadParameter("--shard is for independent processes; with --engine ray, Ray assigns the shards")
    if engine == "local" and (ray_address, ray_actors, gpus_per_actor) != (None, None, None):
        raise typer.BadParameter("--ray-address, --ray-actors and --gpus-per-actor require --engine ray")
    # The source is opened before anything that takes long to import.
    pairs = open_pairs(
        source,
        image_root=image_root,
        shard_size=SHARD_SIZE if shard_size is None else shard_size,
        caption_column=caption_column,
        image_column=image_column,
        id_column=id_column,
    )
    if pairs.kind == "webdataset":
        _refuse_for_tars(source, image_root=image_root, image_column=image_column, shard_size=shard_size)
    for name in model:
        local_or_hub(name, "the model", AlignGPTError)

    from aligngpt.scoring.encoders import PairScorer
    from aligngpt.scoring.first_pairs import FirstPairs
    from aligngpt.scoring.job import score_source
    from aligngpt.scoring.manifest import begun_precision
    from aligngpt.scoring.score_files import ScoresError
    from aligngpt.scoring.separation import separation_text, separation_warning
    from aligngpt.scoring.several_models import score_columns
    from aligngpt.scoring.shares import parse_share

    if limit is not None:
        pairs = FirstPairs(pairs, limit)
    share = None if shard is None else parse_share(shard)
    if twice := next((name for name in model if model.count(name) > 1), None):
        raise ScoresError(f"--model {twice} is given twice; its scores would be the same, so name each model once")
    if len(model) > 1:
        for name, column in zip(model, ["score", *score_columns(model[1:])], strict=True):
            say(f"{column}: {name}")
    if engine == "ray":
        # The actors have a different working directory.
        model = [str(Path(name).absolute()) if Path(name).is_dir() else name for name in model]
    chosen = begun_precision(out, precision)
    load_scorer, *load_others = (partial(PairScorer.load, name, device=device, dtype=chosen) for name in model)
    if engine == "ray":
        from aligngpt.scoring.ray.engine import score_on_ray

        summary = score_on_ray(
            pairs,
            load_scorer,
            out,
            address=ray_address,
            actors=ray_actors,
            gpus_per_actor=gpus_per_actor,
            batch_size=batch_size,
            workers=workers,
            embeddings=embeddings,
            max_reject_share=max_reject_share,
            load_others=load_others,
        )
    else:
        summary = score_source(
            pairs,
            load_scorer(),
            out,
            batch_size=batch_size,
            workers=workers,
            embeddings=embeddings,
            max_reject_share=max_reject_share,
            shard=share,
            others=[load() for load in load_others],
        )
    if not summary.finished:
        print("not finished: the other processes have yet to score their shards")
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary.reasons.items())
    print(f"{summary.scored} pairs scored, {summary.rejected} rejected{reasons and f' ({reasons})'}: {out}")
    if not summary.finished:
        return
    if summary.auc is not None:
        print(separation_text(summary.auc))
        if warning := separation_warning(summary.auc, summary.scored):
            warn(warning)
    print(f"next: {next_command(source, out, pairs.kind)}")


def _refuse_for_tars(source: str, **options: object) -> None:
    """Refuse options that have no effect on tar files."""
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        raise AlignGPTError(
            f"{source} consists of tar files, which contain their images and are one shard each; omit "
            f"{' and '.join(given)}"
        )
