"""Tests of evaluating a file: answers saved at once, the same results after an interruption, no mixed evaluations."""

import io
import json
import multiprocessing
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligngpt.data.images.opening import open_image
from aligngpt.data.records.sample import Sample, Turn
from aligngpt.data.rejects import TooManyRejects
from aligngpt.data.sources.finding import content_of
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.accuracy import EXTRA_TOKENS, evaluate_file, shuffled_images
from aligngpt.evaluation.fingerprint import state_of_model
from aligngpt.evaluation.results import (
    AskedAbout,
    EvaluationError,
    EvaluationResult,
    Prediction,
    Tally,
    read_predictions,
    summarise,
)
from aligngpt.inference.engine import Answer, Engine, EngineError, Request, Sampling
from aligngpt.locks import OWNER_FILE
from aligngpt.training.run_card import DataFacts

Questions = Callable[..., Path]
Evaluate = Callable[..., EvaluationResult]
BATCH = 4


@pytest.fixture
def evaluate(model_folder: Path, tmp_path: Path) -> Evaluate:
    """Evaluate a file into a folder with four questions per batch, allowing most of them to be rejected."""

    def call(questions: Path, out: str = "out", **options: Any) -> EvaluationResult:
        settings = {"model": model_folder, "batch_size": BATCH, "device": "cpu", "max_reject_share": 0.9} | options
        return evaluate_file(settings.pop("model"), questions, out=tmp_path / out, **settings)

    return call


@pytest.fixture
def predictions(tmp_path: Path) -> Callable[..., dict[int, Prediction]]:
    return lambda out="out": read_predictions(tmp_path / out / "predictions.jsonl")


def rejects(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    """The files an evaluation wrote, without the hidden lock files."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def about(*images: tuple[str, ...]) -> list[Sample]:
    turns = (Turn("user", "what ?"), Turn("assistant", "that"))
    return [Sample(str(record), turns, names, record=record) for record, names in enumerate(images)]


def same(first: EvaluationResult, second: EvaluationResult) -> bool:
    """Whether two evaluations agree; the last digits of the weights depend on the batch."""
    assert first.gate_weights.keys() == second.gate_weights.keys()
    for kind, weights in first.gate_weights.items():
        assert weights == pytest.approx(second.gate_weights[kind], abs=1e-6)
    return (first.overall, first.by_kind, first.rejects) == (second.overall, second.by_kind, second.rejects)


def test_predictions_and_results_are_those_of_the_model(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, model_folder: Path, tmp_path: Path
) -> None:
    questions = write_questions(6, at_2={"answer": "one two"})
    result = evaluate(questions)
    found = predictions()
    engine = Engine.load(model_folder, device="cpu")
    for record in range(6):
        one, kind = found[record], "odd" if record % 2 else "even"
        request = Request.ask(one.question, open_image(tmp_path / f"{record}.png"))
        # The longest questions are the last batch, whose longest right answer has two tokens; BOS is counted too.
        right = 1 + (2 if record in (2, 5) else 1)
        (answer,) = engine.answer([request], Sampling(max_new_tokens=right + EXTRA_TOKENS))
        assert (one.id, one.kind, one.image, one.image_shown) == (f"q{record}", kind, *[f"{record}.png"] * 2)
        assert one.answer == answer.text
        assert one.alignment_weights == pytest.approx(answer.alignment_weights, abs=1e-6)
    assert same(result, summarise(list(found.values())))
    saved = EvaluationResult.load(tmp_path / "out" / "results.json")
    assert same(result, saved) and saved.overall.total == 6
    assert not (tmp_path / "out" / "rejects.jsonl").exists()


def test_right_answers_are_counted_by_kind(write_questions: Questions, evaluate: Evaluate, watching: list) -> None:
    result = evaluate(write_questions(10, at_3={"answer": "4"}, at_4={"answer": "The 4."}, at_6={"answer": "no"}))
    assert result.overall == Tally(8, 10)
    assert result.by_kind == {"even": Tally(4, 5), "odd": Tally(4, 5)}
    assert result.gate_weights == {"even": [0.25, 0.75], "odd": [0.25, 0.75]}


def test_the_last_turn_is_asked_after_the_earlier_ones(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, watching: list
) -> None:
    said = [("human", "<image>\nis it red ?"), ("gpt", "yes"), ("human", "how many ?"), ("gpt", "0")]
    turns = {"conversations": [{"from": who, "value": text} for who, text in said]}
    assert evaluate(write_questions(1, at_0=turns)).overall == Tally(1, 1)
    assert [message["role"] for message in watching[0].messages] == ["user", "assistant", "user"]
    assert "'0'" not in str(watching[0].messages)
    assert (predictions()[0].question, predictions()[0].expected) == ("how many ?", "0")


def test_a_limit_draws_the_same_questions_under_a_seed(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, watching: list
) -> None:
    questions = write_questions(12)
    drawn = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert evaluate(questions, out, limit=5, seed=seed).overall.total == 5
        drawn.append(set(predictions(out)))
    assert drawn[0] == drawn[1] != drawn[2]
    assert evaluate(questions, "all", limit=100).overall.total == 12


def test_shuffled_images_never_show_the_own_picture(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, watching: list
) -> None:
    questions = write_questions(12)
    assert evaluate(questions, "straight").overall == Tally(12, 12)
    assert evaluate(questions, shuffle_images=True).overall == Tally(0, 12)
    found = predictions().values()
    assert all(one.image != one.image_shown for one in found)
    assert {one.image for one in found} == {one.image_shown for one in found}
    assert all(one.answer == one.image_shown.removesuffix(".png") for one in found)


@pytest.mark.parametrize("counts", [(1, 1), (1, 1, 1), (2, 2), (5, 3, 2), (4, 1, 1, 1, 1), (1,) * 30])
def test_shuffling_is_a_permutation_without_fixed_pictures(counts: tuple[int, ...]) -> None:
    samples = about(*[(f"{name}.png",) for name, count in enumerate(counts) for _ in range(count)])
    orders = set()
    for seed in range(50):
        shown = shuffled_images(samples, seed)
        assert Counter(shown) == Counter(sample.images for sample in samples)
        assert all(images != sample.images for images, sample in zip(shown, samples, strict=True))
        assert shown == shuffled_images(samples, seed)
        orders.add(tuple(shown))
    assert len(orders) > 1 or len(counts) == 2


def test_what_cannot_be_shuffled_is_refused() -> None:
    with pytest.raises(EvaluationError, match="at least two different images"):
        shuffled_images(about(("a",), ("a",)), 0)
    with pytest.raises(EvaluationError, match="too many questions share one image"):
        shuffled_images(about(("a",), ("a",), ("b",)), 0)


def test_questions_with_no_or_several_pictures_are_shuffled_too(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable
) -> None:
    assert shuffled_images(about((), ("a",), (), ("b",)), 0) == [(), ("b",), (), ("a",)]
    two = {"image": ["1.png", "2.png"]}
    result = evaluate(write_questions(5, at_0={"image": None}, at_1=two), shuffle_images=True)
    assert (result.overall.total, result.rejects) == (5, 0)
    assert predictions()[0].image_shown is None
    assert all(predictions()[record].image_shown is not None for record in range(1, 5))


@pytest.mark.parametrize("damage", ["tail", "line", "middle", "results", "everything"])
def test_a_stopped_evaluation_goes_on_to_the_same_results(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, tmp_path: Path, damage: str
) -> None:
    questions = write_questions(10, at_7={"image": "gone.png"})
    first, whole = evaluate(questions), predictions()
    path = tmp_path / "out" / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 9
    if damage in ("tail", "line"):
        path.write_bytes(b"".join(lines[:5]) + (lines[5][:40] if damage == "line" else b""))
    elif damage == "middle":
        path.write_bytes(b"".join([*lines[:3], lines[3][:20] + b"\n", *lines[4:]]))
    elif damage == "everything":
        path.unlink()
    (tmp_path / "out" / "results.json").unlink()
    again = evaluate(questions)
    assert same(first, again)
    assert same(again, EvaluationResult.load(tmp_path / "out" / "results.json"))
    assert {record: one.answer for record, one in predictions().items()} == {
        record: one.answer for record, one in whole.items()
    }
    assert len(path.read_bytes().splitlines()) == 9


def test_ctrl_c_keeps_what_was_answered(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, watching: list, monkeypatch: Any
) -> None:
    questions = write_questions(10)
    answer, on_disk = Engine.answer, []

    def stopped(self: Engine, requests: list, sampling: Sampling) -> Any:
        on_disk.append(len(predictions()))
        if len(on_disk) == 3:
            raise KeyboardInterrupt
        return answer(self, requests, sampling)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Engine, "answer", stopped)
        evaluate(questions)
    assert on_disk == [0, BATCH, 2 * BATCH], "a kill costs no more than the batch at work"
    assert len(predictions()) == 2 * BATCH
    watching.clear()
    assert evaluate(questions).overall == Tally(10, 10)
    assert len(watching) == 2


def test_a_second_call_answers_nothing_anew(
    write_questions: Questions, evaluate: Evaluate, nothing_is_answered: Callable, tmp_path: Path
) -> None:
    # A lone surrogate, which UTF-8 cannot encode, and characters that `str.splitlines` treats as line ends.
    questions = write_questions(6, at_1={"id": "\ud83d"}, at_2={"question": "how\u2028many\u0085are"})
    first, before = evaluate(questions), content(tmp_path / "out")
    nothing_is_answered()
    assert same(evaluate(questions), first)
    assert content(tmp_path / "out") == before


def test_results_say_what_was_asked(
    write_questions: Questions, evaluate: Evaluate, watching: list, model_folder: Path, tmp_path: Path
) -> None:
    questions = write_questions(4)
    for out, shuffled in (("out", False), ("shuffled", True)):
        evaluate(questions, out, shuffle_images=shuffled)
        asked = EvaluationResult.load(tmp_path / out / "results.json").asked
        state = state_of_model(model_folder)
        assert state is not None
        assert asked == AskedAbout(str(model_folder), str(questions), str(tmp_path), shuffled, model_state=state)


def test_questions_that_the_model_was_trained_on_are_told(
    write_questions: Questions, evaluate: Evaluate, watching: list, model_folder: Path, tmp_path: Path
) -> None:
    trained, others = write_questions(4), write_questions(3, "test.jsonl")
    run = tmp_path / "mine"
    DataFacts({"old-name.jsonl": content_of(trained)}, 4, {}, 4, 4).save(run / "instruct")
    for name in ("model", "base"):
        shutil.copytree(model_folder, run / name)

    def told(questions: Path, out: str, model: str = "model") -> bool:
        asked = evaluate(questions, out, model=run / model).asked
        assert asked is not None
        return asked.trained_on

    assert told(trained, "trained")
    assert not told(others, "others") and not told(trained, "base", "base")


def test_results_name_the_model_folder_wherever_they_are_read(
    write_questions: Questions, evaluate: Evaluate, watching: list, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder.parent)
    asked = evaluate(write_questions(4), model=model_folder.name).asked
    assert asked is not None and asked.model == str(model_folder)


@pytest.mark.parametrize("name", ["predictions.jsonl", "results.json", "asked.json"])
def test_a_folder_with_files_of_something_else_is_left_alone(
    write_questions: Questions, evaluate: Evaluate, nothing_is_answered: Callable, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir()
    path.write_text('{"question_id": 1, "prompt": "is it ?", "text": "yes", "answer_id": "x", "model_id": "m"}\n')
    before = content(tmp_path / "out")
    nothing_is_answered()
    with pytest.raises(EvaluationError, match=rf"{name} is not of an evaluation of a file .* choose another folder"):
        evaluate(write_questions(4))
    assert content(tmp_path / "out") == before


def test_results_of_an_older_version_are_completed(
    write_questions: Questions, evaluate: Evaluate, watching: list, tmp_path: Path
) -> None:
    questions, path = write_questions(4), tmp_path / "out" / "results.json"
    evaluate(questions)
    whole = json.loads(path.read_text(encoding="utf-8")) | {"seconds": 12.5}
    old = {name: value for name, value in whole.items() if name not in ("asked", "gate_counts")}
    path.write_text(json.dumps(old), encoding="utf-8")
    evaluate(questions)
    assert json.loads(path.read_text(encoding="utf-8")) == whole


def test_the_evaluation_of_something_else_is_refused(
    write_questions: Questions, evaluate: Evaluate, assembled: Callable, watching: list, tmp_path: Path
) -> None:
    for part in assembled():
        part.save_pretrained(tmp_path / "other")
    questions, more = write_questions(8, at_1={"image": "gone.png"}), write_questions(9, "more.jsonl")
    evaluate(questions, max_reject_share=0.5)
    before = content(tmp_path / "out")
    assert any("rejects" in str(name) for name in before)
    (tmp_path / "elsewhere").mkdir()
    for picture in tmp_path.glob("*.png"):
        shutil.copy(picture, tmp_path / "elsewhere")
    others: list[tuple[Path, dict[str, Any]]] = [
        (questions, {"model": tmp_path / "other"}),
        (more, {}),
        (questions, {"limit": 3}),
        (questions, {"shuffle_images": True}),
        (questions, {"image_root": tmp_path / "elsewhere"}),
        (questions, {"precision": "bfloat16"}),
        (questions, {"base": "someone/base"}),
    ]
    for file, options in others:
        with pytest.raises(EvaluationError, match="contains a different evaluation: its model, questions"):
            evaluate(file, max_reject_share=0.5, **options)
    write_questions(8, at_3={"answer": "4"})
    with pytest.raises(EvaluationError, match="choose another folder with --out"):
        evaluate(questions)
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize(("begun", "asked"), [("bfloat16", "auto"), ("auto", "float32")])
def test_an_evaluation_goes_on_in_the_precision_it_began_in(
    write_questions: Questions,
    evaluate: Evaluate,
    watching: list,
    tmp_path: Path,
    monkeypatch: Any,
    begun: str,
    asked: str,
) -> None:
    questions, load = write_questions(4), Engine.load
    computed: list[str] = []

    def noting(*args: Any, dtype: str, **options: Any) -> Engine:
        computed.append(dtype)
        return load(*args, dtype=dtype, **options)

    monkeypatch.setattr(Engine, "load", noting)
    evaluate(questions, precision=begun)
    (tmp_path / "out" / "predictions.jsonl").unlink()
    evaluate(questions, precision=asked)
    assert len(computed) == 2 and computed[0] == computed[1] == ("float32" if begun == "auto" else begun)


def test_a_model_that_cannot_be_loaded_leaves_the_folder_to_others(
    write_questions: Questions, evaluate: Evaluate, watching: list, tmp_path: Path
) -> None:
    questions = write_questions(4, at_1={"image": "gone.png"})
    with pytest.raises(EngineError, match="Give a model folder"):
        evaluate(questions, model=tmp_path / "typo", max_reject_share=0.5)
    assert not (tmp_path / "out").exists() or not content(tmp_path / "out")
    assert evaluate(questions).overall == Tally(3, 3)


def test_models_of_the_hub_are_told_apart_by_name(
    write_questions: Questions, evaluate: Evaluate, model_folder: Path, watching: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.load(model_folder, device="cpu")
    monkeypatch.setattr(Engine, "load", lambda *_, **__: engine)
    questions = write_questions(4)
    evaluate(questions, model="someone/this")
    evaluate(questions, model="someone/this")
    with pytest.raises(EvaluationError, match="a different evaluation"):
        evaluate(questions, model="someone/that")


def test_a_model_that_was_trained_again_is_another_one(
    write_questions: Questions, evaluate: Evaluate, assembled: Callable, watching: list, tmp_path: Path
) -> None:
    for part in assembled():
        part.save_pretrained(tmp_path / "mine")
    questions = write_questions(4)
    evaluate(questions, model=tmp_path / "mine")
    os.utime(tmp_path / "mine" / "model.safetensors", (1, 1))
    with pytest.raises(EvaluationError, match="a different evaluation"):
        evaluate(questions, model=tmp_path / "mine")


@pytest.mark.parametrize(
    "file", ["config.json", "processor_config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"]
)
def test_a_model_with_other_settings_is_another_one(
    write_questions: Questions, evaluate: Evaluate, model_folder: Path, watching: list, tmp_path: Path, file: str
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(model_folder, mine)
    questions = write_questions(4)
    evaluate(questions, model=mine)
    (mine / "README.md").write_text("A model card changes no answer.")
    evaluate(questions, model=mine)
    before = (mine / file).read_text(encoding="utf-8")
    (mine / file).write_text(before.replace("{", "{ ", 1), encoding="utf-8")
    with pytest.raises(EvaluationError, match="a different evaluation"):
        evaluate(questions, model=mine)
    (mine / file).write_text(before, encoding="utf-8")
    evaluate(questions, model=mine)


def test_an_adapter_with_another_base_is_another_model(
    write_questions: Questions, evaluate: Evaluate, model_folder: Path, watching: list, tmp_path: Path
) -> None:
    adapter, base, whole = tmp_path / "adapter", tmp_path / "base", Engine.load
    shutil.copytree(model_folder, base)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    # Which weights answer does not matter here, only whether the evaluation in the folder is known to be another one.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "load", lambda *_, **__: whole(base, device="cpu"))
        questions = write_questions(4)
        evaluate(questions, model=adapter)
        evaluate(questions, model=adapter)
        os.utime(base / "model.safetensors", (1, 1))
        with pytest.raises(EvaluationError, match="a different evaluation"):
            evaluate(questions, model=adapter)


def test_unreadable_pictures_are_rejects(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, watching: list, tmp_path: Path
) -> None:
    questions = write_questions(8, at_1={"image": "gone.png"}, at_2={"image": "../out.png"})
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:-30])
    result = evaluate(questions)
    assert result.overall == Tally(5, 5)
    assert result.rejects == 3
    assert {(line["record"], line["reason"]) for line in rejects(tmp_path / "out")} == {
        (1, "missing"),
        (2, "outside_root"),
        (5, "truncated"),
    }
    assert sorted(predictions()) == [0, 3, 4, 6, 7]


def test_questions_that_the_chat_template_refuses_are_rejects(
    assembled: Callable, write_questions: Questions, evaluate: Evaluate, predictions: Callable, tmp_path: Path
) -> None:
    model, processor = assembled()
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    processor.chat_template = refuses + processor.chat_template
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    evaluate(write_questions(3, at_1={"system": "be brief"}), model=tmp_path / "model")
    (reject,) = rejects(tmp_path / "out")
    assert (reject["record"], reject["reason"]) == (1, "cannot_be_asked") and "no system role" in reject["detail"]
    assert sorted(predictions()) == [0, 2]


def test_too_many_unreadable_pictures_end_it(write_questions: Questions, evaluate: Evaluate, tmp_path: Path) -> None:
    missing = write_questions(10, at_1={"image": "gone.png"})
    with pytest.raises(TooManyRejects, match="1 of 10 records"):
        evaluate(missing, "missing", max_reject_share=0.05)
    cut = write_questions(10, "cut.jsonl")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:-30])
    with pytest.raises(TooManyRejects, match="1 of 10 records"):
        evaluate(cut, "cut", max_reject_share=0.05)


@pytest.mark.parametrize("limit", [None, 3])
def test_rejects_are_a_share_of_the_whole_file(
    write_questions: Questions, evaluate: Evaluate, watching: list, limit: int | None
) -> None:
    questions = write_questions(20, at_1={"image": "gone.png"})
    assert evaluate(questions, max_reject_share=0.05, limit=limit).rejects == 1


def test_pictures_may_lie_in_another_folder(
    write_questions: Questions, evaluate: Evaluate, watching: list, tmp_path: Path
) -> None:
    questions = write_questions(3)
    (tmp_path / "text").mkdir()
    moved = questions.rename(tmp_path / "text" / "questions.jsonl")
    assert evaluate(moved, image_root=tmp_path).overall == Tally(3, 3)


def test_every_accepted_answer_is_right(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, watching: list
) -> None:
    votes = [{"answer": word, "answer_confidence": "yes"} for word in ("two", "two", "2")]
    result = evaluate(
        write_questions(
            4,
            at_0={"answer": ["none", "0"]},
            at_1={"answer": "one", "answers": ["1", "a one"]},
            at_2={"answer": None, "answers": votes},
            at_3={"answer": ["two", "2"]},
        )
    )
    assert result.overall == Tally(3, 4)
    assert [predictions()[record].expected for record in range(4)] == ["none", "one", "two", "two"]


def test_a_right_answer_beyond_the_context_leaves_the_other_questions(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, tmp_path: Path
) -> None:
    result = evaluate(write_questions(8, at_1={"answer": "many " * 5000}))
    assert sorted(predictions()) == [0, *range(2, 8)]
    assert [(one["record"], one["reason"]) for one in rejects(tmp_path / "out")] == [(1, "cannot_be_asked")]
    assert result.overall.total == 7


def test_a_question_in_text_is_asked_under_its_own_id(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, watching: list
) -> None:
    as_llava = {"question": None, "answer": None, "id": None, "question_id": 17, "text": "how many ?", "label": "0"}
    assert evaluate(write_questions(1, at_0=as_llava)).overall == Tally(1, 1)
    one = predictions()[0]
    assert (one.id, one.question, one.expected) == ("17", "how many ?", "0")


def test_what_is_passed_over_is_counted_by_reason(
    write_questions: Questions, evaluate: Evaluate, watching: list, tmp_path: Path
) -> None:
    questions = write_questions(8, at_1={"image": "gone.png"}, at_2={"image": "lost.png"}, at_3={"answer": None})
    table = evaluate(questions).table()
    assert table.splitlines()[-1] == "3 records skipped: 2 missing image, 1 without an answer; rejects.jsonl lists them"


def to_parquet(questions: Path, copies: int = 1) -> Path:
    """The questions with their images embedded, each `copies` times with a copy of its image; other names for ids."""
    rows = []
    for line in questions.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        content = (questions.parent / record["image"]).read_bytes()
        for copy in range(copies):
            rows.append(record | {"id": f"{record['id']}-{copy}", "image": {"bytes": content, "path": None}})
    path = questions.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


def to_tar(questions: Path) -> Path:
    """The questions as members of a tar file, each with its image beside it."""
    path = questions.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        for number, line in enumerate(questions.read_text(encoding="utf-8").splitlines()):
            record = json.loads(line)
            image = (questions.parent / record.pop("image")).read_bytes()
            for suffix, content in (("png", image), ("json", json.dumps(record).encode())):
                member = tarfile.TarInfo(f"{number:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("pack", [to_parquet, to_tar])
def test_questions_in_archives_are_answered_as_those_in_json(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, watching: list, pack: Any, tmp_path: Path
) -> None:
    questions = write_questions(10, at_3={"answer": "none"})
    expected = evaluate(questions, "json")
    found = evaluate(pack(questions))
    assert same(found, expected)
    assert found.overall == Tally(9, 10)
    assert found.asked is not None and found.asked.archived
    assert expected.asked is not None and not expected.asked.archived
    for record, one in predictions("json").items():
        other = predictions()[record]
        assert (other.question, other.expected, other.answer) == (one.question, one.expected, one.answer)


@pytest.mark.parametrize("pack", [to_parquet, to_tar])
def test_an_evaluation_of_an_archive_is_resumed(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, watching: list, pack: Any, tmp_path: Path
) -> None:
    archive = pack(write_questions(10))
    for path in tmp_path.glob("*.png"):
        path.unlink()
    first = evaluate(archive, limit=8)
    lines = (tmp_path / "out" / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out" / "predictions.jsonl").write_bytes(b"".join(lines[:BATCH]))
    (tmp_path / "out" / "results.json").unlink()
    watching.clear()
    assert same(evaluate(archive, limit=8), first)
    assert len(watching) == BATCH, "one of two batches was left"
    assert first.overall == Tally(8, 8)


def test_copies_of_an_image_in_parquet_are_one_image(
    write_questions: Questions, evaluate: Evaluate, predictions: Callable, watching: list
) -> None:
    """An image that is embedded with each of its questions is never shown to another of them in its place."""
    archive = to_parquet(write_questions(4), copies=3)
    assert evaluate(archive, shuffle_images=True).overall == Tally(0, 12)
    images = [predictions()[record].image for record in range(12)]
    assert all(len(set(images[start : start + 3])) == 1 for start in range(0, 12, 3))
    assert len(set(images)) == 4


def test_an_archive_with_other_images_is_another_evaluation(
    write_questions: Questions, evaluate: Evaluate, watching: list, tmp_path: Path
) -> None:
    questions = write_questions(4)
    evaluate(to_parquet(questions))
    Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "2.png")
    with pytest.raises(EvaluationError, match="contains a different evaluation"):
        evaluate(to_parquet(questions))


def test_results_are_written_while_the_folder_is_locked(
    write_questions: Questions, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save, locked = EvaluationResult.save, []

    def noting(self: EvaluationResult, path: Path) -> None:
        locked.append((path.parent / OWNER_FILE).is_file())
        save(self, path)

    monkeypatch.setattr(EvaluationResult, "save", noting)
    evaluate(write_questions(2))
    assert locked == [True]


def test_two_evaluations_never_write_into_one_folder_at_once(
    write_questions: Questions, evaluate: Evaluate, watching: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A second process starts while the first one is answering: it fails with an error, and predictions stay intact."""
    questions, told = write_questions(6), tmp_path / "told"
    answer, first = Engine.answer, os.getpid()

    def again() -> None:
        try:
            evaluate(questions)
        except AlignGPTError as error:
            told.write_text(str(error))

    def meanwhile(self: Engine, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        if os.getpid() == first and not told.exists():
            told.write_text("nothing")
            second = multiprocessing.get_context("fork").Process(target=again)
            second.start()
            second.join(60)
        return answer(self, requests, sampling)

    monkeypatch.setattr(Engine, "answer", meanwhile)
    assert evaluate(questions).overall == Tally(6, 6)
    assert f"process {first}" in told.read_text()
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 6
