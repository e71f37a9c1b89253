"""Tests of the report of a run folder: it shows whatever exists and requires nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from aligngpt.alignment.levels import fit_levels
from aligngpt.evaluation.results import EvaluationError, summarise
from aligngpt.evaluation.results import Prediction as Answered
from aligngpt.evaluation.run_report import EXAMPLES_PER_LEVEL, ReportingError, write_report
from aligngpt.reports.curves import CurveError
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


def write_evaluation(run: Path, name: str = "test", *, right: int = 6, total: int = 8) -> None:
    predictions = [
        Answered(
            id=str(record),
            record=record,
            kind=None if name == "photographs" else ("colour", "shape")[record % 2],
            question=f"{name} question {record} ?",
            expected="expected this",
            answer="said that",
            correct=record < right,
            image="red.png",
            image_shown="red.png",
            alignment_weights=(0.25, 0.5, 0.25),
        )
        for record in range(total)
    ]
    summarise(predictions, seconds=12).save(run / "evaluation" / name / "results.json")
    lines = [json.dumps(one.__dict__) + "\n" for one in predictions]
    (run / "evaluation" / name / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")


PARTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "scores": (write_scores, ["Alignment levels", "Level 4 · score", "87.5%"]),
    "training": (
        write_training,
        ["Loss of Stage 1: pre-training", "Loss of Stage 2: instruction tuning", "1 min 30 s"],
    ),
    "evaluation": (
        write_evaluation,
        ["AlignGPT: colour", "AlignGPT: shape", "75.0%", "What the gate chooses", "Answers"],
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
    dump(run / "run.json", {"facts": {"seed": 7}, "steps": {"Scores": {"seconds": 5, "peak_memory": 2**30}}})
    page = write_report(run).read_text(encoding="utf-8")
    shown = [text for _, texts in PARTS.values() for text in texts if text != "1 min 30 s"]
    assert not [text for text in shown if text not in page]
    for text in ("images shuffled", "25.0%", "Question alone", "37.5%", "never sees a picture", "Scores", "seed"):
        assert text in page
    assert page.index("AlignGPT, photographs") > page.index("AlignGPT</"), "the model as it is comes first"
    assert "the best baseline, <bdi>Question alone</bdi>" in page
    assert page.count("photographs question") == 3
    assert "shuffled question" not in page
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
    (run / "evaluation" / "test" / "results.json").write_text("[]", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"results.json cannot be read"):
        write_report(run)
