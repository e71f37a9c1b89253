"""`aligngpt score` and `levels` on small files: what they print at the end, and options that would have no effect."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from aligngpt.cli import app
from aligngpt.errors import AlignGPTError
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.manifest import read_manifest

COUNT = 6


@pytest.fixture
def command(scorer_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run a verb in an empty folder; `score` uses a tiny model."""
    monkeypatch.chdir(tmp_path)
    model = str(scorer_folder("clip"))

    def run(verb: str, *arguments: object) -> Result:
        options = ["--model", model, "--device", "cpu", "--precision", "float32"] if verb == "score" else []
        ended = CliRunner().invoke(app, [verb, *map(str, arguments), *options])
        if ended.exception is not None and not isinstance(ended.exception, SystemExit):
            raise ended.exception
        return ended

    return run


@pytest.fixture
def pairs(write_pairs: Callable[..., Path]) -> str:
    return write_pairs(COUNT, "my pairs.jsonl").name


def test_score_ends_with_its_auc_and_the_next_command_which_runs(command: Callable, pairs: str, tmp_path: Path) -> None:
    lines = command("score", pairs, "--out", "scores").stdout.splitlines()
    auc = read_manifest(tmp_path / "scores").auc
    assert auc is not None
    assert lines == [
        "6 pairs scored, 0 rejected: scores",
        f"the scores tell your pairs from shuffled ones in {auc:.1%} of the cases (AUC; 50% is guessing)",
        "next: aligngpt levels scores --source 'my pairs.jsonl' --out 'my pairs-levels.jsonl'",
    ]
    options = ["scores", "--source", pairs, "--out", "my pairs-levels.jsonl", "--levels", "2"]
    first, second = (command("levels", *options).stdout.splitlines() for _ in range(2))
    assert lines[1] in first
    assert "data: my pairs-levels.jsonl" in first and "data: my pairs-levels.jsonl (replaced)" in second
    assert first[-1].startswith("next: name my pairs-levels.jsonl in pretrain.data")


def test_a_limit_scores_the_first_records(command: Callable, pairs: str, tmp_path: Path) -> None:
    ended = command("score", pairs, "--out", "try", "--limit", "4")
    assert ended.stdout.startswith("4 pairs scored, 0 rejected: try\n")
    assert read_manifest(tmp_path / "try").limit == 4
    command("levels", "try", "--source", pairs, "--out", "levels.json", "--levels", "2")
    assert [record["id"] for record in json.loads((tmp_path / "levels.json").read_text())] == [
        f"pair-{index}" for index in range(4)
    ]
    assert command("score", pairs, "--out", "none", "--limit", "0").exit_code == 2


@pytest.mark.parametrize("option", [["--image-root", "."], ["--image-column", "jpg"], ["--shard-size", "9"]])
def test_options_that_do_nothing_for_tar_files_are_refused(
    option: list[str], command: Callable, write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    content = (write_pairs(1).parent / "0.png").read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("0.png", content), ("0.txt", b"a red circle")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(AlignGPTError, match=rf"a\.tar consists of tar files.*; omit {option[0]}$"):
        command("score", "a.tar", "--out", "scores", *option)
    ended = command("score", "a.tar", "--out", "scores")
    # One pair has no other one to be told from.
    assert ended.stdout.splitlines() == [
        "1 pairs scored, 0 rejected: scores",
        "next: aligngpt levels scores --out scores-levels.parquet",
    ]


@pytest.mark.parametrize("options", [[], ["--shard", "1/2"], ["--engine", "ray"]])
def test_auto_precision_is_that_of_the_folder_for_every_way_to_score(
    options: list[str], command: Callable, pairs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("score", pairs, "--out", "scores", "--shard-size", "2", "--shard", "0/2")
    loaded: list[str] = []

    def load(*_: object, dtype: str, **__: object) -> None:
        loaded.append(dtype)
        raise AlignGPTError("loaded")

    monkeypatch.setattr(PairScorer, "load", load)
    monkeypatch.setattr("aligngpt.scoring.ray.engine.score_on_ray", lambda pairs, load_scorer, *_, **__: load_scorer())
    arguments = ["score", pairs, "--out", "scores", "--shard-size", "2", "--model", ".", *options]
    ended = CliRunner().invoke(app, [*arguments, "--precision", "auto"])
    assert str(ended.exception) == "loaded"
    assert loaded == ["float32"]
