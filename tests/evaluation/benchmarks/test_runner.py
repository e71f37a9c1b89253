"""Running benchmarks: asking, resuming, answers from files, and what a result says about itself."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import benchmark_layouts as layouts
import pytest
from PIL import Image

from aligngpt.evaluation.benchmarks.answers import AnswersError
from aligngpt.evaluation.benchmarks.asking import AskingError, show
from aligngpt.evaluation.benchmarks.folder import DataFolder
from aligngpt.evaluation.benchmarks.published import comparison_table, differences
from aligngpt.evaluation.benchmarks.registry import all_benchmarks
from aligngpt.evaluation.benchmarks.results import BenchmarkResult
from aligngpt.evaluation.benchmarks.runner import BenchmarksError, run_benchmarks
from aligngpt.evaluation.results import EvaluationError, summarise
from aligngpt.inference.requests import Answer, Request, Sampling

GREEDY = Sampling()


class Knowing:
    """Answers each prompt with the right answer; fails after `limit` questions."""

    def __init__(self, name: str, root: Path, right: Sequence[str], limit: int = 10_000) -> None:
        benchmark = all_benchmarks()[name]
        items = benchmark.read(DataFolder(root, benchmark.source))
        self.book = {item.prompt: text for item, text in zip(items, right, strict=True)}
        self.limit, self.asked, self.sampling = limit, list[Request](), list[Sampling]()

    def answer(self, requests: Sequence[Request], sampling: Sampling = GREEDY) -> list[Answer]:
        if len(self.asked) + len(requests) > self.limit:
            raise KeyboardInterrupt
        self.asked += requests
        self.sampling.append(sampling)
        return [Answer(self.book[one.messages[0]["content"][-1]["text"]], 1, True) for one in requests]


def run(name: str, root: Path, engine: Knowing | None = None, **changes: object) -> BenchmarkResult:
    arguments: dict = {"model": "tiny"} | changes
    return run_benchmarks(engine, [name], root, root / "out", **arguments)[0]


def answers_file(name: str, root: Path, texts: Sequence[str], **changes: object) -> Path:
    """LLaVA's file of answers."""
    benchmark = all_benchmarks()[name]
    items = benchmark.read(DataFolder(root, benchmark.source))
    rows = [
        {"question_id": item.question_id, **benchmark.record(item), "text": text, "answer_id": "x", "model_id": "m"}
        for item, text in zip(items, texts, strict=True)
    ]
    path = root / "answers.jsonl"
    layouts.lines(path, rows)
    return path


@pytest.mark.parametrize("name", sorted(layouts.LAYOUTS))
def test_a_model_is_asked_and_its_answers_can_be_scored_again_without_it(name: str, tmp_path: Path) -> None:
    right = layouts.LAYOUTS[name](tmp_path)
    engine = Knowing(name, tmp_path, right)
    first = run(name, tmp_path, engine)
    again = run(name, tmp_path)
    assert (again.figure, again.parts, again.low) == (first.figure, first.parts, first.low)
    assert first.picture_mode == all_benchmarks()[name].picture_mode and again.picture_mode is None
    assert {one.max_new_tokens for one in engine.sampling} == {all_benchmarks()[name].new_tokens}
    assert {one.temperature for one in engine.sampling} == {0.0}
    saved = json.loads((tmp_path / "out" / name / "results.json").read_text(encoding="utf-8"))[0]
    assert saved["files"] and all(len(digest) == 64 for digest in saved["files"].values())
    assert saved["scorer"] and saved["split"] and saved["example_prompt"]


@pytest.mark.parametrize("name", sorted(layouts.LAYOUTS))
def test_llavas_answers_are_joined_by_key_in_any_order(name: str, tmp_path: Path) -> None:
    right = layouts.LAYOUTS[name](tmp_path)
    path = answers_file(name, tmp_path, right)
    path.write_text("".join(reversed(path.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")
    result = run(name, tmp_path, answers={name: path})
    assert result.figure == run(name, tmp_path, Knowing(name, tmp_path, right)).figure
    assert any("how the model was asked is not checked" in note for note in result.notes)


def test_an_interrupted_run_resumes_without_asking_twice(tmp_path: Path) -> None:
    right = layouts.gqa(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run("gqa", tmp_path, Knowing("gqa", tmp_path, right, limit=1), batch_size=1)
    with (tmp_path / "out/gqa/predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"question_id": "2')
    engine = Knowing("gqa", tmp_path, right)
    assert run("gqa", tmp_path, engine, batch_size=1).figure == 100
    assert len(engine.asked) == 1


def test_a_resumed_run_has_the_same_batches(tmp_path: Path) -> None:
    right = layouts.pope(tmp_path)
    first = Knowing("pope", tmp_path, right)
    run("pope", tmp_path, first, batch_size=4)
    path = tmp_path / "out/pope/predictions.jsonl"
    whole = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(whole[:6]), encoding="utf-8")
    resumed = Knowing("pope", tmp_path, right)
    run("pope", tmp_path, resumed, batch_size=4)
    assert [one.messages for one in resumed.asked] == [one.messages for one in first.asked[4:]]
    assert path.read_text(encoding="utf-8").splitlines(keepends=True) == whole


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": "other"}, "model, or an earlier version of aligngpt wrote it"),
        ({"picture_mode": "crop"}, "picture mode"),
    ],
)
def test_answers_of_another_model_or_picture_mode_are_not_reused(changes: dict, what: str, tmp_path: Path) -> None:
    right = layouts.gqa(tmp_path)
    run("gqa", tmp_path, Knowing("gqa", tmp_path, right))
    with pytest.raises(AskingError, match=f"answers with another {what}; choose another folder"):
        run("gqa", tmp_path, Knowing("gqa", tmp_path, right), **changes)


def test_a_model_named_by_another_path_keeps_its_answers(tmp_path: Path) -> None:
    right, digits = layouts.gqa(tmp_path), "(0123456789abcdef, bfloat16)"
    run("gqa", tmp_path, Knowing("gqa", tmp_path, right), model=f"runs/m {digits}")
    again = Knowing("gqa", tmp_path, right)
    assert run("gqa", tmp_path, again, model=f"./runs/m {digits}").figure == 100 and not again.asked
    for other in ("runs/m (fedcba9876543210, bfloat16)", "runs/m (0123456789abcdef, float32)"):
        with pytest.raises(AskingError, match="answers with another model"):
            run("gqa", tmp_path, again, model=other)


def test_results_of_the_same_model_on_other_benchmarks_stay_in_the_table(tmp_path: Path) -> None:
    def results(name: str, model: str) -> tuple[list[tuple[str, str]], str]:
        right = layouts.LAYOUTS[name](tmp_path)
        (tmp_path / "out" / name / "predictions.jsonl").unlink(missing_ok=True)
        run(name, tmp_path, Knowing(name, tmp_path, right), model=model)
        saved = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
        return [(one["name"], one["model"]) for one in saved], (tmp_path / "out/table.md").read_text(encoding="utf-8")

    results("gqa", "m")
    names, table = results("pope", "m")
    assert names == [("gqa", "m"), ("pope", "m")] and "| GQA, " in table and "| POPE, " in table
    assert results("gqa", "m")[0] == [("pope", "m"), ("gqa", "m")]
    names, table = results("pope", "other")
    assert names == [("pope", "other")] and "| GQA, " not in table
    (tmp_path / "out/results.json").write_text('[{"name": "mme", "model": "other"}]', encoding="utf-8")
    assert results("gqa", "other")[0] == [("gqa", "other")], "with other fields than this version's"


def test_missing_pictures_are_counted_before_anything_is_asked(tmp_path: Path) -> None:
    right = layouts.pope(tmp_path)
    (tmp_path / "pope/val2014/2.jpg").unlink()
    engine = Knowing("pope", tmp_path, right)
    with pytest.raises(AskingError, match=r"1 of 2 pictures of POPE are missing, such as .*2\.jpg; get them from"):
        run("pope", tmp_path, engine)
    assert not engine.asked


def test_answers_to_another_version_are_refused(tmp_path: Path) -> None:
    path = answers_file("gqa", tmp_path, layouts.gqa(tmp_path))
    path.write_text(path.read_text(encoding="utf-8").replace("Is it red?", "Is it blue?"), encoding="utf-8")
    with pytest.raises(AnswersError, match=r"question 21 was asked as 'is it blue.*answers are to another version"):
        run("gqa", tmp_path, answers={"gqa": path})


def test_missing_unknown_and_contradicting_answers_are_refused(tmp_path: Path) -> None:
    right = layouts.gqa(tmp_path)
    path = answers_file("gqa", tmp_path, right)
    whole = path.read_text(encoding="utf-8")
    first = whole.splitlines(keepends=True)[0]
    for content, message in (
        (first, "answers 1 of the 2 questions of GQA .* first without an answer is 21"),
        (whole + first.replace('"20"', '"99"'), "answers question 99, which GQA .* does not have"),
        (whole + first.replace("Dog.", "cat"), "line 3 answers question 20 again, differently from .*line 1"),
        (whole + '{"question_id": "20"}\n', "line 3 is not an answer"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(AnswersError, match=message):
            run("gqa", tmp_path, answers={"gqa": path})


def test_the_same_answer_twice_counts_once(tmp_path: Path) -> None:
    path = answers_file("gqa", tmp_path, layouts.gqa(tmp_path))
    path.write_text(path.read_text(encoding="utf-8") * 2, encoding="utf-8")
    assert run("gqa", tmp_path, answers={"gqa": path}).questions == 2


def test_answers_without_prompts_need_unique_ids(tmp_path: Path) -> None:
    layouts.textvqa(tmp_path)
    path = tmp_path / "answers.jsonl"
    layouts.lines(path, [{"id": "a1", "answer": "x"}, {"id": "b2", "answer": "y"}])
    with pytest.raises(AnswersError, match="has no prompt, and 2 questions of TextVQA have the id a1"):
        run("textvqa", tmp_path, answers={"textvqa": path})


def test_ours_and_llavas_format_give_the_same(tmp_path: Path) -> None:
    right = layouts.gqa(tmp_path)
    path = tmp_path / "ours.jsonl"
    rows = [("20", "What is it?", right[0]), ("21", "Is it red?", right[1])]
    layouts.lines(path, [{"id": i, "question": q, "answer": a} for i, q, a in rows])
    assert run("gqa", tmp_path, answers={"gqa": path}).figure == 100


def test_one_text_about_two_pictures_under_one_id_is_refused(tmp_path: Path) -> None:
    right = layouts.pope(tmp_path)
    path = tmp_path / "pope/llava_pope_test.jsonl"
    # Questions 0 and 2 ask about a dog, in different pictures.
    path.write_text(
        path.read_text(encoding="utf-8").replace('"question_id": 2,', '"question_id": 0,'), encoding="utf-8"
    )
    with pytest.raises(AskingError, match=r"about 1\.jpg and 2\.jpg"):
        run("pope", tmp_path, Knowing("pope", tmp_path, right))


def test_what_cannot_be_run_is_a_sentence(tmp_path: Path) -> None:
    right = layouts.gqa(tmp_path)
    engine = Knowing("gqa", tmp_path, right)
    for arguments, message in (
        ({}, "there are no answers to GQA"),
        ({"engine": engine, "model": ""}, "name the model"),
        ({"engine": engine, "answers": {"gqa": tmp_path}}, "not both"),
        ({"answers": {"pope": tmp_path}}, "answers are given for pope"),
        ({"engine": engine, "picture_mode": "squash"}, "no picture mode 'squash'"),
    ):
        with pytest.raises(BenchmarksError, match=message):
            run("gqa", tmp_path, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", ["out", "out/gqa"])
def test_results_of_the_evaluation_of_a_file_are_left_alone(folder: str, tmp_path: Path) -> None:
    right, path = layouts.gqa(tmp_path), tmp_path / folder / "results.json"
    summarise([]).save(path)
    before, engine = path.read_bytes(), Knowing("gqa", tmp_path, right)
    with pytest.raises(EvaluationError, match=r"results\.json, which would be replaced, is of the evaluation of"):
        run("gqa", tmp_path, engine)
    assert path.read_bytes() == before and not engine.asked


@pytest.mark.parametrize(
    ("folder", "content", "expected"),
    [
        ("out", '[{"name": "gqa"}, {"name": "winoground"}]', "has results of winoground; choose another folder with"),
        ("out/gqa", '[{"name": "pope"}]', "has results of pope; choose"),
        ("out", '{"accuracy": 0.5}', "cannot be read as that of benchmarks; choose"),
        ("out", "", "cannot be read as that of benchmarks; choose"),
    ],
)
def test_results_of_another_kind_are_left_alone(folder: str, content: str, expected: str, tmp_path: Path) -> None:
    right, path = layouts.gqa(tmp_path), tmp_path / folder / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    engine = Knowing("gqa", tmp_path, right)
    with pytest.raises(EvaluationError, match=expected):
        run("gqa", tmp_path, engine)
    assert path.read_text(encoding="utf-8") == content and not engine.asked


def test_results_of_another_kind_that_come_while_asking_are_left_alone(tmp_path: Path) -> None:
    class Meanwhile(Knowing):
        def answer(self, requests: Sequence[Request], sampling: Sampling = GREEDY) -> list[Answer]:
            path.write_text('[{"name": "winoground"}]', encoding="utf-8")
            return super().answer(requests, sampling)

    right, path = layouts.gqa(tmp_path), tmp_path / "out/results.json"
    with pytest.raises(EvaluationError, match=r"the figures are in .*gqa.results\.json; .* has results of winoground"):
        run("gqa", tmp_path, Meanwhile("gqa", tmp_path, right))
    assert json.loads(path.read_text(encoding="utf-8")) == [{"name": "winoground"}]
    assert json.loads((tmp_path / "out/gqa/results.json").read_text(encoding="utf-8"))[0]["figure"] == 100


def test_figures_are_kept_while_another_command_holds_the_folder(tmp_path: Path, held: Callable) -> None:
    right, out = layouts.LAYOUTS["gqa"](tmp_path), tmp_path / "out"
    with held(out), pytest.raises(EvaluationError, match=r"table\.md is not written.* in use by process \d+ .*train"):
        run("gqa", tmp_path, Knowing("gqa", tmp_path, right))
    (figures,) = json.loads((out / "gqa/results.json").read_text(encoding="utf-8"))
    assert figures["figure"] == 100 and not (out / "results.json").exists()
    again = Knowing("gqa", tmp_path, right)
    assert run("gqa", tmp_path, again).figure == 100 and not again.asked and (out / "table.md").exists()


def test_crop_shows_the_central_square() -> None:
    wide = Image.new("RGB", (6, 4), (0, 0, 0))
    wide.putpixel((1, 0), (255, 0, 0))
    assert show(wide, "pad") is wide
    assert (show(wide, "crop").size, show(wide, "crop").getpixel((0, 0))) == ((4, 4), (255, 0, 0))


def test_only_whole_benchmarks_by_published_rules_are_compared(tmp_path: Path) -> None:
    right = layouts.pope(tmp_path)
    result = run("pope", tmp_path, Knowing("pope", tmp_path, right))
    assert not result.as_published and differences(result) == {}
    assert "12 questions; the published figures are of 8,910" in result.notes
    complete = replace(result, as_published=True, figure=87.0)
    assert differences(complete)["AlignGPT-7B"] == pytest.approx(1.0)
    table = comparison_table([complete])
    assert "86.0 (+1.0)" in table and "POPE: split COCO val2014" in table


def test_seed_is_not_compared_with_llavas_figure_of_images_and_videos(tmp_path: Path) -> None:
    right = layouts.seed(tmp_path)
    result = replace(run("seed", tmp_path, Knowing("seed", tmp_path, right)), as_published=True)
    assert set(differences(result)) == {"AlignGPT-7B", "AlignGPT-13B"}
