"""The commands read addresses: score (stopped and resumed), levels, check, train and evaluate from an S3 server."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from object_store import Store
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from aligngpt.cli import app
from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.remote_store import RemoteError
from aligngpt.evaluation.accuracy import evaluate_file
from aligngpt.evaluation.results import read_predictions
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.scoring.score_files import ScoresError
from aligngpt.training.run import train

COUNT = 8


def tar_of(records: list[dict[str, Any]], folder: Path) -> bytes:
    """The images and texts of records as a tar file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, record in enumerate(records):
            text = {name: value for name, value in record.items() if name not in ("image", "id")}
            content = {"png": (folder / record["image"]).read_bytes(), "json": json.dumps(text).encode()}
            for suffix, part in content.items():
                member = tarfile.TarInfo(f"{number:03}.{suffix}")
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))
    return file.getvalue()


def run(verb: str, *arguments: object) -> Result:
    ended = CliRunner().invoke(app, [verb, *map(str, arguments)])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


@pytest.fixture
def pairs(store: Store, write_pairs: Callable[..., Path]) -> tuple[list[dict[str, Any]], Path]:
    """Records whose images and JSON lines are in the store, in two tar files too; and their folder on disk."""
    source = write_pairs(COUNT)
    records = [json.loads(line) for line in source.read_text().splitlines()]
    for record in records:
        store.put(f"images/{record['image']}", (source.parent / record["image"]).read_bytes())
    store.put("pairs.jsonl", source.read_bytes())
    for number in range(2):
        store.put(f"t/{number:05}.tar", tar_of(records[number::2], source.parent))
    return records, source


def scores_in(out: Path) -> list[float]:
    tables = [pq.read_table(part) for part in sorted(out.rglob("*.parquet"))]
    return [score for table in tables if "score" in table.column_names for score in table.column("score").to_pylist()]


@pytest.mark.parametrize("address", ["s3://pairs/t", "s3://pairs/pairs.jsonl"])
def test_scoring_is_stopped_and_resumed(
    address: str, store: Store, pairs: Any, clip_scorer: PairScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path("s3://pairs/images") if address.endswith("jsonl") else None

    def score(out: str, wanted: str = address) -> Any:
        source = open_pairs(wanted, image_root=root, shard_size=2)
        return score_source(source, clip_scorer, tmp_path / out, batch_size=2, workers=0)

    whole = score("whole")
    assert whole.scored == COUNT and whole.rejected == 0
    # The store is gone when the last shard is read.
    reads: list[str] = []
    source = open_pairs(address, image_root=root, shard_size=2)
    shards = source.shards()
    read = type(source).read

    def stopping(self: Any, shard: Any) -> Any:
        reads.append(shard.name)
        if shard.index == len(shards) - 1:
            raise RemoteError("no connection")
        return read(self, shard)

    with monkeypatch.context() as patch, pytest.raises(RemoteError):
        patch.setattr(type(source), "read", stopping)
        score("stopped")
    reads.clear()
    with monkeypatch.context() as patch:
        patch.setattr(type(source), "read", lambda self, shard: (reads.append(shard.name), read(self, shard))[1])
        assert score("stopped").scored == COUNT
    if root is None:
        assert len(set(reads)) < len(shards), "finished shards are not read again"
    assert len(scores_in(tmp_path / "whole")) == COUNT
    assert scores_in(tmp_path / "stopped") == scores_in(tmp_path / "whole")


def test_scores_are_those_of_the_files_on_disk(pairs: Any, clip_scorer: PairScorer, tmp_path: Path) -> None:
    root = Path("s3://pairs/images")
    for out, source, images in (("disk", pairs[1], None), ("store", "s3://pairs/pairs.jsonl", root)):
        opened = open_pairs(source, image_root=images, shard_size=4)
        assert score_source(opened, clip_scorer, tmp_path / out, batch_size=2, workers=0).rejected == 0
    assert scores_in(tmp_path / "disk") == scores_in(tmp_path / "store")


def test_levels_and_check_read_addresses(
    pairs: Any, scorer_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", scorer_folder("clip"), "--device", "cpu", "--precision", "float32"]
    source = ["s3://pairs/pairs.jsonl", "--image-root", "s3://pairs/images"]
    scored = run("score", *source, "--out", "scores", *options)
    assert f"{COUNT} pairs scored, 0 rejected" in scored.stdout
    assert "--out pairs-levels.jsonl" in scored.stdout, "an address is not written to"
    run("levels", "scores", "--source", source[0], "--out", "out.jsonl", "--levels", "2")
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["id"] for record in made] == [f"pair-{number}" for number in range(COUNT)]
    assert run("check", *source).exit_code == 0
    assert run("check", "s3://pairs/t").exit_code == 0
    with pytest.raises(SourceError, match="image root s3://pairs/none is not a folder"):
        run("check", "out.jsonl", "--image-root", "s3://pairs/none")
    assert not (tmp_path / "s3:").exists()


def test_a_changed_object_is_not_resumed(pairs: Any, store: Store, clip_scorer: PairScorer, tmp_path: Path) -> None:
    records, source = pairs
    score_source(open_pairs("s3://pairs/t"), clip_scorer, tmp_path / "out", batch_size=2, workers=0)
    store.put("t/00001.tar", tar_of(records[1::2][::-1], source.parent))
    with pytest.raises(ScoresError, match="scores of another source"):
        score_source(open_pairs("s3://pairs/t"), clip_scorer, tmp_path / "out", batch_size=2, workers=0)


@pytest.mark.medium
def test_training_and_evaluating_from_tar_files(
    store: Store, tiny_recipe: Callable[..., Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    records = json.loads((data / "questions.json").read_text())[:-1]
    for number in range(2):
        content = tar_of(records[number * 12 : number * 12 + 12], data)
        store.put(f"q/{number}.tar", content)
        (data / f"{number}.tar").write_bytes(content)
    weights = []
    for name, address in (("disk", str(data / "{0..1}.tar")), ("store", "s3://pairs/q/{0..1}.tar")):
        recipe = tiny_recipe(output=str(tmp_path / name), pretrain=None, instruct__data=address, instruct__max_steps=2)
        train(recipe)
        weights.append(load_file(tmp_path / name / "model" / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
    evaluate_file(
        tmp_path / "store" / "model", Path("s3://pairs/q"), out=tmp_path / "evaluation", device="cpu", batch_size=8
    )
    assert len(read_predictions(tmp_path / "evaluation" / "predictions.jsonl")) == len(records)
