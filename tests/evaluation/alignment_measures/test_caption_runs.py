"""`aligngpt evaluate --benchmarks winoground,sugarcrepe,…`: figures, resuming, wrong combinations."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from aligngpt.cli import app
from aligngpt.evaluation.alignment_measures.likelihoods import Level, MeasureError
from aligngpt.evaluation.alignment_measures.running import captions_table, measure_captions
from aligngpt.evaluation.results import EvaluationError, summarise
from aligngpt.evaluation.results_folder import save_results
from aligngpt.inference.requests import Likelihood, Request

COUNT = 6


def winoground(root: Path) -> Path:
    """Sets of a dark and a bright picture, `dark n` and `bright n`."""
    rows = []
    for n in range(COUNT):
        for side, shade in ((0, 10), (1, 200)):
            (root / "winoground/images").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (shade, 0, 0)).save(root / f"winoground/images/{n}_{side}.png")
        names = {"image_0": f"{n}_0", "image_1": f"{n}_1", "caption_0": f"dark {n}", "caption_1": f"bright {n}"}
        rows.append({"id": n, "collapsed_tag": ["Object", "Relation"][n % 2], **names})
    (root / "winoground/examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


class Seeing:
    """Finds the right caption more likely by its level, and equally likely at level 1; stops after `limit` calls."""

    def __init__(self, limit: int = 1000) -> None:
        self.calls, self.limit = 0, limit

    def likelihood(
        self, request: Request, answers: Sequence[str], *, levels: Sequence[Level] | None = None
    ) -> list[list[Likelihood]]:
        if self.calls >= self.limit:
            raise KeyboardInterrupt
        self.calls += 1
        shown = "bright" if request.images[0].getpixel((0, 0))[0] > 100 else "dark"
        strength = [3 if level is None else level - 1 for level in levels or ()]
        return [[Likelihood(-9.0 + one * text.startswith(shown), 2, True) for text in answers] for one in strength]


def test_the_figures_are_those_of_the_likelihoods(tmp_path: Path) -> None:
    (result,) = measure_captions(Seeing(), ["winoground"], winoground(tmp_path), tmp_path / "o", model="m", levels=3)
    assert list(result["choices"]) == ["gate", "1", "2", "3"]
    assert [one["group"]["value"] for one in result["choices"].values()] == [1, 0, 1, 1], "ties are wrong"
    assert result["level_detector"]["value"] == 1 and result["sets"] == COUNT
    assert [(one["right"], one["wrong"]) for one in result["dose_response"]] == [(-9, -9), (-8, -9), (-7, -9)]
    assert {kind: one["sets"] for kind, one in result["kinds"].items()} == {"Object": 3, "Relation": 3}
    assert json.loads((tmp_path / "o/results.json").read_text()) == [result]
    assert "| winoground | gate | 6 | 100.0% (" in (tmp_path / "o/table.md").read_text()
    assert captions_table([result]).splitlines()[2].split()[:4] == ["winoground", "1", "6", "0.0%"]


def test_results_of_the_evaluation_of_a_file_are_left_alone(tmp_path: Path) -> None:
    path, engine = tmp_path / "o/results.json", Seeing()
    summarise([]).save(path)
    before = path.read_bytes()
    with pytest.raises(EvaluationError, match="is of the evaluation of a file of questions; choose another folder"):
        measure_captions(engine, ["winoground"], winoground(tmp_path), tmp_path / "o", model="m", levels=2)
    assert path.read_bytes() == before and not engine.calls


@pytest.mark.parametrize("name", ["gqa", "pope-levels"])
def test_results_of_other_benchmarks_are_left_alone(name: str, tmp_path: Path) -> None:
    path, engine = tmp_path / "o/results.json", Seeing()
    save_results(path, [{"name": name, "model": "m"}])
    with pytest.raises(EvaluationError, match=f"has results of {name}; choose another folder"):
        measure_captions(engine, ["winoground"], winoground(tmp_path), tmp_path / "o", model="m", levels=2)
    assert json.loads(path.read_text()) == [{"name": name, "model": "m"}] and not engine.calls


def test_a_stopped_run_rates_only_the_rest(tmp_path: Path) -> None:
    root, out = winoground(tmp_path), tmp_path / "o"
    with pytest.raises(KeyboardInterrupt):
        measure_captions(Seeing(5), ["winoground"], root, out, model="m", levels=2)
    with (out / "winoground/likelihoods.jsonl").open("a") as file:
        file.write('{"set": 5, "log_prob')
    engine = Seeing()
    (result,) = measure_captions(engine, ["winoground"], root, out, model="m", levels=2)
    assert engine.calls == 2 * COUNT - 4 and result["choices"]["gate"]["text"]["value"] == 1
    (whole,) = measure_captions(Seeing(), ["winoground"], root, tmp_path / "p", model="m", levels=2)
    assert whole == result
    with pytest.raises(MeasureError, match="other model, or an earlier version of aligngpt wrote it; choose another"):
        measure_captions(engine, ["winoground"], root, out, model="other", levels=2)
    with pytest.raises(MeasureError, match="likelihoods with other captions; choose"):
        measure_captions(engine, ["winoground"], root, out, model="m", levels=2, limit=3)


def test_results_of_the_same_model_on_other_captions_stay(tmp_path: Path) -> None:
    root, out, digits = winoground(tmp_path), tmp_path / "o", "(0123456789abcdef, float32)"
    measure_captions(Seeing(), ["winoground"], root, out, model=f"runs/m {digits}", levels=2)
    saved = json.loads((out / "results.json").read_text())
    saved[0]["name"] = "whatsup"
    (out / "results.json").write_text(json.dumps(saved))
    # Named by another path, it is the same model.
    measure_captions(Seeing(0), ["winoground"], root, out, model=f"./runs/m {digits}", levels=2)
    assert [one["name"] for one in json.loads((out / "results.json").read_text())] == ["whatsup", "winoground"]
    assert "| whatsup |" in (out / "table.md").read_text()


def test_a_model_without_levels_has_no_detector(tmp_path: Path) -> None:
    (result,) = measure_captions(Seeing(), ["winoground"], winoground(tmp_path), tmp_path / "o", model="m", levels=0)
    assert list(result["choices"]) == ["gate"] and result["level_detector"] is None and not result["dose_response"]


def test_the_command_rates_captions_with_a_model(model_folder: Path, tmp_path: Path) -> None:
    options = ["--benchmarks", "winoground", "--data", str(winoground(tmp_path)), "--out", str(tmp_path / "o")]
    ended = CliRunner().invoke(app, ["evaluate", str(model_folder), *options, "--limit", "2", "--device", "cpu"])
    assert ended.exit_code == 0, ended.output
    (result,) = json.loads((tmp_path / "o/results.json").read_text())
    assert result["sets"] == 2 and result["level_detector"] is not None and f"results: {tmp_path}" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["winoground,pope"], "are rated, not asked; run pope by itself"),
        (["whatsup", "--rules", "lmms"], "--rules is not for whatsup"),
    ],
)
def test_wrong_combinations_are_sentences(
    arguments: list[str], expected: str, model_folder: Path, tmp_path: Path
) -> None:
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "o"), "--benchmarks", *arguments]
    ended = CliRunner().invoke(app, ["evaluate", str(model_folder), *options])
    assert ended.exit_code == 2 and expected in " ".join(ended.output.replace("│", " ").split())
