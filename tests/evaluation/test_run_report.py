"""Tests of the report of a run folder: it shows whatever exists and requires nothing else."""

import html
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from aligngpt.alignment.levels import fit_levels
from aligngpt.evaluation.fingerprint import state_of_model
from aligngpt.evaluation.results import AskedAbout, EvaluationError, summarise
from aligngpt.evaluation.results import Prediction as Answered
from aligngpt.evaluation.run_evaluations import run_of
from aligngpt.evaluation.run_levels import EXAMPLES_PER_LEVEL, borders_between, wrong_share_by_level
from aligngpt.evaluation.run_report import ReportingError, write_report
from aligngpt.reports.curves import CurveError
from aligngpt.training.recipe import load_recipe, recipe_path
from aligngpt.training.run_card import RESULTS_BEGIN, RESULTS_END

LEVELS = 4


def dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_scores(run: Path) -> None:
    records = [
        {
            "image": "red.png",
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"caption {index}"}],
            "score": index / 40,
            "caption_quality": "wrong" if index < 10 else "right",
        }
        for index in range(40)
    ]
    dump(run / "captions.json", records)
    (run / "scores").mkdir()
    fit_levels([record["score"] for record in records], LEVELS).save(run / "scores" / "levels.json")
    dump(run / "separation.json", {"roc_auc": 0.875})


def write_training(run: Path) -> None:
    for stage, loss in (("pretrain", 3.0), ("instruct", 1.25)):
        lines = [json.dumps({"step": step, "loss": loss / step}) for step in (1, 2, 3)]
        (run / stage).mkdir()
        (run / stage / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    dump(run / "instruct" / "stage.json", {"seconds": 90, "samples": 640, "peak_memory": 3 * 2**30})


def write_evaluation(
    run: Path,
    name: str = "test",
    *,
    right: int = 6,
    total: int = 8,
    folder: str | None = None,
    asked: AskedAbout | None = None,
) -> None:
    place = run / (f"evaluation/{name}" if folder is None else folder)
    predictions = [
        Answered(
            id=str(record),
            record=record,
            kind=None if name == "photographs" else ("colour", "shape")[record % 2],
            question=f"{'test' if name == 'shuffled' else name} question {record} ?",
            expected="expected this",
            answer="said that",
            correct=record < right,
            image="red.png",
            image_shown="red.png",
            alignment_weights=(0.25, 0.5, 0.25),
        )
        for record in range(total)
    ]
    summarise(predictions, seconds=12, asked=asked).save(place / "results.json")
    lines = [json.dumps(one.__dict__) + "\n" for one in predictions]
    (place / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")


PARTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "scores": (write_scores, ["Alignment levels", "Level 4 · score", "87.5%"]),
    "training": (
        write_training,
        ["Loss of Stage 1: pre-training", "Loss of Stage 2: instruction tuning", "1 min 30 s"],
    ),
    "evaluation": (
        write_evaluation,
        ["<bdi>colour</bdi>", "<bdi>shape</bdi>", "75.0%", "What the gate chooses", "Answers"],
    ),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for folder in ("data", "photographs"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
        Image.new("RGB", (16, 16), "red").save(tmp_path / "mine" / folder / "red.png")
    return tmp_path / "mine"


@pytest.mark.parametrize("part", PARTS)
def test_one_part_is_enough_for_a_page(run: Path, part: str) -> None:
    write, shown = PARTS[part]
    write(run)
    page = write_report(run).read_text(encoding="utf-8")
    assert not [text for text in ["AlignGPT: mine", *shown] if text not in page]
    others = {text for name, (_, texts) in PARTS.items() if name != part for text in texts}
    assert not [text for text in others if text in page]


def test_a_whole_run_is_on_one_page(run: Path) -> None:
    for write, _ in PARTS.values():
        write(run)
    write_evaluation(run, "shuffled", right=2)
    write_evaluation(run, "photographs", right=1, total=3)
    dump(run / "baselines.json", {"Question alone": {"correct": 3, "total": 8, "note": "never sees a picture"}})
    steps = {"Scores": {"seconds": 5, "peak_memory": 2**30}, "Levels": {"seconds": 6, "peak_memory": None}}
    dump(run / "run.json", {"facts": {"seed": 7}, "steps": steps})
    page = write_report(run).read_text(encoding="utf-8")
    assert '<td class="number">1.0 GiB</td>' in page and '<td class="number">–</td>' in page
    shown = [text for _, texts in PARTS.values() for text in texts if text != "1 min 30 s"]
    assert not [text for text in shown if text not in page]
    for text in ("images shuffled", "25.0%", "Question alone", "37.5%", "never sees a picture", "Scores", "seed"):
        assert text in page
    rows = re.findall(r'<tr(?: class="(part)")?>\s*<th scope="row"(?: class="(own)")?><bdi>([^<]*)</bdi>', page)
    assert rows[:6] == [
        ("", "own", "AlignGPT"),
        ("part", "", "colour"),
        ("part", "", "shape"),
        ("", "", "AlignGPT, images shuffled"),
        ("", "", "Question alone"),
        ("", "", "AlignGPT, photographs"),
    ]
    assert "the best baseline, <bdi>Question alone</bdi>" in page
    assert page.count("photographs question") == 3
    assert len(re.findall("test question", page)) == 8, "answers to shuffled images are not shown"
    assert 'class="missing"' not in page


def test_wrong_captions_are_counted_by_level_where_they_are_known(run: Path) -> None:
    write_scores(run)
    page = write_report(run).read_text(encoding="utf-8")
    assert "level 1: 100%; level 2: 0%; level 3: 0%; level 4: 0%" in page
    assert page.count("<small><bdi>wrong</bdi></small>") == EXAMPLES_PER_LEVEL
    records = json.loads((run / "captions.json").read_text(encoding="utf-8"))
    dump(
        run / "captions.json",
        [{**record, "caption_quality": "right"} for record in records[:-1]]
        + [{key: value for key, value in records[-1].items() if key != "caption_quality"}],
    )
    assert "level 1: 100%" not in write_report(run).read_text(encoding="utf-8")


def test_the_page_goes_where_it_is_wanted(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_training(run)
    assert write_report(run) == run / "report.html"
    elsewhere = tmp_path / "new" / "page.html"
    assert write_report(run, elsewhere) == elsewhere
    assert elsewhere.read_text(encoding="utf-8") == (run / "report.html").read_text(encoding="utf-8")
    monkeypatch.chdir(run)
    assert "AlignGPT: mine" in write_report(Path(".")).read_text(encoding="utf-8")


def test_curves_of_another_run_are_behind_those_of_this_one(run: Path, tmp_path: Path) -> None:
    write_training(run)
    assert "reference" not in write_report(run).read_text(encoding="utf-8")
    page = write_report(run, tmp_path / "page.html", reference=run).read_text(encoding="utf-8")
    assert page.count("Dashed: the reference, the run mine.") == 2
    with pytest.raises(CurveError, match="cannot be read"):
        write_report(run, reference=tmp_path / "gone")
    dump(run / "run.json", {"facts": {}, "steps": {}})
    assert "the reference, one quickstart of 12 minutes" in write_report(run).read_text(encoding="utf-8")


def test_accuracies_go_into_the_card_of_the_model(run: Path) -> None:
    write_training(run)
    card = run / "model" / "README.md"
    card.parent.mkdir()
    card.write_text(f"mine\n{RESULTS_BEGIN}\n{RESULTS_END}\n", encoding="utf-8")
    write_report(run)
    assert "%" not in card.read_text(encoding="utf-8")
    write_evaluation(run)
    write_report(run)
    assert "| AlignGPT | 75.0% |" in card.read_text(encoding="utf-8")


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    for write, _ in PARTS.values():
        write(run)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_a_run_that_was_killed_is_reported_as_far_as_it_came(run: Path) -> None:
    write_training(run)
    whole = write_report(run).read_text(encoding="utf-8")
    with (run / "instruct" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    assert write_report(run).read_text(encoding="utf-8") == whole
    (run / "instruct" / "metrics.jsonl").write_text("", encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    assert "Loss of Stage 1" in page and "Loss of Stage 2" not in page


def test_an_evaluation_without_answers_is_left_out(run: Path) -> None:
    write_training(run)
    write_evaluation(run, total=0)
    assert "questions right" not in write_report(run).read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused(run: Path) -> None:
    with pytest.raises(
        ReportingError, match="mine contains no scores, no training and no evaluation; give a run folder"
    ):
        write_report(run)
    for wrong in (run / "nowhere", run / "data" / "red.png"):
        with pytest.raises(ReportingError, match="is not a folder; give a run folder"):
            write_report(wrong)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["baselines.json", "run.json", "captions.json", "instruct/stage.json"])
def test_a_damaged_file_is_named(run: Path, name: str) -> None:
    for write, _ in PARTS.values():
        write(run)
    (run / name).write_text('{"cut', encoding="utf-8")
    with pytest.raises(ReportingError, match=rf"{name} is damaged"):
        write_report(run)


def test_damaged_results_are_named(run: Path) -> None:
    write_evaluation(run)
    (run / "evaluation" / "test" / "results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"results.json cannot be read"):
        write_report(run)


@pytest.mark.parametrize("folder", ["evaluation", "evaluation/mine", "elsewhere/deep"])
def test_an_evaluation_is_found_wherever_it_is_below_the_run(run: Path, folder: str) -> None:
    write_evaluation(run, folder=folder)
    page = write_report(run).read_text(encoding="utf-8")
    assert "answers <b>75.0%</b> of 8 questions right" in page and "What the gate chooses" in page


def test_other_files_of_that_name_are_not_evaluations(run: Path) -> None:
    write_evaluation(run)
    page = write_report(run).read_bytes()
    dump(run / "results.json", {"accuracy": 0.5})
    dump(run / "data" / "results.json", [1])
    assert write_report(run).read_bytes() == page


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("marker", ["asked.json", "results.json"])
def test_a_benchmark_in_the_run_is_named_and_not_shown(run: Path, marker: str, finished: bool) -> None:
    write_evaluation(run)
    dump(run / "evaluation" / "pope" / "predictions.jsonl", {"question_id": 1, "prompt": "is it ?", "text": "yes"})
    dump(run / "evaluation" / "pope" / marker, [])
    if finished:
        dump(run / "evaluation" / "pope" / "results.json", [{"name": "pope"}])
        dump(run / "evaluation" / "results.json", [{"name": "pope"}])
    page = write_report(run).read_text(encoding="utf-8")
    assert "answers <b>75.0%</b> of 8 questions right" in page and "is not finished" not in page
    assert "The benchmark pope is not shown; once finished, its figures are in table.md beside its folder." in page


def asked_of(model: Path | str, questions: str = "/q.json", *, shuffled: bool = False) -> AskedAbout:
    return AskedAbout(str(model), questions, "/pictures", shuffled)


def rows_of(page: str) -> list[tuple[str, str]]:
    """The name and the share of each system, without kinds of questions."""
    rows = re.findall(r"<tr>\s*<th scope=\"row\"[^>]*><bdi>([^<]*)</bdi>.*?([0-9.]+%)(?:</b>)?<small>", page, re.DOTALL)
    return [(name, share) for name, share in rows]


def test_the_accuracy_of_another_model_is_not_the_runs(run: Path, tmp_path: Path) -> None:
    card = run / "model" / "README.md"
    card.parent.mkdir()
    card.write_text(f"mine\n{RESULTS_BEGIN}\n{RESULTS_END}\n", encoding="utf-8")
    base = tmp_path / "converted" / "base"
    write_evaluation(run, "base", right=8, asked=asked_of(base))
    page = write_report(run).read_text(encoding="utf-8")
    assert rows_of(page) == [("converted/base", "100.0%")]
    assert "No evaluation is of the run&#39;s own model, so the page is about converted/base" in page
    assert "%" not in card.read_text(encoding="utf-8")
    write_evaluation(run, "tuned", right=2, asked=asked_of(run / "model"))
    page = write_report(run).read_text(encoding="utf-8")
    assert rows_of(page) == [("AlignGPT", "25.0%"), ("converted/base, base", "100.0%")]
    assert "own model" not in page and "tuned question" in page and "base question" not in page
    written = card.read_text(encoding="utf-8")
    assert "25.0%" in written and "converted/base" not in written and "100.0%" not in written


@pytest.mark.parametrize("older", [False, True])
def test_the_accuracy_of_an_earlier_model_in_the_folder_is_not_that_of_todays(run: Path, older: bool) -> None:
    model = run / "model"
    model.mkdir()
    card, weights = model / "README.md", model / "model.safetensors"
    empty = f"mine\n{RESULTS_BEGIN}\n{RESULTS_END}\n"
    card.write_text(empty, encoding="utf-8")
    weights.write_bytes(b"old")
    os.utime(weights, (1, 1))
    write_training(run)
    write_evaluation(run, asked=replace(asked_of(model), model_state=None if older else state_of_model(model)))
    assert rows_of(write_report(run).read_text(encoding="utf-8")) == [("AlignGPT", "75.0%")]
    weights.write_bytes(b"new")
    if older:
        later = (run / "evaluation/test/results.json").stat().st_mtime + 1
        os.utime(weights, (later, later))
    card.write_text(empty, encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    assert rows_of(page) == [] and card.read_text(encoding="utf-8") == empty
    assert "The evaluation test is not shown: the weights in this run&#39;s model folder have changed since" in page


def test_the_accuracy_on_the_training_questions_says_so(run: Path) -> None:
    card = run / "model" / "README.md"
    card.parent.mkdir()
    card.write_text(f"mine\n{RESULTS_BEGIN}\n{RESULTS_END}\n", encoding="utf-8")
    note = "the questions that the model was trained on"
    for trained_on in (False, True):
        write_evaluation(run, asked=replace(asked_of(run / "model"), trained_on=trained_on))
        page = write_report(run).read_text(encoding="utf-8")
        assert (note in page) == (note in card.read_text(encoding="utf-8")) == trained_on


def test_the_model_of_a_run_that_moved_is_its_own(run: Path, tmp_path: Path) -> None:
    (run / "model").mkdir()
    write_evaluation(run, asked=asked_of(tmp_path / "elsewhere" / "mine" / "model"))
    assert rows_of(write_report(run).read_text(encoding="utf-8")) == [("AlignGPT", "75.0%")]


def test_shuffled_images_are_a_baseline_of_the_same_questions_only(run: Path) -> None:
    (run / "model").mkdir()
    for name, model, questions, right in (
        ("test", run / "model", "/q.json", 11),
        ("test-shuffled", run / "model", "/q.json", 4),
        ("yesno-shuffled", run / "model", "/yesno.json", 12),
        ("base-shuffled", "owner/base", "/q.json", 13),
    ):
        asked = asked_of(model, questions, shuffled=name != "test")
        write_evaluation(run, name, right=right, total=20, asked=asked)
    page = write_report(run).read_text(encoding="utf-8")
    assert "the best baseline, <bdi>AlignGPT, images shuffled (test-shuffled)</bdi>, <b>20.0%</b>" in page
    assert rows_of(page) == [
        ("AlignGPT", "55.0%"),
        ("AlignGPT, images shuffled (test-shuffled)", "20.0%"),
        ("AlignGPT, images shuffled (yesno-shuffled)", "60.0%"),
        ("owner/base, images shuffled (base-shuffled)", "65.0%"),
    ]
    shutil.rmtree(run / "evaluation" / "test-shuffled")
    page = write_report(run).read_text(encoding="utf-8")
    assert "best baseline" not in page and "no evaluation of the same questions with --shuffle-images" in page


def test_the_gate_section_counts_the_averaged_questions_and_says_what_is_always_added(run: Path) -> None:
    write_evaluation(run)
    place = run / "evaluation" / "test" / "results.json"
    saved = json.loads(place.read_text(encoding="utf-8"))
    assert saved["gate_counts"] == {"colour": 4, "shape": 4}
    place.write_text(json.dumps(saved | {"gate_counts": {"colour": 3, "shape": 4}}), encoding="utf-8")
    always = "Level 4 is always added with weight 1."
    for alignment, said in (("adaptive", True), ("local", False)):
        dump(run / "model" / "config.json", {"alignment": alignment})
        page = write_report(run).read_text(encoding="utf-8")
        assert "colour (3)" in page and "shape (4)" in page and (always in page) == said
    # An adapter folder has no configuration.
    (run / "model" / "config.json").unlink()
    assert always not in write_report(run).read_text(encoding="utf-8")
    recipe_with(run, run / "captions.json")
    assert always in write_report(run).read_text(encoding="utf-8")


def test_pictures_in_archives_are_a_note(run: Path) -> None:
    asked = AskedAbout("model", "questions.parquet", str(run / "data"), False, archived=True)
    write_evaluation(run, asked=asked)
    page = write_report(run).read_text(encoding="utf-8")
    assert "The images of the evaluation test are not shown: they are stored in Parquet or tar files." in page
    assert 'class="missing"' not in page and "<img src=" not in page and "test question" in page


def test_pictures_are_taken_from_the_image_root_of_the_evaluation(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "red.png")
    (run / "data" / "red.png").unlink()
    asked = AskedAbout("model", "questions.json", str(tmp_path), False)
    write_evaluation(run, asked=asked)
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count("<img src=") == 8 and 'class="missing"' not in page
    shutil.rmtree(run / "data")
    write_evaluation(run, asked=replace(asked, image_root=str(tmp_path / "gone")))
    page = write_report(run).read_text(encoding="utf-8")
    assert "<img src=" not in page
    assert f"The images of the evaluation test are not shown: its image root {tmp_path / 'gone'} is gone." in page


def test_what_is_not_there_is_said(run: Path) -> None:
    write_training(run)
    page = write_report(run).read_text(encoding="utf-8")
    assert "Not evaluated yet: `aligngpt evaluate`" in page
    write_evaluation(run)
    (run / "evaluation" / "test" / "results.json").unlink()
    shutil.rmtree(run / "pretrain")
    page = write_report(run).read_text(encoding="utf-8")
    assert "The evaluation test is not finished; run the same `aligngpt evaluate` again" in page
    assert "The loss of stage 1 is not shown: there is no pretrain/metrics.jsonl." in page
    write_evaluation(run)
    assert "There is no evaluation of the same questions with --shuffle-images" in write_report(run).read_text()
    write_evaluation(run, "shuffled")
    assert "--shuffle-images" not in write_report(run).read_text(encoding="utf-8")


def test_baselines_are_compared_on_the_questions_that_both_answered(run: Path) -> None:
    write_evaluation(run, right=60, total=80)
    write_evaluation(run, "shuffled", right=10, total=20)
    baseline = {"correct": 300, "total": 900, "note": "", "right": [*range(30), 700]}
    dump(run / "baselines.json", {"Question alone": baseline})
    words = " ".join(write_report(run).read_text(encoding="utf-8").replace("<b>", "").replace("</b>", "").split())
    assert "On the 20 questions that both answered" in words and "shuffled</bdi> by +50.0 percentage points" in words
    assert "On the 80 questions that both answered" in words and "Question alone</bdi> by +37.5 percentage" in words
    assert "95% interval, by picture: " in words


def test_another_question_of_the_same_number_is_not_compared(run: Path) -> None:
    write_evaluation(run)
    write_evaluation(run, "other", asked=AskedAbout("m", "other.json", str(run / "data"), True))
    assert "that both answered" not in write_report(run).read_text(encoding="utf-8")


def recipe_with(run: Path, data: Path, levels: int = LEVELS) -> None:
    recipe = load_recipe(recipe_path("quickstart")).model_dump(mode="json")
    recipe["model"]["num_levels"] = levels
    recipe["pretrain"] |= {"data": str(data), "image_root": None}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def caption(index: int, **changes: object) -> dict[str, object]:
    said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"caption {index}"}]
    record = {"image": "red.png", "conversations": said, "similarity": index // 10, "score": index / 40}
    return record | changes


def test_levels_come_from_the_recipe_where_the_run_has_none(run: Path, tmp_path: Path) -> None:
    write_training(run)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    dump(tmp_path / "captions.json", [*(caption(index) for index in range(40)), caption(0, similarity=None)])
    recipe_with(run, tmp_path / "captions.json")
    page = write_report(run).read_text(encoding="utf-8")
    assert "Alignment levels" in page and "0.237 – 0.487" in page
    assert page.count("<img src=") == LEVELS * EXAMPLES_PER_LEVEL
    assert "Captions left out of the levels: 1 without a level." in page


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([caption(0, similarity=None)], "no caption of `pretrain.data` has a level and a score: 1 without a level"),
        ([caption(0, score=None)], "no caption of `pretrain.data` has a level and a score: 1 without a score"),
        ([caption(39, similarity=0), caption(0, similarity=1)], "the levels do not follow the scores"),
        ([caption(0, similarity=7)], "1 with a level above 4"),
        (None, "captions.json, which the recipe names; run `aligngpt report` in the folder that the training was"),
    ],
)
def test_levels_that_cannot_be_shown_are_a_sentence(run: Path, tmp_path: Path, records: list | None, said: str) -> None:
    write_training(run)
    recipe_with(run, tmp_path / "captions.json")
    if records is not None:
        dump(tmp_path / "captions.json", records)
    page = html.unescape(write_report(run).read_text(encoding="utf-8"))
    assert "Levels are not shown: " in page and said in page and "<h2>Alignment levels" not in page


def test_an_empty_level_keeps_its_place(run: Path) -> None:
    shares = wrong_share_by_level([1, 1, 3], [True, False, False], ["a", "b", "c"], 3)
    assert shares[0].value == 0.5 and math.isnan(shares[1].value) and shares[2].value == 0.0
    assert borders_between([0.1, 0.2, 0.6], [1, 1, 3], 3) == pytest.approx([0.4, 0.4])
    assert borders_between([0.1, 0.2], [2, 2], 3) == pytest.approx([0.1, 0.2])


def test_the_run_of_an_evaluation_is_found(run: Path, tmp_path: Path) -> None:
    assert run_of(run / "evaluation" / "test") is None
    write_training(run)
    assert run_of(run / "evaluation" / "test") == run_of(run / "evaluation") == run
    assert run_of(tmp_path / "elsewhere") is None
