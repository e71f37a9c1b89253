"""Training directly from archives: the same results as from files, also when resumed in the middle of an epoch."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from typer.testing import CliRunner

from aligngpt.cli import app
from aligngpt.data.rejects import Rejects
from aligngpt.data.sources import stored_images
from aligngpt.training import stage_run as module
from aligngpt.training.dry_run import plan
from aligngpt.training.feed import windowed_shuffle as block_order
from aligngpt.training.feed.datasets import training_samples, validation_of
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train
from aligngpt.training.stage import fingerprint_of, model_folder


@pytest.fixture
def archives(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The questions about images, in Parquet files with row groups of three and in tar files."""
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    records = json.loads((data / "questions.json").read_text())[:-1]
    (data / "asked.json").write_text(json.dumps(records))
    folder = data / "archives"
    folder.mkdir()
    for number, half in enumerate((records[:12], records[12:])):
        rows = [record | {"image": (data / record["image"]).read_bytes()} for record in half]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{number}.parquet", row_group_size=3)
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for place, row in enumerate(rows):
                said = json.dumps({name: row[name] for name in ("question", "answer")}).encode()
                for suffix, content in (("png", row["image"]), ("json", said)):
                    member = tarfile.TarInfo(f"{number}{place:03}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return {
        "json": str(data / "asked.json"),
        "parquet": str(folder / "*.parquet"),
        "tar": str(folder / "{0..1}.tar"),
    }


@pytest.fixture
def recipe(tiny_recipe: Callable, tmp_path: Path) -> Callable[..., Recipe]:
    """Two epochs of six steps, instruction tuning only."""

    def make(name: str, data: Any, **settings: Any) -> Recipe:
        settings = {"max_steps": None, "epochs": 2.0, "micro_batch_size": 2, "data": data} | settings
        changes = {f"instruct__{setting}": value for setting, value in settings.items()}
        return tiny_recipe(pretrain=None, output=str(tmp_path / name), **changes)

    return make


class Stop(TrainerCallback):
    """Simulates a kill at the eighth step, with a checkpoint at the seventh, in the middle of the second epoch."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save |= state.global_step == 7
        if state.global_step == 8:
            raise KeyboardInterrupt


def stopped(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    make = module.StageTrainer

    def make_stopping(*args: Any, **kwargs: Any) -> Any:
        trainer = make(*args, **kwargs)
        trainer.add_callback(Stop())
        return trainer

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "StageTrainer", make_stopping)
        train(recipe)


def losses_of(recipe: Recipe) -> list[float]:
    lines = (Path(recipe.output) / "instruct" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def equal_weights(one: Recipe, other: Recipe) -> bool:
    first, second = (load_file(model_folder(recipe) / "model.safetensors") for recipe in (one, other))
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("parquet", 0),
        pytest.param("parquet", 2, marks=pytest.mark.medium),
        pytest.param("tar", 0, marks=pytest.mark.medium),
        pytest.param("tar", 2, marks=pytest.mark.medium),
    ],
)
def test_a_stopped_run_ends_as_one_that_was_not(
    recipe: Callable, archives: dict[str, str], monkeypatch: pytest.MonkeyPatch, kind: str, workers: int
) -> None:
    # Two windows, and memory for only some of the row groups.
    monkeypatch.setattr(block_order, "WINDOW_BLOCKS", 4)
    monkeypatch.setattr(stored_images, "KEPT_BYTES", 60_000)
    whole, broken = (recipe(name, archives[kind], workers=workers) for name in ("whole", "broken"))
    train(whole)
    stopped(broken, monkeypatch)
    train(broken)
    assert len(losses_of(whole)) == 12 and losses_of(broken) == losses_of(whole)
    assert equal_weights(broken, whole)


def test_tar_files_train_what_the_same_pictures_as_files_do(recipe: Callable, archives: dict[str, str]) -> None:
    files, tars = recipe("files", archives["json"]), recipe("tars", archives["tar"])
    train(files)
    train(tars)
    assert losses_of(tars) == losses_of(files) and equal_weights(tars, files)


def test_row_groups_are_read_about_once_an_epoch(
    recipe: Callable, archives: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_order, "WINDOW_BLOCKS", 2)
    # About four of eight row groups are kept.
    monkeypatch.setattr(stored_images, "KEPT_BYTES", 4 * 10_000)
    read, groups = [], stored_images._read
    monkeypatch.setattr(stored_images, "_read", lambda *what: read.append(what) or groups(*what))
    (result,) = train(recipe("run", archives["parquet"], questions_per_prefix=1))
    assert result.steps == 12 and result.rejects == 0
    # Row groups kept at the start of the second epoch need not be read again.
    assert 8 + 4 <= len(read) <= 2 * 8 + 4


@pytest.mark.parametrize("kind", [pytest.param("tar", marks=pytest.mark.medium), "parquet"])
def test_kept_features_are_found_for_pictures_in_archives(
    recipe: Callable, archives: dict[str, str], tmp_path: Path, kind: str
) -> None:
    train(recipe("kept", archives[kind], cache_features=True))
    # Each question about an image has its own copy.
    assert len(list((tmp_path / "cache" / "features").rglob("*.safetensors"))) == 12
    train(recipe("without", archives[kind]))
    kept, without = (losses_of(recipe(name, archives[kind])) for name in ("kept", "without"))
    assert kept == pytest.approx(without, rel=0, abs=1e-6)


def test_a_dry_run_counts_the_rows_of_an_archive(recipe: Callable, archives: dict[str, str], tmp_path: Path) -> None:
    (one,) = plan(recipe("plan", archives["parquet"]), ("instruct",))
    assert one.data is not None and (one.data.samples, one.steps) == (24, 12)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe("plan", archives["tar"]).model_dump(mode="json", exclude_none=True)))
    found = CliRunner().invoke(app, ["train", str(path), "--dry-run"])
    assert found.exit_code == 0 and "24" in found.output
    (missing,) = plan(recipe("plan", str(tmp_path / "nowhere" / "{0..3}.tar")), ("instruct",))
    assert "no data at" in missing.text()


def test_archives_mix_with_files_and_are_held_out(
    recipe: Callable, archives: dict[str, str], assembled: Callable
) -> None:
    sources = [{"data": archives[kind]} for kind in ("json", "parquet", "tar")]
    mixed = recipe("mixed", sources, validation={"share": 0.3, "minutes": 1e-9}, max_steps=3, epochs=1.0)
    (result,) = train(mixed)
    assert result.rejects == 0
    looks = recipe("looks", archives["json"], validation={"data": archives["tar"], "samples": 5})
    training = module.training_data(
        training_samples(mixed, "instruct", Rejects(None)), mixed, "instruct", *assembled("qwen2")
    )
    validation = validation_of(looks, "instruct", training, lambda rows: {})
    assert validation is not None and len(validation.dataset) == 5
    assert validation.dataset[4][0].pixel_values is not None


def test_the_fingerprint_is_of_the_files_of_an_archive(recipe: Callable, archives: dict[str, str]) -> None:
    def fingerprint() -> str:
        one = recipe("run", archives["tar"])
        return fingerprint_of(one, "instruct", one.instruct)

    before = fingerprint()
    path = Path(archives["tar"]).parent / "0.tar"
    content = path.read_bytes()
    path.touch()
    assert fingerprint() == before
    path.write_bytes(content.replace(b"what colour", b"which shade"))
    assert fingerprint() != before


@pytest.mark.parametrize("grouping", ["group_by_length", "group_by_modality"])
def test_grouped_steps_are_refused_for_row_groups(recipe: Callable, archives: dict[str, str], grouping: str) -> None:
    with pytest.raises(RecipeError, match=f"instruct.{grouping} would read a whole Parquet row group"):
        train(recipe("run", archives["parquet"], **{grouping: True}))
