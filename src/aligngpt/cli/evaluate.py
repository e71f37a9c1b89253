"""`aligngpt evaluate`: the accuracy on a file of questions, or the figures of benchmarks."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from aligngpt.cli.answer_judge import (
    JudgeConcurrency,
    JudgeKeyEnv,
    JudgeModel,
    JudgeOptions,
    JudgeTimeout,
    JudgeUrl,
    judge_of,
)
from aligngpt.cli.options import Base, Device, Precision, image_root_option, must_exist
from aligngpt.cli.rated_benchmarks import check_rated_only, rate
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub

BATCH_SIZE = 32


def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="Model: folder, hub name or adapter folder.", show_default=False)
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Argument(
            show_default=False,
            help="Questions with answers: JSON, JSON lines, CSV, TSV (also compressed), Parquet or tar files.",
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for predictions and results.")],
    benchmarks: Annotated[
        str | None,
        typer.Option(help="Run these benchmarks instead of QUESTIONS, as in pope,mme.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the benchmarks' files, most laid out as in LLaVA's eval.zip.", show_default=False
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Score these answers to one benchmark, without a model: JSON lines.", show_default=False),
    ] = None,
    rules: Annotated[
        Literal["published", "lmms"] | None,
        typer.Option(help="Rules that benchmarks are scored by.", show_default="published"),
    ] = None,
    picture_mode: Annotated[
        Literal["published", "pad"] | None,
        typer.Option(
            help="How benchmarks show pictures: as AlignGPT's evaluation did, or always padded.",
            show_default="published",
        ),
    ] = None,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key_env: JudgeKeyEnv = None,
    judge_options: JudgeOptions = None,
    judge_concurrency: JudgeConcurrency = None,
    judge_timeout: JudgeTimeout = None,
    base: Base = None,
    image_root: Annotated[Path | None, image_root_option("the folder of QUESTIONS")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only this many questions, drawn at random.")] = None,
    shuffle_images: Annotated[
        bool,
        typer.Option(
            "--shuffle-images",
            help="Pair each question with the image of another question: a baseline of what the text alone gives.",
        ),
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions answered at once.", show_default=str(BATCH_SIZE))
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed for --limit and --shuffle-images.", show_default="0")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Answer the questions of a file and count the right answers, or run benchmarks.

    The same command resumes an interrupted evaluation.
    """
    judge = {
        "--judge-url": judge_url,
        "--judge-model": judge_model,
        "--judge-key-env": judge_key_env,
        "--judge-options": judge_options,
        "--judge-concurrency": judge_concurrency,
        "--judge-timeout": judge_timeout,
    }
    if benchmarks is not None:
        for option, unused in (
            ("QUESTIONS", questions is None),
            ("--image-root", image_root is None),
            ("--shuffle-images", not shuffle_images),
            ("--seed", seed is None),
        ):
            if not unused:
                raise typer.BadParameter(f"{option} is not for --benchmarks, which ask their own questions; omit it")
        _run_benchmarks(
            model,
            [name.strip() for name in benchmarks.split(",") if name.strip()],
            data,
            answers,
            out,
            rules=rules,
            picture_mode=picture_mode,
            limit=limit,
            batch_size=batch_size,
            base=base,
            device=device,
            precision=precision,
            judge=judge,
        )
        return
    for option, value in (
        ("--data", data),
        ("--answers", answers),
        ("--rules", rules),
        ("--picture-mode", picture_mode),
        *judge.items(),
    ):
        if value is not None:
            raise typer.BadParameter(
                f"{option} is only for --benchmarks; name them, as in --benchmarks pope, or omit it"
            )
    if model is None:
        raise typer.BadParameter("Missing argument 'MODEL', the model to evaluate")
    if questions is None:
        raise typer.BadParameter("Missing argument 'QUESTIONS'; give a file of questions, or --benchmarks with --data")
    if seed is not None and limit is None and not shuffle_images:
        raise typer.BadParameter("--seed does nothing without --limit or --shuffle-images; omit it, or add one of them")

    must_exist(questions, "the questions", or_address=True)
    local_or_hub(model, "the model", AlignGPTError, with_owner=True)

    from aligngpt.data.sources.remote import located
    from aligngpt.evaluation.accuracy import evaluate_file
    from aligngpt.evaluation.matching import JUDGING
    from aligngpt.evaluation.results import PREDICTIONS_FILE, RESULTS_FILE, read_predictions, wrong_answers
    from aligngpt.evaluation.run_evaluations import TRAINED_ON, run_of
    from aligngpt.progress import warn
    from aligngpt.scoring.places import same_place

    # Both names are of files that an evaluation keeps in its folder.
    for name in (PREDICTIONS_FILE, RESULTS_FILE):
        if (out / name).exists() and same_place(out / name, located(questions)):
            raise AlignGPTError(f"{out / name}, which would be written, has the questions; give another --out")

    result = evaluate_file(
        model,
        questions,
        out=out,
        base=base,
        image_root=image_root,
        limit=limit,
        shuffle_images=shuffle_images,
        batch_size=batch_size or BATCH_SIZE,
        seed=0 if seed is None else seed,
        device=device,
        precision=precision,
    )
    print(result.table())
    if result.asked is not None and result.asked.trained_on:
        warn(
            f"these are {TRAINED_ON}, so the accuracy says nothing about others; evaluate on questions about images "
            "that are in neither stage"
        )
    print(f"judged by comparison: {JUDGING}")
    if wrong := wrong_answers(read_predictions(out / PREDICTIONS_FILE).values()):
        print(wrong)
    print(f"predictions: {out / PREDICTIONS_FILE}\nresults: {out / RESULTS_FILE}")
    if (run := run_of(out)) is not None:
        print(f"next: {shlex.join(['aligngpt', 'report', str(run)])}")


def _run_benchmarks(
    model: str | None,
    names: list[str],
    data: Path | None,
    answers: Path | None,
    out: Path,
    *,
    rules: str | None,
    picture_mode: Literal["published", "pad"] | None,
    limit: int | None,
    batch_size: int | None,
    base: str | None,
    device: str,
    precision: str,
    judge: dict[str, Any],
) -> None:
    if data is None:
        raise typer.BadParameter("--benchmarks needs --data, the folder with the benchmarks' files; nothing is fetched")
    if (model is None) == (answers is None):
        raise typer.BadParameter("--benchmarks needs either MODEL, to ask it, or --answers FILE, to score answers")
    if answers is not None:
        if len(set(names)) != 1:
            raise typer.BadParameter("--answers has the answers to one benchmark; name one with --benchmarks")
        for option, given in (
            ("--picture-mode", picture_mode is not None),
            ("--limit", limit is not None),
            ("--base", base is not None),
            ("--batch-size", batch_size is not None),
            ("--device", device != "auto"),
            ("--precision", precision != "auto"),
        ):
            if given:
                raise typer.BadParameter(f"{option} is about asking a model, but --answers asks none; omit it")
        must_exist(answers, "the answers")
    must_exist(data, "the benchmarks' files")
    if model is not None:
        local_or_hub(model, "the model", AlignGPTError, with_owner=True)

    from aligngpt.evaluation.alignment_measures import yes_no
    from aligngpt.evaluation.alignment_measures.caption_sets import CAPTION_SETS

    rated = (tuple(CAPTION_SETS), (yes_no.NAME,))
    if any(set(names) & set(group) for group in rated):
        others: dict[str, Any] = {"--answers": answers, "--rules": rules, "--picture-mode": picture_mode}
        others |= {"--batch-size": batch_size, **judge}
        check_rated_only(names, rated, [option for option, value in others.items() if value is not None])
        assert model is not None
        rate(model, names, data, out, limit=limit, base=base, device=device, precision=precision)
        return

    from aligngpt.evaluation.benchmarks.identity import identity_of, remarks_on
    from aligngpt.evaluation.benchmarks.published import comparison_table
    from aligngpt.evaluation.benchmarks.registry import find_benchmarks
    from aligngpt.evaluation.benchmarks.runner import run_benchmarks
    from aligngpt.evaluation.results import RESULTS_FILE
    from aligngpt.evaluation.results_folder import TABLE_FILE
    from aligngpt.inference.engine import Engine

    found = find_benchmarks(names)
    for benchmark in found:
        benchmark.check_rules(rules or "published")
    asked = judge_of(judge, found)
    if model is None:
        assert answers is not None
        results = run_benchmarks(
            None, names, data, out, answers={names[0]: answers}, rules=rules or "published", judge=asked
        )
    else:
        with Engine.load(model, base=base, device=device, dtype=precision) as engine:
            results = run_benchmarks(
                engine,
                names,
                data,
                out,
                rules=rules or "published",
                model=identity_of(engine, model),
                picture_mode=picture_mode or "published",
                batch_size=batch_size or BATCH_SIZE,
                limit=limit,
                remarks=remarks_on(engine),
                judge=asked,
            )
    print(comparison_table(results))
    print(f"results: {out / RESULTS_FILE}\ntable: {out / TABLE_FILE}")
