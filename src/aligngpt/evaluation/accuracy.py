"""Accuracy on a file of questions with answers: every answer on disk as it is given, resumable, with intervals."""

import hashlib
import json
import random
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from aligngpt.data.images.opening import ImageError, open_image, resolve_image
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.data.sources.finding import archive_at
from aligngpt.device import resolve_device, resolve_dtype
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.matching import matches, right_answers
from aligngpt.evaluation.results import (
    PREDICTIONS_FILE,
    RESULTS_FILE,
    EvaluationError,
    EvaluationResult,
    Prediction,
    read_predictions,
    summarise,
)
from aligngpt.files import atomic_write
from aligngpt.inference.engine import Answer, Engine, EngineError, Request, Sampling
from aligngpt.locks import owned_folder
from aligngpt.progress import Meter

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
    """Answer the questions of a LLaVA-format file with a model; the same call resumes a stopped evaluation.

    Leaves `predictions.jsonl` and `results.json` in `out`. The last turn of a record is the expected answer; earlier
    ones are given to the model. Answers are greedy and count as right by `matching.matches`; where a record has several
    accepted answers, each of them is right.

    Args:
        model: folder or hub name.
        questions: JSON array or JSON lines.
        out: folder for the results.
        base: of an adapter folder, see `Engine.load`.
        image_root: folder that image paths start from; the file's own when None.
        limit: ask only this many questions, drawn with `seed`.
        shuffle_images: show each question the picture of another one.
        batch_size: questions answered at once.
        seed: of the draw and the shuffle.
        device: see `Engine.load`.
        precision: `float32`, `bfloat16`, or `auto` for bfloat16 where it is faster; an evaluation that goes on with
            `auto` computes as it began.
        max_reject_share: share of the questions that may be unusable, 0…1.

    Raises:
        AlignGPTError: the model or the file cannot be used, `out` holds another evaluation, or another process is
            evaluating into it.
    """
    if archive_at(questions) is not None:
        raise EvaluationError(
            f"{questions} is Parquet or tar, and evaluate reads questions from JSON or JSON lines only; write them as "
            "JSON, with their pictures as files below the image root"
        )
    root = questions.parent if image_root is None else image_root
    # Beside those of an evaluation that may be there, until the folder is known to be this one's.
    with owned_folder(out, "evaluate"), Rejects(out / "rejects.new.jsonl", max_share=max_reject_share) as rejects:
        samples = load_samples(questions, image_root=root, rejects=rejects)
        # What the rejects are a share of: those of the whole file are among them.
        looked_at = len(samples) + rejects.count
        if limit is not None and limit < len(samples):
            samples = sorted(random.Random(seed).sample(samples, limit), key=lambda sample: sample.record)
        started = time.monotonic()
        try:
            shown = shuffled_images(samples, seed) if shuffle_images else [sample.images for sample in samples]
            fingerprint = _fingerprint(model, base, questions, root, samples, shown)
            precision = _decide_precision(out, fingerprint, precision, device)
            done = read_predictions(out / PREDICTIONS_FILE)
            open_questions = [sample for sample in samples if sample.record not in done]
            # Before the folder is claimed: a model that cannot be loaded must not keep the right one out.
            engine = Engine.load(model, base=base, device=device, dtype=precision) if open_questions else None
        except AlignGPTError:
            (out / "rejects.new.jsonl").unlink(missing_ok=True)
            raise
        with atomic_write(out / FINGERPRINT_FILE) as file:
            file.write(f"{fingerprint} {precision}")
        rejects.move(out / "rejects.jsonl")
        if engine is not None:
            pairs = list(zip(samples, shown, strict=True))
            for prediction in _answer_all(engine, pairs, done.keys(), root, out, batch_size, rejects, looked_at):
                done[prediction.record] = prediction
        result = summarise(list(done.values()), time.monotonic() - started, rejects.by_reason)
    if engine is not None or not (out / RESULTS_FILE).is_file():
        result.save(out / RESULTS_FILE)
    return result


def shuffled_images(samples: Sequence[Sample], seed: int) -> list[tuple[str, ...]]:
    """For each sample with pictures those of another one, never its own; a sample without keeps having none.

    Raises:
        EvaluationError: too few samples have other pictures.
    """
    own = [sample.images for sample in samples if sample.images]
    if len(set(own)) < 2:
        raise EvaluationError("shuffling needs questions about at least two pictures")
    rng = random.Random(seed)
    shown = own[:]
    rng.shuffle(shown)
    for place, images in enumerate(shown):
        if images == own[place]:
            others = [other for other in range(len(own)) if shown[other] != own[place] and own[other] != images]
            if not others:
                raise EvaluationError("one picture has too many of the questions for them all to be shown another one")
            other = rng.choice(others)
            shown[place], shown[other] = shown[other], shown[place]
    exchanged = iter(shown)
    return [next(exchanged) if sample.images else () for sample in samples]


def _answer_all(
    engine: Engine,
    questions: Sequence[tuple[Sample, tuple[str, ...]]],
    answered: Collection[int],
    root: Path,
    out: Path,
    batch_size: int,
    rejects: Rejects,
    looked_at: int,
) -> Iterator[Prediction]:
    """Answer the questions whose record is not among those `answered` before.

    What is in a batch depends on the questions alone: an answer's last digits depend on the batch, so a stopped
    evaluation repeats whole batches.
    """
    before = frozenset(answered)
    rights = (answer for sample, _ in questions for answer in right_answers(sample))
    longest = max(len(engine.processor.tokenizer(answer)["input_ids"]) for answer in rights)
    sampling = Sampling(max_new_tokens=longest + EXTRA_TOKENS)
    # Questions of about equal length make batches with little padding.
    ordered = sorted(questions, key=lambda pair: (len(pair[1]), sum(len(turn.text) for turn in pair[0].turns[:-1])))
    correct = asked_so_far = 0
    with (
        # What UTF-8 cannot hold (half a surrogate pair in an id) becomes a JSON escape.
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
                if (request := _request(sample, shown, root, rejects))
            ]
            for sample, shown, answer in _answer(engine, asked, sampling, rejects):
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
            meter.advance(new, f"{correct / max(1, asked_so_far):.1%} right")


def _answer(
    engine: Engine,
    asked: Sequence[tuple[Sample, tuple[str, ...], Request]],
    sampling: Sampling,
    rejects: Rejects,
) -> list[tuple[Sample, tuple[str, ...], Answer]]:
    """The answers of a batch; where it cannot be asked, that of each question that can be asked alone."""
    if not asked:
        return []
    try:
        answers = engine.answer([request for _, _, request in asked], sampling)
    except EngineError as error:
        if len(asked) > 1:
            return [found for one in asked for found in _answer(engine, [one], sampling, rejects)]
        sample = asked[0][0]
        rejects.add(sample.record, sample.id, "cannot_be_asked", str(error))
        return []
    return [(sample, shown, answer) for (sample, shown, _), answer in zip(asked, answers, strict=True)]


def _request(sample: Sample, images: Sequence[str], root: Path, rejects: Rejects) -> Request | None:
    try:
        pictures = tuple(open_image(resolve_image(name, root)) for name in images)
    except ImageError as error:
        rejects.add(sample.record, sample.id, error.reason, str(error))
        return None
    # Shuffled, a question may come with more or fewer pictures than its own.
    return Request(replace(sample, images=tuple(images)).messages()[:-1], pictures)


def _decide_precision(out: Path, fingerprint: str, asked: str, device: str) -> str:
    """What the evaluation computes in: as it began, where the folder holds it.

    Raises:
        EvaluationError: the folder holds another evaluation.
        DeviceError: there is no such device.
    """
    path = out / FINGERPRINT_FILE
    if not path.is_file():
        return asked if asked != "auto" else str(resolve_dtype("auto", resolve_device(device))).removeprefix("torch.")
    held, _, begun = path.read_text(encoding="utf-8").partition(" ")
    if held != fingerprint or asked not in ("auto", begun):
        raise EvaluationError(
            f"{out} holds an evaluation of another model, other questions, another image root, another draw or in "
            "another precision; choose another folder with --out, or remove that one"
        )
    return begun


def _fingerprint(
    model: str | Path,
    base: str | Path | None,
    questions: Path,
    root: Path,
    samples: Sequence[Sample],
    shown: Sequence[tuple[str, ...]],
) -> str:
    """A SHA-256 of all that decides the answers but the precision."""
    loaded = [[str(source), *_weights_state(Path(source))] for source in (model, base) if source is not None]
    digest = hashlib.sha256(json.dumps([*loaded, str(questions.resolve()), str(root.resolve())]).encode())
    for sample, images in zip(samples, shown, strict=True):
        digest.update(repr((sample.record, sample.turns, images, *sample.accepted)).encode())
    return digest.hexdigest()


def _weights_state(model: Path) -> list[tuple[str, int, int]]:
    """Size and time of a local model's weights: enough to notice that it was trained again."""
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(model.glob("*.safetensors"))]
