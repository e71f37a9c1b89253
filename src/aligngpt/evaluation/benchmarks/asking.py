"""Asking a model the questions of a benchmark; each batch of answers is saved, and the same call resumes."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.benchmarks.answers import join_answers, read_answers
from aligngpt.evaluation.benchmarks.frame import Benchmark, Item, Key, PictureMode
from aligngpt.evaluation.benchmarks.identity import without_name
from aligngpt.files import atomic_write
from aligngpt.inference.requests import Answer, Request, Sampling
from aligngpt.progress import Meter

PREDICTIONS_FILE = "predictions.jsonl"
ASKED_FILE = "asked.json"


class AskingError(AlignGPTError):
    """Questions cannot be asked, or the folder has the answers of something else."""


class Answering(Protocol):
    """What answers: `Engine`, or anything with its method."""

    def answer(self, requests: Sequence[Request], sampling: Sampling = ...) -> list[Answer]:
        """The answers, one a request, in order."""
        ...


def show(picture: Image.Image, mode: PictureMode) -> Image.Image:
    """The picture as it is given to the model, whose processor pads what is not square.

    `crop` cuts out the central square. Resizing the short side first and cutting then, as CLIP's processor does, gives
    the same view up to rounding of pixels.
    """
    if mode == "pad":
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def ask(
    engine: Answering,
    benchmark: Benchmark,
    items: Sequence[Item],
    folder: Path,
    *,
    model: str,
    mode: PictureMode,
    batch_size: int,
) -> dict[Key, str]:
    """Ask every question not answered in `folder` yet, greedily, and append the answers in LLaVA's format.

    Args:
        engine: the model.
        benchmark: what the items are of.
        items: the questions; one that occurs twice is asked once.
        folder: for `predictions.jsonl`; what was asked of which model is kept beside it.
        model: name and state of the model, which must differ for different weights.
        mode: how pictures are shown.
        batch_size: questions answered at once.

    Raises:
        AskingError: the folder has answers of another model or to other questions, or pictures are missing.
        ImageError: a picture cannot be decoded.
        EngineError: a question cannot be asked.
    """
    unique = {benchmark.key(item): item for item in items}
    done = _claim(folder, benchmark, unique, model, mode)
    ordered = sorted(unique, key=lambda key: len(unique[key].prompt))
    _check_pictures(benchmark, [item for key, item in unique.items() if key not in done])
    sampling = Sampling(max_new_tokens=benchmark.new_tokens, temperature=0.0)
    with (
        (folder / PREDICTIONS_FILE).open("a", encoding="utf-8", errors="backslashreplace") as file,
        Meter(f"asking {benchmark.title}", len(unique), initial=len(done), unit="questions") as meter,
    ):
        # A batch has only questions with a picture, or only questions without one. Batches are composed of all
        # questions, answered or not, because in bfloat16 an answer depends on the others of its batch.
        for group in ([key for key in ordered if unique[key].picture], [k for k in ordered if not unique[k].picture]):
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                new = [key for key in batch if key not in done]
                if not new:
                    continue
                answers = engine.answer([_request(unique[key], mode) for key in batch], sampling)
                for key, answer in zip(batch, answers, strict=True):
                    if key in new:
                        done[key] = answer.text
                        file.write(json.dumps(_line(benchmark, unique[key], answer, model), ensure_ascii=False) + "\n")
                file.flush()
                meter.advance(len(new))
    return done


def _request(item: Item, mode: PictureMode) -> Request:
    pictures = () if item.picture is None else (show(item.picture.open(), mode),)
    return Request.ask(item.prompt, *pictures)


def _line(benchmark: Benchmark, item: Item, answer: Answer, model: str) -> dict[str, Any]:
    record = benchmark.record(item)
    name = f"{benchmark.name} {item.question_id} {item.prompt} {model}"
    return {
        "question_id": item.question_id,
        **record,
        "text": answer.text,
        "answer_id": hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:22],
        "model_id": model,
        "metadata": {
            "tokens": answer.tokens,
            "stopped": answer.stopped,
            "alignment_weights": answer.alignment_weights,
        },
    }


def _claim(
    folder: Path, benchmark: Benchmark, unique: dict[Key, Item], model: str, mode: PictureMode
) -> dict[Key, str]:
    """The answers in the folder, after checking that they are this model's to these questions."""
    digest = hashlib.sha256()
    for item in unique.values():
        digest.update(repr((item.question_id, item.prompt, item.group)).encode("utf-8", "backslashreplace"))
    state = {
        "benchmark": benchmark.name,
        "model": model,
        "picture_mode": mode,
        "new_tokens": benchmark.new_tokens,
        "questions": digest.hexdigest(),
    }
    path, predictions = folder / ASKED_FILE, folder / PREDICTIONS_FILE
    if predictions.is_file() and predictions.stat().st_size:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        # The model by its digits: it may be named by another path.
        known = before | {"model": without_name(str(before.get("model")))}
        asked_now = state | {"model": without_name(model)}
        if differing := [name for name, value in asked_now.items() if known.get(name) != value]:
            earlier = ", or an earlier version of aligngpt wrote it" if "model" in differing else ""
            raise AskingError(
                f"{predictions} has answers with another {' and '.join(differing).replace('_', ' ')}{earlier}; choose "
                "another folder for the results, or remove that file"
            )
    else:
        with atomic_write(path) as file:
            json.dump(state, file, indent=2)
        return {}
    _drop_half_line(predictions)
    given = read_answers(predictions)
    asked = {(one.question_id, benchmark.question_of(one.prompt or "")) for one in given}
    # Only the answered questions: the others are still to be asked.
    answered = [item for key, item in unique.items() if tuple(key) in asked]
    return join_answers(benchmark, answered, given, predictions)


def _drop_half_line(path: Path) -> None:
    """Remove a last line that a killed process left incomplete."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with atomic_write(path, "wb") as file:
            file.write(content[: content.rfind(b"\n") + 1])


def check_told_apart(benchmark: Benchmark, items: Sequence[Item]) -> None:
    """Raise AskingError if questions about different pictures have the same id and text, so share an answer."""
    first: dict[Key, Item] = {}
    for item in items:
        if (other := first.setdefault(benchmark.key(item), item)).group != item.group:
            raise AskingError(
                f"{benchmark.title} asks {item.question_id} with the same text about {other.group} and {item.group}, "
                "so its answers could not be told apart; the question file is damaged"
            )


def _check_pictures(benchmark: Benchmark, items: Sequence[Item]) -> None:
    paths = {item.picture.path for item in items if item.picture is not None and item.picture.path is not None}
    missing = sorted(path for path in paths if not path.is_file())
    if missing:
        raise AskingError(
            f"{len(missing):,} of {len(paths):,} pictures of {benchmark.title} are missing, such as {missing[0]}; get "
            f"them from {benchmark.source}"
        )
