"""Derived scores as columns of a finished folder: their values, resuming, other settings, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from aligngpt.cli import app
from aligngpt.locks import FolderInUse
from aligngpt.scoring.derived import adding
from aligngpt.scoring.derived.adding import Added, Settings, add_scores
from aligngpt.scoring.derived.measures import Batch, batch_numbers, negcliploss
from aligngpt.scoring.manifest import read_manifest
from aligngpt.scoring.score_files import (
    PartSummary,
    ScoresError,
    part_path,
    part_table,
    read_batches,
    read_part_outcome,
    read_whole_part,
    write_part,
)

SIZES, DIM = (4, 0, 5), 6
PAIRS = sum(SIZES)
ALL = ("negcliploss", "specificity", "duplicates")
NAMES = ("negcliploss", "specificity", "duplicate_group")


@pytest.fixture
def scored(write_scores: Callable[..., Path], tmp_path: Path) -> Path:
    """A finished folder of 9 pairs with embeddings; pair 6 has the image of pair 1, and pair 8 nearly that of 0."""
    (tmp_path / "source").write_text("")
    out = write_scores(tmp_path / "source", dict.fromkeys(range(PAIRS), 0.5), PAIRS, "scored")
    images, captions = (np.random.default_rng(seed).normal(size=(PAIRS, DIM)).astype(np.float32) for seed in (1, 2))
    images[6], images[8] = images[1], images[0] + 0.01
    images, captions = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (images, captions))
    hashes = [f"{1 if pair == 6 else pair:032x}" for pair in range(PAIRS)]
    start = 0
    for shard, size in enumerate(SIZES):
        some = slice(start, start + size)
        rows = part_table(
            record=range(size),
            id=[f"id-{pair}" for pair in range(start, start + size)],
            score=np.einsum("pd,pd->p", images[some], captions[some]),
            caption_tokens=[3] * size,
            size=[(4, 4)] * size,
            image_hash=hashes[some],
            embeddings=(images[some], captions[some]),
        )
        write_part(out, shard, rows, [], b"mark")
        start += size
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"embeddings": True, "shards": len(SIZES)}))
    return out


def read(out: Path, *names: str) -> dict[str, np.ndarray]:
    table = pa.Table.from_batches(read_batches(out, len(SIZES), names))
    return {name: table[name].to_numpy() for name in names}


def features(out: Path) -> list[torch.Tensor]:
    table = pa.Table.from_batches(read_batches(out, len(SIZES), ("image_embedding", "text_embedding")))
    columns = (np.array(table[name].to_pylist(), dtype=np.float32) for name in ("image_embedding", "text_embedding"))
    return [F.normalize(torch.from_numpy(column), dim=1) for column in columns]


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_the_columns_are_those_of_a_direct_computation_and_the_rest_is_kept(scored: Path) -> None:
    before = read_part_outcome(scored, 0)
    kept = [pa.Table.from_batches(read_batches(scored, len(SIZES))).to_pydict()]
    assert add_scores(scored, ALL, Settings(temperature=0.1)) == Added(PAIRS, parts=3, duplicates=2)
    found = read(scored, *NAMES)
    v, t = features(scored)
    similarities = v @ t.T
    losses = [
        F.cross_entropy(one / 0.1, torch.arange(PAIRS), reduction="none") for one in (similarities, similarities.T)
    ]
    np.testing.assert_allclose(found["negcliploss"], -0.1 * (losses[0] + losses[1]) / 2, atol=2e-4)
    own = similarities.diagonal()
    np.testing.assert_allclose(found["specificity"], own - (similarities.sum(0) - own) / (PAIRS - 1), atol=1e-5)
    assert found["duplicate_group"].tolist() == [0, 1, 2, 3, 4, 5, 1, 7, 0]
    assert before == read_part_outcome(scored, 0)
    assert before is not None and before.marks == b"mark" and before.summary == PartSummary(4, {})
    after = pa.Table.from_batches(read_batches(scored, len(SIZES))).drop_columns(list(NAMES)).to_pydict()
    assert [after] == kept


def test_random_batches_cross_the_parts(scored: Path) -> None:
    settings = Settings(batch_size=4, batches=3, temperature=0.1, seed=1)
    add_scores(scored, ["negcliploss"], settings)
    v, t = features(scored)
    numbers = batch_numbers(PAIRS, 4, 3, 1)
    batches = [Batch(one, v[one], t[one]) for one in numbers]
    expected = negcliploss(v, t, np.arange(PAIRS), batches, 0.1)
    np.testing.assert_allclose(read(scored, "negcliploss")["negcliploss"], expected, atol=5e-4)


def test_an_interrupted_call_goes_on_to_the_same_bytes(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = content(scored)
    add_scores(scored, ALL)
    whole = content(scored)
    for name, data in begun.items():
        (scored / name).write_bytes(data)
    write = adding._Work.write

    def stopping(self: Any, shard: int, wanted: Any) -> None:
        if shard == 1:
            raise KeyboardInterrupt
        write(self, shard, wanted)

    monkeypatch.setattr(adding._Work, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        add_scores(scored, ALL)
    # A reader does not take the folder for complete.
    with pytest.raises(ScoresError, match="has no column negcliploss"):
        read(scored, "negcliploss")
    monkeypatch.setattr(adding._Work, "write", write)
    first = part_path(scored, 0).stat().st_ino
    assert add_scores(scored, ALL).parts == 2
    assert part_path(scored, 0).stat().st_ino == first
    assert content(scored) == whole
    assert add_scores(scored, ALL) == Added(PAIRS, 0)


def test_other_settings_never_mix_with_earlier_ones(
    scored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_scores(scored, ["negcliploss", "specificity"])
    before = read(scored, "negcliploss", "specificity")
    monkeypatch.setattr(adding, "gather", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        add_scores(scored, ["negcliploss"], Settings(temperature=0.2))
    assert "negcliploss is computed again in all parts (temperature 0.01, now 0.2)" in capsys.readouterr().err
    with pytest.raises(ScoresError, match="has no column negcliploss"):
        read(scored, "negcliploss")
    monkeypatch.undo()
    assert add_scores(scored, ["negcliploss"], Settings(temperature=0.2)).parts == 3
    after = read(scored, "negcliploss", "specificity")
    assert not np.allclose(after["negcliploss"], before["negcliploss"])
    assert np.array_equal(after["specificity"], before["specificity"])


def test_a_part_that_was_scored_again_makes_all_of_them_anew(scored: Path) -> None:
    add_scores(scored, ["specificity"])
    part = read_whole_part(scored, 0).drop_columns(["specificity"])
    column = pa.array(part["score"].to_numpy() + np.float32(0.125))
    write_part(scored, 0, part.set_column(2, part.schema.field("score"), column), [])
    assert add_scores(scored, ["specificity"]).parts == 3


def test_what_cannot_be_computed_is_said(
    scored: Path, write_scores: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write_scores(tmp_path / "source", {0: 0.5, 1: 0.25}, 2, "plain")
    with pytest.raises(ScoresError, match=r"plain has no embeddings.*aligngpt score --embeddings"):
        add_scores(plain, ALL)
    with pytest.raises(ScoresError, match="expected one or more of negcliploss, specificity, duplicates, found clip"):
        add_scores(scored, ["clip", "duplicates"])
    with pytest.raises(ScoresError, match="found nothing"):
        add_scores(scored, [])
    for wrong in (
        Settings(temperature=0),
        Settings(temperature=float("nan")),
        Settings(temperature=float("inf")),
        Settings(temperature=1e-42),
        Settings(batch_size=1),
        Settings(cosine=2),
    ):
        with pytest.raises(ScoresError, match=r"negCLIPLoss|near-duplicates"):
            add_scores(scored, ALL, wrong)
    monkeypatch.setattr(adding, "MOST_IMAGES", 5)
    with pytest.raises(ScoresError, match="up to 5 different images, and there are more"):
        add_scores(scored, ["duplicates"])


def test_a_folder_that_another_process_writes_into_is_left_alone(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(folder: Path, share: object) -> None:
        raise FolderInUse(f"{folder} is being written into")

    monkeypatch.setattr(adding, "owned_share", held)
    before = content(scored)
    with pytest.raises(FolderInUse):
        add_scores(scored, ALL)
    assert content(scored) == before


def test_the_command_says_what_was_added(scored: Path) -> None:
    arguments = ["derive", str(scored), "--add", "negcliploss, duplicates", "--device", "cpu"]
    lines = [CliRunner().invoke(app, arguments).stdout.splitlines() for _ in range(2)]
    assert lines[0] == [
        f"negcliploss, duplicate_group of 9 pairs written into 3 parts: {scored}",
        "2 pairs have an image that is a near-duplicate of an earlier pair's",
    ]
    assert lines[1] == [f"negcliploss, duplicate_group of 9 pairs in all parts already: {scored}"]
    assert read_manifest(scored).finished is not None


def test_scoring_again_keeps_the_columns_and_levels_are_made_of_them(
    write_pairs: Callable[..., Path], scorer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    source, out = str(write_pairs(7)), str(tmp_path / "out")
    options = ["--device", "cpu", "--precision", "float32", "--shard-size", "3", "--embeddings"]
    scoring = ["score", source, "--model", str(scorer_folder("clip")), "--out", out, *options]
    levelling = ["levels", out, "--score-column", "specificity", "--levels", "2", "--source", source]
    commands = (scoring, ["derive", out, "--add", "specificity"], scoring)
    for command in commands:
        assert CliRunner().invoke(app, command).exit_code == 0
    assert add_scores(tmp_path / "out", ["specificity"]).parts == 0
    ended = CliRunner().invoke(app, [*levelling, "--out", str(tmp_path / "levels.jsonl")])
    assert ended.exit_code == 0, ended.output
    written = [json.loads(line)["score"] for line in (tmp_path / "levels.jsonl").read_text().splitlines()]
    assert written == pytest.approx(read(tmp_path / "out", "specificity")["specificity"].tolist())
