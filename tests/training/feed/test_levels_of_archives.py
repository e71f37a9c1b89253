"""Pre-training on tar files whose levels stand in a table beside them, from scoring to the trained levels."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from aligngpt.checking.for_training import check_for_recipe
from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.rejects import Rejects
from aligngpt.levels.making import make_levels
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.training.feed.datasets import prepare_data, training_samples
from aligngpt.training.feed.source_checks import source_problems
from aligngpt.training.recipe import STAGES, Recipe
from aligngpt.training.run import train
from aligngpt.training.stage import fingerprint_of


@pytest.fixture
def archive(data: Path) -> Path:
    """The captions in a tar file, without levels."""
    path = data / "pairs.tar"
    with tarfile.open(path, "w") as tar:
        for place, record in enumerate(json.loads((data / "captions.json").read_text())):
            picture = (data / record["image"]).read_bytes()
            for suffix, content in (("png", picture), ("txt", record["caption"].encode())):
                member = tarfile.TarInfo(f"{place:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def levels(archive: Path, clip_scorer: PairScorer, tmp_path: Path) -> Path:
    score_source(open_pairs(archive), clip_scorer, tmp_path / "scores", batch_size=4, workers=0)
    make_levels(tmp_path / "scores", out=tmp_path / "levels.parquet", num_levels=4)
    return tmp_path / "levels.parquet"


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Recipe], archive: Path, levels: Path) -> Recipe:
    model = {**tiny_recipe().model.model_dump(mode="json", exclude_defaults=True), "num_levels": 4}
    source = {"data": str(archive), "levels": str(levels)}
    return tiny_recipe(model=model, pretrain__data=[source], pretrain__max_steps=2, instruct=None)


def test_a_recipe_trains_on_levels_beside_its_archive(recipe: Recipe, archive: Path) -> None:
    assert source_problems(recipe, STAGES) == []
    samples = training_samples(recipe, "pretrain", Rejects(None))
    assert sorted(sample.level for sample in samples) == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    (check,) = check_for_recipe([archive], recipe, "pretrain")
    assert check.levels == {1: 3, 2: 3, 3: 3, 4: 3} and check.good
    (result,) = train(recipe)
    assert result.steps == 2


def test_other_levels_are_another_run(recipe: Recipe, levels: Path, tmp_path: Path) -> None:
    before = fingerprint_of(recipe, "pretrain", recipe.pretrain)
    make_levels(tmp_path / "scores", out=levels, num_levels=3)
    assert fingerprint_of(recipe, "pretrain", recipe.pretrain) != before


def test_an_archive_without_levels_is_told_how_to_get_them(tiny_recipe: Callable[..., Recipe], archive: Path) -> None:
    (problem,) = source_problems(tiny_recipe(pretrain__data=str(archive)), ["pretrain"])
    assert problem.endswith(
        "then `aligngpt levels SCORES --out levels.parquet`, and name that table in pretrain.data: "
        f"[{{data: {archive}, levels: levels.parquet}}]"
    )
    missing = [{"data": str(archive), "levels": str(archive.with_name("level.parquet"))}]
    (problem,) = source_problems(tiny_recipe(pretrain__data=missing), ["pretrain"])
    assert problem.startswith(f"pretrain.data: the levels {missing[0]['levels']} do not exist; ")


def test_data_that_are_prepared_are_not_read_again(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare_data(recipe, "pretrain") == 12
    assert "preparing pairs.tar" in capsys.readouterr().err
    train(recipe)
    assert "preparing" not in capsys.readouterr().err
