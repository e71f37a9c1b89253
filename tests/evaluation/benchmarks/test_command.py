"""`aligngpt evaluate --benchmarks`: a real engine on a small layout, answers without a model, wrong combinations."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_layouts as layouts
import pytest
import torch
from typer.testing import CliRunner

from aligngpt.cli import app
from aligngpt.evaluation.benchmarks.identity import PLAIN, UNTRAINED, identity_of, remarks_on, without_name
from aligngpt.inference.engine import Engine


def answers_file(root: Path, texts: list[str]) -> Path:
    """POPE's answers in LLaVA's format."""
    questions = [json.loads(line) for line in (root / "pope/llava_pope_test.jsonl").read_text().splitlines()]
    rows = [
        {"question_id": question["question_id"], "prompt": question["text"], "text": text}
        for question, text in zip(questions, texts, strict=True)
    ]
    layouts.lines(root / "answers.jsonl", rows)
    return root / "answers.jsonl"


def command(*arguments: object) -> tuple[int, str, BaseException | None]:
    ended = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    return ended.exit_code, " ".join(ended.output.replace("│", " ").split()), ended.exception


@pytest.fixture(scope="module")
def plain_folder(assembled: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "plain"
    for part in assembled(alignment="none"):
        part.save_pretrained(folder)
    return folder


@pytest.mark.medium
def test_a_model_is_asked_and_known_by_its_weights(plain_folder: Path, tmp_path: Path) -> None:
    layouts.pope(tmp_path)
    options = ["--benchmarks", "pope", "--data", tmp_path, "--out", tmp_path / "out", "--device", "cpu"]
    code, said, _ = command(plain_folder, *options, "--precision", "float32", "--limit", "1")
    assert code == 0 and "evaluated as a plain LLaVA" in said and "POPE, published rules" in said
    (result,) = json.loads((tmp_path / "out/results.json").read_text())
    assert result["model"].endswith(", float32)") and result["questions"] == 6 and not result["as_published"]
    assert "| POPE, published rules |" in (tmp_path / "out/table.md").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_figures_with_levels_that_nothing_has_trained_have_a_remark(assembled: Callable, dtype: torch.dtype) -> None:
    model, processor = assembled()
    levels = model.model.alignment.levels
    with Engine(model.to(dtype), processor) as engine:
        assert remarks_on(engine) == [UNTRAINED]
        with torch.no_grad():
            levels.add_(0.05 * levels.sign() * levels.abs().max())
        assert remarks_on(engine) == []
        with torch.no_grad():
            levels.mul_(0.5)
        assert remarks_on(engine) == []
    with Engine(*assembled(alignment="none")) as plain:
        assert remarks_on(plain) == [PLAIN]


def test_other_weights_have_another_identity(assembled: Callable) -> None:
    with Engine(*assembled()) as first, Engine(*assembled()) as same, Engine(*assembled()) as other:
        other.model.get_input_embeddings().weight.data[3, 3] += 1
        assert identity_of(first, "m") == identity_of(same, "m") != identity_of(other, "m")


def test_other_settings_have_another_identity_and_a_copy_has_the_same(assembled: Callable, tmp_path: Path) -> None:
    for part in assembled():
        part.save_pretrained(tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "copy")

    def identity(folder: str = "copy", **changes: dict[str, Any]) -> str:
        with Engine.load(tmp_path / folder, device="cpu", dtype="float32") as engine:
            for name, value in changes.get("pictures", {}).items():
                setattr(engine.processor.image_processor, name, value)
            for name, value in changes.get("generation", {}).items():
                setattr(engine.model.generation_config, name, value)
            if "words" in changes:
                engine.processor.tokenizer.add_tokens(list(changes["words"]))
            # Padding is set by each call and no setting of the model.
            engine.processor.tokenizer(["a", "a red circle"], padding=True)
            return identity_of(engine, "m")

    first = identity("m")
    assert first == identity() and without_name(first) == without_name(first.replace("m (", "./runs/m (", 1))
    for changes in (
        {"pictures": {"image_mean": [0.9, 0.9, 0.9]}},
        {"pictures": {"do_pad": False}},
        {"generation": {"eos_token_id": 7}},
        {"generation": {"suppress_tokens": [1]}},
        {"words": {"<box>": 1}},
    ):
        assert identity(**changes) != first
    assert without_name("any name (of mine)") == "any name (of mine)"


def test_answers_are_scored_without_a_model(tmp_path: Path) -> None:
    path = answers_file(tmp_path, layouts.pope(tmp_path))
    options = ["--answers", path, "--benchmarks", "pope", "--data", tmp_path]
    code, said, _ = command(*options, "--out", tmp_path / "out", "--rules", "lmms")
    assert code == 0 and "POPE, lmms rules 100.0%" in said


def test_pope_answers_are_scored_by_repope_labels(tmp_path: Path) -> None:
    layouts.repope(tmp_path)
    right_by_pope = layouts.pope(tmp_path)
    path = answers_file(tmp_path, right_by_pope)
    code, said, _ = command("--answers", path, "--benchmarks", "repope", "--data", tmp_path, "--out", tmp_path / "o")
    # By category: one right yes and two missed.
    assert code == 0 and "RePOPE, published rules 50.0%" in said
    assert "3 questions have no label in RePOPE and are left out" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["m", "--benchmarks", "pope"], "needs --data"),
        (["--benchmarks", "pope", "--data", "."], "either MODEL"),
        (["m", "--answers", "a", "--benchmarks", "pope", "--data", "."], "either MODEL"),
        (["m", "q.json", "--benchmarks", "pope", "--data", "."], "QUESTIONS is not for --benchmarks"),
        (["--answers", "a", "--benchmarks", "pope,mme", "--data", "."], "answers to one benchmark"),
        (["--answers", "a", "--benchmarks", "pope", "--data", ".", "--limit", "3"], "--limit is about asking"),
        (["m", "q.json", "--rules", "lmms"], "--rules is only for --benchmarks"),
        (["m"], "Missing argument 'QUESTIONS'"),
    ],
)
def test_wrong_combinations_are_sentences(arguments: list[str], expected: str, tmp_path: Path) -> None:
    code, said, _ = command(*arguments, "--out", tmp_path / "o")
    assert code == 2 and expected in said
