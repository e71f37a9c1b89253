"""Accuracy on a file of questions with answers: resumable, each answer saved as soon as it is generated."""

import json
import random
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from aligngpt.data.images.opening import ImageError
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects
from aligngpt.data.sources.finding import content_of
from aligngpt.data.sources.remote import located
from aligngpt.device import resolve_device, resolve_dtype
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.benchmarks.asking import ASKED_FILE
from aligngpt.evaluation.fingerprint import fingerprint_of, state_of_model
from aligngpt.evaluation.matching import matches, right_answers
from aligngpt.evaluation.questions import Questions, read_questions
from aligngpt.evaluation.results import (
    PREDICTIONS_FILE,
    RESULTS_FILE,
    AskedAbout,
    EvaluationError,
    EvaluationResult,
    Prediction,
    drop_incomplete,
    read_predictions,
    summarise,
)
from aligngpt.files import atomic_write
from aligngpt.inference.engine import Answer, Engine, EngineError, Request, Sampling
from aligngpt.locks import owned_folder
from aligngpt.progress import Meter
from aligngpt.training.run_card import DataFacts

EXTRA_TOKENS = 4
FINGERPRINT_FILE = "fingerprint"


def evaluate_file(
    model: str | Path,
    questions: Path,
    *,
    out: Path,
    base: str | Path | None = None,
    image_root: Path | None = None,
    limit: int | None = None,
    shuffle_images: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    max_reject_share: float = 0.05,
) -> EvaluationResult:
    """Answer the questions of a file with a model; the same call resumes an interrupted evaluation.

    Writes `predictions.jsonl` and `results.json` to `out`. The last turn of a record is the expected answer; the
    earlier turns are given to the model. Decoding is greedy, and `matching.matches` decides whether an answer is
    correct; if a record has several accepted answers, any of them is correct.

    Args:
        model: folder or hub name.
        questions: JSON array or JSON lines of LLaVA records or pairs; or Parquet or tar files, a folder of them or a
            pattern.
        out: folder for the results.
        base: base model of an adapter folder, see `Engine.load`.
        image_root: folder that image paths are relative to; the file's own folder when None. Images stored in Parquet
            or tar files need none.
        limit: maximum number of questions, drawn at random with `seed`.
        shuffle_images: show each question the images of another question.
        batch_size: number of questions per batch.
        seed: random seed of the draw and the shuffle.
        device: see `Engine.load`.
        precision: `float32`, `bfloat16`, or `auto` for bfloat16 where it is faster; an evaluation resumed with `auto`
            keeps its precision.
        max_reject_share: maximum share of unusable questions, 0…1.

    Raises:
        AlignGPTError: the model or the file cannot be used, `out` contains a different evaluation, or another process
            is evaluating into it.
    """
    # Separate from the rejects of an earlier evaluation, until the folder is known to belong to this evaluation.
    with owned_folder(out, "evaluate"), Rejects(out / "rejects.new.jsonl", max_share=max_reject_share) as rejects:
        questions = located(questions)
        asked_of = read_questions(questions, image_root=image_root, rejects=rejects)
        samples, root = asked_of.samples, asked_of.root
        # Denominator of the reject share: `rejects` covers the whole file, not only the drawn questions.
        looked_at = len(samples) + rejects.count
        if limit is not None and limit < len(samples):
            samples = sorted(random.Random(seed).sample(samples, limit), key=lambda sample: sample.record)
        started = time.monotonic()
        try:
            shown = shuffled_images(samples, seed) if shuffle_images else [sample.images for sample in samples]
            known = trained_on(model, questions)
            fingerprint = fingerprint_of(model, base, questions, asked_of, samples, shown)
            precision = _decide_precision(out, fingerprint, precision, device)
            drop_incomplete(out / PREDICTIONS_FILE)
            done = read_predictions(out / PREDICTIONS_FILE)
            open_questions = [sample for sample in samples if sample.record not in done]
            # Load before writing the fingerprint: a model that fails to load must not claim the folder.
            engine = Engine.load(model, base=base, device=device, dtype=precision) if open_questions else None
        except AlignGPTError:
            (out / "rejects.new.jsonl").unlink(missing_ok=True)
            raise
        with atomic_write(out / FINGERPRINT_FILE) as file:
            file.write(f"{fingerprint} {precision}")
        rejects.move(out / "rejects.jsonl")
        if engine is not None:
            pairs = list(zip(samples, shown, strict=True))
            for prediction in _answer_all(engine, pairs, done.keys(), asked_of, out, batch_size, rejects, looked_at):
                done[prediction.record] = prediction
        named = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
        asked = AskedAbout(
            named,
            str(questions.resolve()),
            str(root.resolve()),
            shuffle_images,
            asked_of.has_stored_images,
            state_of_model(Path(model)),
            known,
        )
        result = summarise(list(done.values()), time.monotonic() - started, rejects.by_reason, asked)
        # Nothing was asked, so only the duration is another; results of an older version are completed.
        if engine is None and (before := _saved(out / RESULTS_FILE)) is not None:
            result = replace(result, seconds=before.seconds)
        result.save(out / RESULTS_FILE)
    return result


def trained_on(model: str | Path, questions: Path) -> bool:
    """Whether a model in the folder of a run was tuned on this file; records that another file repeats are not found.

    Raises:
        AlignGPTError: the run's facts about its data are damaged, or the file cannot be read.
    """
    folder = Path(model).resolve()
    # `base` in a run is the model before instruction tuning.
    if not folder.is_dir() or folder.name == "base":
        return False
    facts = DataFacts.load(folder.parent / "instruct")
    return facts is not None and content_of(questions) in facts.files.values()


def _saved(path: Path) -> EvaluationResult | None:
    try:
        return EvaluationResult.load(path)
    except EvaluationError:
        return None


def shuffled_images(samples: Sequence[Sample], seed: int) -> list[tuple[str, ...]]:
    """Images to show for each sample: those of another sample, never its own; none for a sample without images.

    Raises:
        EvaluationError: too few samples have different images.
    """
    own = [sample.images for sample in samples if sample.images]
    if len(set(own)) < 2:
        raise EvaluationError("shuffling needs questions about at least two different images")
    rng = random.Random(seed)
    shown = own[:]
    rng.shuffle(shown)
    for place, images in enumerate(shown):
        if images == own[place]:
            others = [other for other in range(len(own)) if shown[other] != own[place] and own[other] != images]
            if not others:
                raise EvaluationError("too many questions share one image, so not all of them can be shown another one")
            other = rng.choice(others)
            shown[place], shown[other] = shown[other], shown[place]
    exchanged = iter(shown)
    return [next(exchanged) if sample.images else () for sample in samples]


def _answer_all(
    engine: Engine,
    questions: Sequence[tuple[Sample, tuple[str, ...]]],
    answered: Collection[int],
    source: Questions,
    out: Path,
    batch_size: int,
    rejects: Rejects,
    looked_at: int,
) -> Iterator[Prediction]:
    """Answer the questions whose records are not in `answered`.

    Batches are always composed from all questions: the numerical results depend on the batch, so a resumed evaluation
    repeats whole batches.
    """
    before = frozenset(answered)
    # Batches of questions of similar length need little padding.
    ordered = sorted(questions, key=lambda pair: (len(pair[1]), sum(len(turn.text) for turn in pair[0].turns[:-1])))
    correct = asked_so_far = 0
    with (
        # What UTF-8 cannot encode (a lone surrogate in an id) becomes a JSON escape.
        (out / PREDICTIONS_FILE).open("a", encoding="utf-8", errors="backslashreplace") as file,
        Meter("answering", len(questions), initial=len(before), unit="questions") as meter,
    ):
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            new = sum(sample.record not in before for sample, _ in batch)
            if not new:
                continue
            asked = [
                (sample, shown, request)
                for sample, shown in batch
                if (request := _request(sample, shown, source, rejects))
            ]
            for sample, shown, answer in _answer(engine, asked, rejects):
                if sample.record in before:
                    continue
                prediction = Prediction(
                    id=sample.id,
                    record=sample.record,
                    kind=sample.kind,
                    question=sample.turns[-2].text,
                    expected=sample.turns[-1].text,
                    answer=answer.text,
                    correct=matches(answer.text, right_answers(sample)),
                    image=next(iter(sample.images), None),
                    image_shown=next(iter(shown), None),
                    alignment_weights=answer.alignment_weights,
                )
                correct += prediction.correct
                asked_so_far += 1
                file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
                yield prediction
            file.flush()
            rejects.check(looked_at)
            meter.advance(new, f"{correct / max(1, asked_so_far):.1%} correct")


def _answer(
    engine: Engine,
    asked: Sequence[tuple[Sample, tuple[str, ...], Request]],
    rejects: Rejects,
) -> list[tuple[Sample, tuple[str, ...], Answer]]:
    """The answers of a batch; if the batch fails, its questions are asked one by one and the failing ones rejected."""
    if not asked:
        return []
    try:
        answers = engine.answer(
            [request for _, _, request in asked],
            Sampling(max_new_tokens=_longest_right_answer(engine, [sample for sample, _, _ in asked]) + EXTRA_TOKENS),
        )
    except EngineError as error:
        if len(asked) > 1:
            return [found for one in asked for found in _answer(engine, [one], rejects)]
        sample = asked[0][0]
        rejects.add(sample.record, sample.id, "cannot_be_asked", str(error))
        return []
    return [(sample, shown, answer) for (sample, shown, _), answer in zip(asked, answers, strict=True)]


def _longest_right_answer(engine: Engine, samples: Sequence[Sample]) -> int:
    """Tokens of the longest answer that is right for one of the samples: a longer one is wrong."""
    rights = (answer for sample in samples for answer in right_answers(sample))
    return max(len(engine.processor.tokenizer(answer)["input_ids"]) for answer in rights)


def _request(sample: Sample, images: Sequence[str], source: Questions, rejects: Rejects) -> Request | None:
    try:
        pictures = tuple(source.open_image(name) for name in images)
    except ImageError as error:
        rejects.add(sample.record, sample.id, error.reason, str(error))
        return None
    # With shuffled images, a question may be shown more or fewer images than its own.
    return Request(sample.showing(images).messages()[:-1], pictures)


def _decide_precision(out: Path, fingerprint: str, asked: str, device: str) -> str:
    """The precision to compute in: that of the evaluation in the folder if there is one, so that it can be resumed.

    Raises:
        EvaluationError: the folder contains a different evaluation, or answers or results of something else.
        DeviceError: there is no such device.
    """
    path = out / FINGERPRINT_FILE
    if not path.is_file():
        for name in (PREDICTIONS_FILE, RESULTS_FILE, ASKED_FILE):
            if (out / name).is_file() and (out / name).stat().st_size:
                raise EvaluationError(
                    f"{out / name} is not of an evaluation of a file of questions, but of something else, such as a "
                    "benchmark; choose another folder with --out"
                )
        return asked if asked != "auto" else str(resolve_dtype("auto", resolve_device(device))).removeprefix("torch.")
    held, _, begun = path.read_text(encoding="utf-8").partition(" ")
    if held != fingerprint or asked not in ("auto", begun):
        raise EvaluationError(
            f"{out} contains a different evaluation: its model, questions, image root, draw or precision differs, or "
            "an earlier version of aligngpt wrote it; choose another folder with --out, or remove this one"
        )
    return begun
