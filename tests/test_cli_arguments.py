"""What the verbs refuse before any work, and the commands that they print."""

import math
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer
import yaml
from object_store import Store
from typer.testing import CliRunner, Result

from aligngpt.cli import app
from aligngpt.cli.options import must_exist
from aligngpt.cli.scoring import next_command
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.results import EvaluationResult, Tally
from aligngpt.study.claiming import settings_of
from aligngpt.study.plan import load_plan
from aligngpt.study.results import merge_files, write_row


def run(*arguments: object) -> Result:
    ended = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "300"})
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


@pytest.fixture
def model_folder(assembled: Callable, tmp_path: Path) -> Path:
    for part in assembled():
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_no_verb_writes_over_a_file_that_it_reads(data: Path, tmp_path: Path) -> None:
    captions, questions = data / "captions.json", data / "questions.json"
    before = captions.read_text(), questions.read_text()
    judge = ["judge", captions, "--endpoint", "http://localhost:1/v1", "--model", "m", "--out", tmp_path / "scores"]
    for arguments in (
        ["init", captions, questions, "--out", captions, "--force", "--yes"],
        ["init", f"file://{captions}", questions, "--out", captions, "--force", "--yes"],
        [*judge, "--replies", captions],
        [*judge, "--prompt", questions, "--replies", questions],
    ):
        with pytest.raises(AlignGPTError, match="which would be written, is a file that is read"):
            run(*arguments)
    assert (captions.read_text(), questions.read_text()) == before


def test_an_evaluation_does_not_write_over_its_questions(data: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("results.json", "predictions.jsonl"):
        shutil.copy(data / "questions.json", data / name)
        with pytest.raises(AlignGPTError, match=f"{name}, which would be written, has the questions"):
            run("evaluate", tmp_path / "model", data / name, "--out", data)


def test_evaluate_and_inspect_read_the_address_of_a_local_file(model_folder: Path, data: Path, tmp_path: Path) -> None:
    address, options = f"file://{data / 'questions.json'}", ["--limit", 4, "--device", "cpu"]
    assert run("evaluate", model_folder, address, "--out", tmp_path / "out", *options).exit_code == 0
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 4
    assert run("inspect", model_folder, address, "--out", tmp_path / "page.html", *options).exit_code == 0
    with pytest.raises(AlignGPTError, match=r"did you mean .*questions\.json"):
        run("evaluate", model_folder, f"file://{data / 'question.json'}", "--out", tmp_path / "other")


def test_an_address_is_looked_for_where_it_may_be_read(
    store: Store, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("q.json", (data / "questions.json").read_bytes())
    asked: list[Any] = []
    monkeypatch.setattr(
        "aligngpt.evaluation.accuracy.evaluate_file",
        lambda *args, **_: asked.append(args) or EvaluationResult(Tally(1, 2)),
    )
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("aligngpt.evaluation.results.read_predictions", lambda _: {})
    assert run("evaluate", tmp_path / "model", "s3://pairs/q.json", "--out", tmp_path / "out").exit_code == 0
    assert len(asked) == 1
    with pytest.raises(AlignGPTError, match=r"questions s3://pairs/none\.json cannot be read: there is nothing at"):
        run("evaluate", tmp_path / "model", "s3://pairs/none.json", "--out", tmp_path / "out")
    must_exist(Path("s3://pairs/*.parquet"), "the data", or_address=True)
    with pytest.raises(AlignGPTError, match="the model cannot be read from an address; download it"):
        run("convert", "s3://pairs/model", tmp_path / "converted")
    with pytest.raises(AlignGPTError, match="the plan cannot be read from an address"):
        run("study", "run", "s3://pairs/plan.yaml")


def test_scores_in_the_working_directory_have_a_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my scores" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my scores" / "below")
    beside = tmp_path / "my scores" / "below-levels.parquet"
    own = next_command("pairs.tar", Path(), "webdataset")
    assert shlex.split(own) == ["aligngpt", "levels", ".", "--out", str(beside)]
    above = tmp_path / "my scores-levels.parquet"
    parent = next_command("pairs.tar", Path(".."), "webdataset")
    assert shlex.split(parent) == ["aligngpt", "levels", "..", "--out", str(above)]
    archives = [next_command("pairs", Path("a/b"), kind) for kind in ("parquet", "webdataset", "dataset")]
    assert archives == [f"aligngpt levels a/b --out {Path('a/b-levels.parquet')}"] * 3


@pytest.mark.parametrize(
    ("source", "kind", "out"),
    [
        ("a/metadata.csv", "csv", "a/metadata-levels.jsonl"),
        ("pairs.jsonl.gz", "llava", "pairs-levels.jsonl"),
        ("my.pairs.json", "llava", "my.pairs-levels.json"),
        ("photos", "files", "photos-levels.jsonl"),
        ("s3://bucket/pairs.csv", "csv", "pairs-levels.jsonl"),
        (".", "files", "{}-levels.jsonl"),
    ],
)
def test_the_next_command_writes_the_records_of_a_source_that_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: str, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written = ["--source", source, "--out", out.format(tmp_path)]
    assert shlex.split(next_command(source, Path("s"), kind)) == ["aligngpt", "levels", "s", *written]


@pytest.mark.parametrize(
    "option", [["--language-model", "m"], ["--tokenizer", "t"], ["--chat-template", "vicuna"], ["--seed", "0"]]
)
def test_converting_back_refuses_what_it_would_ignore(
    option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("aligngpt.model.foreign.conversion.to_original", lambda *_, **__: 1)
    command = ["convert", tmp_path / "model", tmp_path / "out", "--to-original", "--vision-tower", "owner/name"]
    assert run(*command).exit_code == 0
    ended = run(*command, *option)
    assert ended.exit_code == 2 and f"{option[0]} is not for --to-original" in ended.output


@pytest.mark.parametrize("option", [["--batch-size", "32"], ["--device", "cpu"], ["--precision", "float32"]])
def test_scoring_answers_refuses_options_about_asking(option: list[str], data: Path, tmp_path: Path) -> None:
    command = ["evaluate", "--benchmarks", "pope", "--answers", data / "questions.json", "--data", data]
    ended = run(*command, "--out", tmp_path / "out", *option)
    assert ended.exit_code == 2 and f"{option[0]} is about asking a model" in ended.output


def test_rated_benchmarks_refuse_a_batch_size(data: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    command = ["evaluate", tmp_path / "model", "--benchmarks", "winoground", "--data", data, "--out", tmp_path / "out"]
    ended = run(*command, "--batch-size", "4")
    assert ended.exit_code == 2 and "--batch-size is not for winoground" in ended.output


def test_a_dry_run_lists_what_is_still_to_do(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    stage = {"batch_size": 4, "learning_rate": 0.01, "precision": "float32", "max_length": 64}
    cells = [{"arms": ["none", "adaptive"], "noise": [0.2], "levels": [4], "answers": [None], "seeds": 2}]
    content = {"output": str(tmp_path / "study"), "scenes": {}, "pretrain": stage, "instruct": stage, "cells": cells}
    plan.write_text(yaml.safe_dump(content))
    read = load_plan(plan)
    first, second, third, last = read.runs()
    whole = run("study", "run", plan, "--dry-run").output.splitlines()
    assert whole[:-1] == [one.id for one in read.runs()]
    names = [first.id, *{first.pretraining_id, second.pretraining_id}]
    for name in names:
        write_row(tmp_path / "parts" / f"{name}.parquet", {"run": name})
    merge_files(sorted((tmp_path / "parts").rglob("*.parquet")), tmp_path / "done.parquet", settings_of(read))
    write_row(tmp_path / "study" / "results" / f"{second.id}.parquet", {"run": second.id})
    ended = run("study", "run", plan, "--dry-run", "--done", tmp_path / "done.parquet").output.splitlines()
    left = {third.pretraining_id, last.pretraining_id} - set(names)
    assert ended == [third.id, last.id, f"2 runs after {len(left)} pre-trainings"]


def test_the_commands_to_run_next_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbones = SimpleNamespace(vision_tower=str(tmp_path), language_model=str(tmp_path))
    instruct = SimpleNamespace(image_root="my images")
    recipe = SimpleNamespace(output="my runs/mine", model=backbones, instruct=instruct)
    monkeypatch.setattr("aligngpt.training.recipe.load_recipe", lambda *_: recipe)
    for stage, commands in (("pretrain", ["train"]), ("instruct", ["ask", "evaluate", "report"])):
        result = SimpleNamespace(stage=stage, steps=3, loss=1.5, seconds=61.2)
        monkeypatch.setattr("aligngpt.training.run.train", lambda *_, result=result: [result])
        said = [line.partition(": ")[2] for line in run("train", "r.yaml").output.splitlines()]
        split = [shlex.split(line) for line in said if line.startswith("aligngpt ")]
        assert [words[1] for words in split] == commands
        assert all(words[2].startswith("my runs/mine") for words in split)
    (tmp_path / "a plan.yaml").touch()
    monkeypatch.setattr("aligngpt.study.plan.load_plan", lambda _: SimpleNamespace())
    monkeypatch.setattr("aligngpt.study.driving.run_study", lambda *_, **__: "results.parquet")
    last = run("study", "run", tmp_path / "a plan.yaml").output.splitlines()[-1]
    expected = ["aligngpt", "study", "report", str(tmp_path / "a plan.yaml")]
    assert shlex.split(last.removeprefix("next: ")) == expected


def _fractions() -> Iterator[Any]:
    """The settings of every option of every verb that is a number with a fraction, as cases to test."""
    groups = [("", app), *((f"{group.name} ", group.typer_instance) for group in app.registered_groups)]
    for group, verbs in groups:
        for verb in verbs.registered_commands:
            for name, kind in get_type_hints(verb.callback, include_extras=True).items():
                if get_origin(kind) is Annotated and float in (get_args(kind)[0], *get_args(get_args(kind)[0])):
                    yield pytest.param(get_args(kind)[1], id=f"{group}{verb.callback.__name__} {name}")


@pytest.mark.parametrize("option", list(_fractions()))
def test_no_option_takes_a_number_that_is_none(option: Any) -> None:
    """`nan` passes every bound, and each comparison with it is false."""
    assert option.callback is not None
    for number in (math.nan, math.inf):
        with pytest.raises(typer.BadParameter, match="must be a finite number"):
            option.callback(number)
    assert option.callback(0.5) == 0.5


def test_a_tilde_that_the_shell_has_left_is_no_folder_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AlignGPTError, match=f"write the whole path, {Path('~/levels.json').expanduser()}"):
        run("levels", tmp_path, "--out=~/levels.json")
    assert not list(tmp_path.iterdir())
