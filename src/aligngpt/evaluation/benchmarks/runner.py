"""Run benchmarks: ask a model or take answers from files, score them by named rules, save what a figure depends on."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.benchmarks.answers import join_answers, read_answers
from aligngpt.evaluation.benchmarks.asking import PREDICTIONS_FILE, Answering, ask, check_told_apart
from aligngpt.evaluation.benchmarks.folder import DataFolder
from aligngpt.evaluation.benchmarks.frame import PUBLISHED, Benchmark, Item, Key, PictureMode
from aligngpt.evaluation.benchmarks.published import comparison_markdown
from aligngpt.evaluation.benchmarks.registry import all_benchmarks, find_benchmarks
from aligngpt.evaluation.benchmarks.results import BenchmarkResult
from aligngpt.evaluation.judging.asking import AnswerJudge, judge_answers
from aligngpt.evaluation.judging.verdicts import JudgedBenchmark
from aligngpt.evaluation.results import RESULTS_FILE
from aligngpt.evaluation.results_folder import add_results, check_replaceable, save_results
from aligngpt.files import atomic_write, sha256_of
from aligngpt.locks import owned_folder

GREEDY = "greedy, one turn"


class BenchmarksError(AlignGPTError):
    """Benchmarks cannot be run as asked."""


def run_benchmarks(
    engine: Answering | None,
    names: Sequence[str],
    data: Path,
    out: Path,
    *,
    answers: Mapping[str, Path] | None = None,
    rules: str = PUBLISHED,
    model: str = "",
    picture_mode: PictureMode | Literal["published"] = "published",
    batch_size: int = 16,
    limit: int | None = None,
    remarks: Sequence[str] = (),
    judge: AnswerJudge | None = None,
) -> list[BenchmarkResult]:
    """Run benchmarks one after another; the same call resumes, and asks nothing that is answered already.

    Writes a folder for each benchmark with `predictions.jsonl`, `results.json` and files for evaluation servers, and
    `results.json` and `table.md` with all results, those of the same model on other benchmarks from before among them.
    Without a model, answers in `out` from before are scored again.

    Args:
        engine: the model; None to score answers that exist.
        names: benchmarks, see `all_benchmarks`.
        data: folder laid out like LLaVA's `playground/data/eval`.
        out: folder for the results.
        answers: benchmark → file of answers from elsewhere, see `read_answers`; needs no model.
        rules: rule set that all of the benchmarks have.
        model: name and state of the model; must differ between different weights, since answers are kept under it.
        picture_mode: `pad`, `crop`, or `published` for what AlignGPT's own evaluation did for the benchmark.
        batch_size: questions answered at once.
        limit: ask at least this many questions only, about pictures drawn at random; nothing is written for servers.
        remarks: what else a reader of the figures has to know about the model; added to the notes.
        judge: asked about the answers to the benchmarks that need a judge; the others are scored as always.

    Raises:
        AlignGPTError: a benchmark is unknown or lacks the rules, files are missing or do not belong together, answers
            are missing, `out` has results of another kind or is in use, or the model cannot answer.
    """
    benchmarks, given = find_benchmarks(names), dict(answers or {})
    for benchmark in benchmarks:
        benchmark.check_rules(rules)
    if unused := given.keys() - {one.name for one in benchmarks}:
        raise BenchmarksError(f"answers are given for {min(unused)}, which is not among the benchmarks to run")
    if engine is not None and given:
        raise BenchmarksError("give either a model or files of answers, not both")
    if engine is None and limit is not None:
        raise BenchmarksError("answers from files are scored completely; leave the limit out")
    if engine is not None and not model:
        raise BenchmarksError("name the model: its answers are kept under that name")
    if picture_mode not in ("published", "pad", "crop"):
        raise BenchmarksError(f"there is no picture mode {picture_mode!r}; use published, pad or crop")
    check_replaceable(out, [benchmark.name for benchmark in benchmarks], all_benchmarks())
    results = []
    for benchmark in benchmarks:
        folder = out / benchmark.name
        mode = benchmark.picture_mode if picture_mode == "published" else picture_mode
        with owned_folder(folder, "evaluate"):
            source = DataFolder(data, benchmark.source)
            items = _drawn(benchmark.read(source), limit)
            check_told_apart(benchmark, items)
            if engine is not None:
                texts = ask(engine, benchmark, items, folder, model=model, mode=mode, batch_size=batch_size)
            path = given.get(benchmark.name, folder / PREDICTIONS_FILE)
            if engine is None:
                texts = _existing(benchmark, items, path)
            if judge is not None and isinstance(benchmark, JudgedBenchmark):
                ordered = [texts[benchmark.key(item)] for item in items]
                judge_answers(judge, benchmark, items, ordered, source, folder, rules)
            asked = mode if engine is not None else None
            result = _score(benchmark, items, texts, source, folder, path, rules, model, asked, limit, remarks)
            save_results(folder / RESULTS_FILE, [asdict(result)])
        results.append(result)
    add_results(out, [asdict(one) for one in results], model, all_benchmarks(), _table)
    return results


def _table(results: Sequence[dict[str, Any]]) -> str:
    return comparison_markdown([BenchmarkResult(**one) for one in results])


def _drawn(items: list[Item], limit: int | None) -> list[Item]:
    """At least `limit` of the items, with whole pictures: measures such as MME's need all questions about each."""
    if limit is None or limit >= len(items):
        return items
    if limit < 1:
        raise BenchmarksError(f"the limit must be at least 1, got {limit}")
    size = Counter(item.group for item in items)
    groups = list(size)
    random.Random(0).shuffle(groups)
    chosen, count = set[str](), 0
    for group in groups:
        if count >= limit:
            break
        chosen.add(group)
        count += size[group]
    return [item for item in items if item.group in chosen]


def _existing(benchmark: Benchmark, items: Sequence[Item], path: Path) -> dict[Key, str]:
    if not path.is_file():
        raise BenchmarksError(
            f"there are no answers to {benchmark.title} at {path}; give a model, or a file of answers to score"
        )
    return join_answers(benchmark, items, read_answers(path), path)


def _score(
    benchmark: Benchmark,
    items: Sequence[Item],
    texts: Mapping[Key, str],
    data: DataFolder,
    folder: Path,
    path: Path,
    rules: str,
    model: str,
    mode: PictureMode | None,
    limit: int | None,
    remarks: Sequence[str],
) -> BenchmarkResult:
    """Score complete answers; `mode` is None if they were not asked for here."""
    ordered = [texts[benchmark.key(item)] for item in items]
    score = benchmark.score(items, ordered, rules, folder)
    # A server takes the answers to all questions only.
    uploads = benchmark.uploads(items, ordered, data) if limit is None else {}
    for name, content in uploads.items():
        with atomic_write(folder / name) as file:
            file.write(content)
    notes = [*remarks, *score.notes, *data.notes]
    if limit is not None:
        notes.append("pictures were drawn at random; nothing is written for evaluation servers")
    if mode is None:
        notes.append(f"answers from {path}: how the model was asked is not checked")
    elif mode != benchmark.picture_mode:
        notes.append(f"pictures were shown by {mode}; the published figures used {benchmark.picture_mode}")
    if not (complete := benchmark.is_complete(len(items))):
        notes.append(f"{len(items):,} questions; the published figures are of {benchmark.published_questions:,}")
    if empty := sum(not text.strip() for text in ordered):
        notes.append(f"{empty:,} answers are empty")
    with path.open("rb") as stream:
        digest = sha256_of(stream)
    return BenchmarkResult(
        name=benchmark.name,
        title=benchmark.title,
        split=benchmark.split,
        figure=score.figure,
        low=score.low,
        high=score.high,
        unit=benchmark.unit,
        interval=score.interval,
        parts=score.parts,
        rules=rules,
        scorer=benchmark.scorers[rules],
        column=benchmark.column,
        as_published=rules == PUBLISHED and complete and mode in (None, benchmark.picture_mode),
        model=model,
        answers=str(path),
        answers_sha256=digest,
        picture_mode=mode,
        new_tokens=None if mode is None else benchmark.new_tokens,
        decoding=None if mode is None else GREEDY,
        hint=benchmark.hint,
        example_prompt=items[0].prompt,
        questions=len(items),
        pictures=len({item.group for item in items if item.picture is not None}),
        files=data.hashes,
        uploads=[str(folder / name) for name in uploads],
        notes=notes,
        judge=score.judge,
    )
