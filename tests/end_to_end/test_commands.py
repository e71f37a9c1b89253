"""The whole way by the commands a person types, on tiny random models that learn to name a colour."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from aligngpt import cli

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "yellow": (230, 220, 20)}
QUESTION = "what colour is the shape ?"

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run `aligngpt …` in this process, in a folder of its own, and give back what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["aligngpt", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture
def files(tmp_path: Path) -> None:
    """Pictures of one colour, captions that say which (one in five another), questions to train and to test on."""
    names = list(COLOURS)
    (tmp_path / "images").mkdir()
    captions, questions = [], []
    for place in range(60):
        name = names[place % 4]
        value = tuple(min(255, channel + place) for channel in COLOURS[name])
        Image.new("RGB", (40, 32 + place % 3), value).save(tmp_path / "images" / f"{place}.png")
        said = names[(place + 1) % 4] if place % 5 == 0 else name
        captions.append({"id": str(place), "image": f"{place}.png", "caption": f"a {said} shape"})
        questions.append({"id": str(place), "image": f"{place}.png", "question": QUESTION, "answer": name})
    for name, records in (("captions", captions), ("train", questions[:40]), ("test", questions[40:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(records))


def recipe(language: Path, tower: Path) -> dict[str, Any]:
    common = {"image_root": "images", "precision": "float32", "log_steps": 5, "batch_size": 8}
    return {
        "model": {
            "vision_tower": str(tower),
            "language_model": str(language),
            "num_levels": 4,
            "chat_template": "bare",
        },
        "pretrain": common
        | {"data": "levels.json", "train": ["projector", "level_table"], "chat_template": "plain"}
        | {"max_steps": 20, "learning_rate": 3e-3},
        "instruct": common
        | {
            "data": "train.json",
            "train": ["language_model", "projector", "gate"],
            "max_steps": 80,
            "learning_rate": 3e-3,
        },
        "output": "run",
    }


@pytest.mark.usefixtures("files")
def test_score_levels_train_evaluate_ask_report(
    command: Command, tmp_path: Path, scorer_folder: Callable, language_folder: Callable, tower_folder: Callable
) -> None:
    out = command(
        "score", "captions.json", "--image-root", "images", "--model", scorer_folder("clip"), "--out", "run/scores"
    )
    assert "60 pairs scored, 0 rejected" in out

    out = command("levels", "run/scores", "--source", "captions.json", "--levels", 4, "--out", "levels.json")
    assert [line.split(":")[0] for line in out.splitlines()[:4]] == [f"level {n}" for n in (1, 2, 3, 4)]
    assert {record["similarity"] for record in json.loads((tmp_path / "levels.json").read_text())} == {0, 1, 2, 3}

    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe(language_folder("qwen2"), tower_folder("clip"))))
    out = command("train", "mine.yaml", "--set", "instruct.max_steps=81")
    assert "pretrain: 20 steps" in out
    assert "instruct: 81 steps" in out
    assert "model: run/model" in out

    out = command("evaluate", "run/model", "test.json", "--image-root", "images", "--out", "run/evaluation/test")
    accuracy = json.loads((tmp_path / "run/evaluation/test/results.json").read_text())["overall"]["accuracy"]
    assert f"{accuracy:.1%}" in out
    options = ["--image-root", "images", "--shuffle-images", "--out", "run/evaluation/shuffled"]
    command("evaluate", "run/model", "test.json", *options)
    shuffled = json.loads((tmp_path / "run/evaluation/shuffled/results.json").read_text())["overall"]["accuracy"]
    # It sees: with the right picture it is nearly always right, with another one it is as good as a guess.
    assert accuracy >= 0.9
    assert shuffled <= 0.6

    assert command("ask", "run/model", "images/1.png", QUESTION, "--device", "cpu").strip() == "green"
    out = command("ask", "run/model", "images/1.png", QUESTION, "--show-alignment")
    assert "level 4 (the whole image) and a mix of" in out
    assert out.count("level ") == 4
    assert command("ask", "run/model", "images/1.png", QUESTION, "--level", 4).strip()

    report = command("report", "run").strip()
    page = (tmp_path / report).read_text()
    assert "Stage 2: instruction tuning" in page
    assert f"{100 * accuracy:.1f}%" in page


@pytest.mark.medium
@pytest.mark.usefixtures("files")
def test_every_command_twice_is_as_good_as_once(
    command: Command, tmp_path: Path, scorer_folder: Callable, language_folder: Callable, tower_folder: Callable
) -> None:
    content = recipe(language_folder("qwen2"), tower_folder("clip"))
    content["pretrain"]["max_steps"] = content["instruct"]["max_steps"] = 2
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    commands: list[list[object]] = [
        ["score", "captions.json", "--image-root", "images", "--model", scorer_folder("clip"), "--out", "scores"],
        ["levels", "scores", "--source", "captions.json", "--levels", 4, "--out", "levels.json"],
        ["train", "mine.yaml"],
        ["evaluate", "run/model", "test.json", "--image-root", "images", "--out", "evaluation"],
    ]
    printed = [[command(*arguments) for arguments in commands] for _ in range(2)]
    # The second time, `levels` says that it replaced the file.
    printed[1] = [text.replace(" (replaced)", "") for text in printed[1]]
    assert printed[0] == printed[1]
