"""The command `aligngpt`: parse, call one function, print."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from aligngpt import __version__
from aligngpt.endings import INTERRUPTED, said_in_one_line, stoppable
from aligngpt.progress import console

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="AlignGPT: score → levels → train → evaluate → ask. Multimodal language models whose alignment is modelled.",
)

RESUMABLE = ("quickstart", "score", "train", "evaluate")
"""Verbs that resume where they stopped; the others leave no partial output and start over."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"aligngpt {__version__}")
        raise typer.Exit


Base = Annotated[
    str | None,
    typer.Option(
        help="Base model, if MODEL is an adapter folder: folder or hub name.",
        show_default="the one that the adapter names",
    ),
]


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Options that come before the verb."""


@app.command()
def quickstart(
    minutes: Annotated[float, typer.Option(min=1, help="Time limit for the whole run, in minutes.")] = 12,
    out: Annotated[Path | None, typer.Option(help="Folder for the run.", show_default="runs/quickstart")] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Run the whole method on small real models and data: score, levels, two stages, evaluation, report.

    The same command resumes an interrupted run, and says so if the run is already complete.
    """
    from aligngpt.quickstart.pipeline import run_quickstart

    run_quickstart(out, minutes=minutes, seed=seed)


@app.command()
def score(
    source: Annotated[
        str,
        typer.Argument(
            help="Image–caption pairs: a LLaVA-format JSON, JSON lines, CSV, Parquet or tar file, a folder of such "
            "files, a pattern such as {00000..00041}.tar, or a data set on the hub."
        ),
    ],
    model: Annotated[str, typer.Option(help="CLIP-like model: folder or hub name.")],
    out: Annotated[Path, typer.Option(help="Folder for the scores.")],
    image_root: Annotated[
        Path | None,
        typer.Option(help="Folder that image paths are relative to.", show_default="the folder of SOURCE"),
    ] = None,
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
        bool, typer.Option("--embeddings", help="Also write the image and caption embeddings.")
    ] = False,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Pairs per shard; an interruption loses only the shards in progress.")
    ] = 10_000,
    caption_column: Annotated[
        str | None, typer.Option(help="Field with the caption.", show_default="caption, text or TEXT")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Field with the image.", show_default="image, file_name or path")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Field with the id.", show_default="id, uid or key")] = None,
    max_reject_share: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of the records that may be rejected.")
    ] = 0.05,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Precision of the model; auto is bfloat16 if it is faster on this device, else float32."),
    ] = "auto",
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This process, or a pool of Ray actors.")] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of a Ray cluster; auto: the cluster of this machine.",
            show_default="a Ray instance for this job only",
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Number of Ray actors.", show_default="one per GPU, or one per 2 CPUs"),
    ] = None,
) -> None:
    """Compute the cosine similarity of image and caption for every pair.

    The same command resumes an interrupted job.
    """
    from functools import partial

    from aligngpt.data.records.pairs import open_pairs
    from aligngpt.scoring.encoders import PairScorer
    from aligngpt.scoring.job import score_source
    from aligngpt.scoring.manifest import begun_precision
    from aligngpt.scoring.shares import parse_share

    if engine == "ray" and shard is not None:
        raise typer.BadParameter("--shard is for independent processes; with --engine ray, Ray assigns the shards")
    if engine == "local" and (address is not None or actors is not None):
        raise typer.BadParameter("--address and --actors require --engine ray")
    share = None if shard is None else parse_share(shard)
    pairs = open_pairs(
        source,
        image_root=image_root,
        shard_size=shard_size,
        caption_column=caption_column,
        image_column=image_column,
        id_column=id_column,
    )
    if engine == "ray" and Path(model).is_dir():
        # The actors have a different working directory.
        model = str(Path(model).absolute())
    load_scorer = partial(PairScorer.load, model, device=device, dtype=begun_precision(out, precision))
    if engine == "ray":
        from aligngpt.scoring.ray.engine import score_on_ray

        summary = score_on_ray(
            pairs,
            load_scorer,
            out,
            address=address,
            actors=actors,
            batch_size=batch_size,
            workers=workers,
            embeddings=embeddings,
            max_reject_share=max_reject_share,
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
        )
    if not summary.finished:
        print("not finished: the other processes have yet to score their shards")
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary.reasons.items())
    print(f"{summary.scored} pairs scored, {summary.rejected} rejected{reasons and f' ({reasons})'}: {out}")


@app.command()
def levels(
    scores: Annotated[
        Path,
        typer.Argument(
            help="Folder written by `aligngpt score`; or a Parquet, CSV, JSON or JSON lines file, or a folder of "
            "Parquet files, with a score column."
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
        str | None, typer.Option(help="Score column, if SCORES is a table.", show_default="score")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="Source that was scored, for REPORT; for a JSON OUT, the JSON file that was scored."),
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
        typer.Option(help="Field with the caption, for REPORT.", show_default="caption, text or TEXT"),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(help="Field with the image, for REPORT.", show_default="image, file_name or path"),
    ] = None,
) -> None:
    """Divide scores into N levels, from 1 (worst aligned) to N (best), and add the levels to the data."""
    from aligngpt.alignment.levels import thin_levels
    from aligngpt.levels.making import make_levels
    from aligngpt.levels.writing import JSON_SUFFIXES

    look = None
    if report is not None:
        from aligngpt.levels.page import prepare_look

        look = prepare_look(
            scores,
            report,
            source=source,
            image_root=image_root,
            score_column=score_column,
            caption_column=caption_column,
            image_column=image_column,
            written=(out, uids),
            borders=borders,
        )
    elif image_root is not None or caption_column is not None or image_column is not None:
        raise typer.BadParameter("--image-root, --caption-column and --image-column require --report")
    # The page can read any kind of source, but records can only be written for a JSON source.
    records = source if look is None or (out is not None and out.suffix in JSON_SUFFIXES) else None
    made = make_levels(
        scores,
        source=records,
        out=out,
        num_levels=levels,
        method=method,
        borders=borders,
        score_column=score_column,
        keep=keep,
        uids=uids,
    )
    for level, count in enumerate(made.counts, start=1):
        print(f"level {level}: {count} pairs")
    if made.without:
        print(f"skipped, no score: {made.without} rows")
    if made.levels.rank_error and made.taken_from is None:
        print(f"too many scores to sort: borders are approximate (KLL sketch, rank error {made.levels.rank_error:.2%})")
    if thin := thin_levels(made.counts):
        names = ", ".join(map(str, thin))
        console.print(
            f"warning: level {names}: less than a quarter of an equal share of the pairs, too few to train on well"
        )
    if look is not None:
        look.write(made)
    written = {"borders": made.borders, "data": out, "uids": uids, "report": report}
    print("\n".join(f"{name}: {path}" for name, path in written.items() if path is not None))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file: model, stages, output.")],
    stage: Annotated[
        Literal["pretrain", "instruct", "all"], typer.Option(help="Stage to run; finished stages are skipped.")
    ] = "all",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a recipe value, as in instruct.epochs=2; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print the trained parameters, the amount of data and the memory needed."),
    ] = False,
) -> None:
    """Train a model in two stages: pre-training on captions with levels, then instruction tuning.

    The same command resumes an interrupted run.
    """
    from aligngpt.hub_names import local_or_hub
    from aligngpt.model.backbones import BackboneError
    from aligngpt.training.distributed.processes import is_main_process
    from aligngpt.training.dry_run import plan
    from aligngpt.training.recipe import STAGES, load_recipe
    from aligngpt.training.run import train
    from aligngpt.training.stage import model_folder

    read = load_recipe(recipe, settings or [])
    local_or_hub(read.model.vision_tower, "the vision tower", BackboneError)
    local_or_hub(read.model.language_model, "the language model", BackboneError)
    stages = STAGES if stage == "all" else (stage,)
    if dry_run:
        print("\n\n".join(one.text() for one in plan(read, stages)))
        return
    results = train(read, stages)
    if not is_main_process():
        return
    for result in results:
        print(f"{result.stage}: {result.steps} steps, loss {result.loss:.3f}, {result.seconds:.0f} s")
    if results[-1].stage == "instruct":
        print(f"model: {model_folder(read)}")


@app.command()
def check(
    data: Annotated[list[Path], typer.Argument(help="Data files: JSON arrays, JSON lines, Parquet or tar files.")],
    image_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that image paths are relative to.",
            show_default="image root of the recipe, or each file's own folder",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to count tokens with: folder or hub name.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Check against a stage of this recipe; tokens are counted with its backbones."),
    ] = None,
    stage: Annotated[
        Literal["pretrain", "instruct"] | None, typer.Option(help="Stage of the recipe.", show_default="instruct")
    ] = None,
    levels: Annotated[int | None, typer.Option(min=2, help="N: report levels outside 1…N.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Decode every image, not only its header.")] = False,
    out: Annotated[Path | None, typer.Option("--json", help="Write every problem to this file.")] = None,
) -> None:
    """Check data files and list every problem; exit code 1 if a record would be rejected."""
    from aligngpt.checking.files import check_files, write_checks

    if model is not None and recipe is not None:
        raise typer.BadParameter("give --model or --recipe, not both")
    if stage is not None and recipe is None:
        raise typer.BadParameter("--stage requires --recipe")
    if recipe is not None:
        from aligngpt.checking.for_training import check_for_recipe
        from aligngpt.training.recipe import load_recipe

        checks = check_for_recipe(
            data, load_recipe(recipe), stage or "instruct", image_root=image_root, levels=levels, full=full
        )
    elif model is not None:
        from aligngpt.checking.for_training import check_for_model

        checks = check_for_model(data, model, image_root=image_root, levels=levels, full=full)
    else:
        checks = check_files(data, image_root=image_root, levels=levels, full=full)
    print("\n\n".join(one.text() for one in checks))
    if out is not None:
        write_checks(out, checks)
        print(f"\nall problems: {out}")
    if not all(one.good for one in checks):
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model: folder, hub name or adapter folder.")],
    questions: Annotated[Path, typer.Argument(help="Questions with answers: LLaVA-format JSON or JSON lines.")],
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
    seed: Annotated[int, typer.Option(help="Random seed for --limit and --shuffle-images.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Precision of the model; auto is bfloat16 if it is faster, else float32."),
    ] = "auto",
) -> None:
    """Answer the questions of a file and count the right answers.

    The same command resumes an interrupted evaluation.
    """
    from aligngpt.evaluation.accuracy import evaluate_file

    result = evaluate_file(
        model,
        questions,
        out=out,
        base=base,
        image_root=image_root,
        limit=limit,
        shuffle_images=shuffle_images,
        batch_size=batch_size,
        seed=seed,
        device=device,
        precision=precision,
    )
    print(result.table())
    print(f"predictions: {out / 'predictions.jsonl'}\nresults: {out / 'results.json'}")


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="Model: folder, hub name or adapter folder.")],
    image: Annotated[Path, typer.Argument(help="Image: PNG, JPEG, WebP, GIF, BMP or TIFF.")],
    question: Annotated[str, typer.Argument(help="Question about the image.")],
    base: Base = None,
    show_alignment: Annotated[
        bool, typer.Option("--show-alignment", help="Print the weight that the gate gives each level.")
    ] = False,
    level: Annotated[int | None, typer.Option(min=1, help="Use alignment level 1…N instead of the gate's mix.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of the answer, in tokens.")] = 256,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
) -> None:
    """Ask one question about one image; the answer is printed as it is generated."""
    from aligngpt.inference.ask import ask

    for piece in ask(
        model,
        image,
        question,
        base=base,
        show_alignment=show_alignment,
        level=level,
        max_new_tokens=max_new_tokens,
        device=device,
    ):
        print(piece, end="", flush=True)
    print()


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of an original AlignGPT or LLaVA model, or an mm_projector_align.bin or mm_projector.bin file."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the converted model.")],
    vision_tower: Annotated[
        str | None, typer.Option(help="Folder or hub name.", show_default="the one named in SOURCE")
    ] = None,
    language_model: Annotated[
        str | None,
        typer.Option(help="Language model that mm_projector_align.bin was trained for: folder or hub name."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name.", show_default="the tokenizer of SOURCE")
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="Name of a chat template, or a Jinja file.", show_default="the template of SOURCE, or vicuna"
        ),
    ] = None,
    original: Annotated[
        bool,
        typer.Option("--to-original", help="Convert one of our models to the format of the original code instead."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed for weights that SOURCE does not have.")] = 0,
) -> None:
    """Convert a published AlignGPT or LLaVA model to a model folder that every other command reads."""
    from aligngpt.model.foreign.conversion import convert, to_original

    if original:
        if vision_tower is None:
            raise typer.BadParameter(
                "--to-original requires --vision-tower, the name that the original code is to load the tower by"
            )
        print(f"{to_original(source, out, vision_tower=vision_tower):,} parameters: {out}")
        return
    done = convert(
        source,
        out,
        vision_tower=vision_tower,
        language_model=language_model,
        tokenizer=tokenizer,
        chat_template=chat_template,
        seed=seed,
    )
    print(f"{done.layout}: {done.parameters:,} parameters: {out}")
    print(f"chat template: {done.chat_template}")
    for note in done.notes:
        print(f"note: {note}")
    if done.fresh:
        print(f"newly initialised, to be trained: {', '.join(done.fresh)}")


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder written by a stage with lora.merge=false.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged model.")],
    base: Annotated[
        str | None,
        typer.Option(help="Base model of the adapter: folder or hub name.", show_default="the one that ADAPTER names"),
    ] = None,
) -> None:
    """Merge an adapter and its base model into one model folder."""
    from aligngpt.model.adapters import merge_adapter

    print(f"{merge_adapter(adapter, out, base=base):,} parameters: {out}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder of `aligngpt quickstart` or `aligngpt train`.")],
    out: Annotated[Path | None, typer.Option(help="HTML file.", show_default="report.html in RUN")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Another run folder or a curve file, drawn behind the curves of RUN for comparison."),
    ] = None,
) -> None:
    """Write an HTML report of a run: levels, loss curves, accuracies, gate weights, right and wrong answers."""
    from aligngpt.evaluation.run_report import write_report

    print(write_report(run, out, reference=reference))


def _speak_utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale's file name encoding is not UTF-8.

    The underlying libraries expect UTF-8 paths and could not open a folder with an accent in its name.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """Run the command.

    An error that the user can act on becomes one line and exit code 1. Ctrl-C exits with code 130 and SIGTERM with
    143; both print what running the same command again will do.
    """
    _speak_utf8()
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    with stoppable() as stopping:
        try:
            # Inside the try block: this imports libraries, and Ctrl-C may arrive meanwhile.
            from aligngpt.quiet import quiet_libraries

            quiet_libraries()
            app()
        except KeyboardInterrupt:
            sys.exit(stopping.code)
        except SystemExit as end:
            if end.code != INTERRUPTED:
                raise
            console.print(
                f"\nstopped; the same command {'resumes where it stopped' if verb in RESUMABLE else 'starts over'}"
            )
            sys.exit(stopping.code)
        except Exception as error:
            message = said_in_one_line(error, verb)
            if message is None:
                raise
            console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
            sys.exit(1)
