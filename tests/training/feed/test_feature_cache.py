"""The feature cache: the same results as without it, features computed once, never stale, and safe against kills."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModel, TrainerCallback

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import ConversationDataset
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.model import assembling
from aligngpt.training import stage_run
from aligngpt.training.feed import feature_cache as module
from aligngpt.training.feed.feature_cache import FeatureCache, features_kept_for, pictures_at_most
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train
from aligngpt.training.stage import model_folder

CPU = torch.device("cpu")
PICTURES = 12


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The features folder of the test's own, empty cache."""
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def recipe(tiny_recipe: Callable, tmp_path: Path) -> Callable[..., Recipe]:
    """Two epochs of instruction tuning only, in a folder `name`, with cached features; 25 samples, 12 images."""

    def make(name: str, **changes: Any) -> Recipe:
        changes = {f"instruct__{setting}": value for setting, value in ({"cache_features": True} | changes).items()}
        changes = {"instruct__max_steps": 12, "instruct__epochs": 2.0} | changes
        return tiny_recipe(pretrain=None, output=str(tmp_path / name), **changes)

    return make


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images per call of the tower, without the blank image of text-only batches."""
    calls: list[int] = []
    forward = CLIPVisionModel.forward

    def counting(self: Any, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if pixel_values.any() and not loading:
            calls.append(len(pixel_values))
        return forward(self, pixel_values, *args, **kwargs)

    # Loading tries the tower on pictures of its own.
    loading: list[bool] = []
    load = assembling.load_vision_tower

    def load_uncounted(*args: Any, **kwargs: Any) -> Any:
        loading.append(True)
        try:
            return load(*args, **kwargs)
        finally:
            loading.pop()

    monkeypatch.setattr(assembling, "load_vision_tower", load_uncounted)
    monkeypatch.setattr(CLIPVisionModel, "forward", counting)
    return calls


@pytest.fixture
def dataset_of(data: Path, assembled: Callable) -> Callable[..., tuple[Any, ConversationDataset]]:
    """A model and the questions of `data`, with a feature cache."""

    def make(model: Any = None, pad_images: bool | None = None) -> tuple[Any, ConversationDataset]:
        made, processor = assembled("qwen2")
        model = model or made
        rejects = Rejects(None, max_share=1)
        samples = load_samples(data / "questions.json", rejects=rejects)
        dataset = ConversationDataset(samples, processor, data, pad_images=pad_images)
        dataset.known_features = features_kept_for(dataset, model, CPU, in_bfloat16=False)
        return model, dataset

    return make


def losses_of(recipe: Recipe) -> list[float]:
    lines = (Path(recipe.output) / "instruct" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def weights_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(model_folder(recipe) / "model.safetensors")


def entries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


class Stop(TrainerCallback):
    """Simulates a kill after a given step, with a checkpoint at an earlier one."""

    def __init__(self, step: int, checkpoint: int) -> None:
        self.step, self.checkpoint = step, checkpoint

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save |= state.global_step == self.checkpoint
        if state.global_step == self.step:
            raise KeyboardInterrupt


@contextmanager
def stopping(monkeypatch: pytest.MonkeyPatch, step: int, checkpoint: int) -> Iterator[None]:
    make = stage_run.StageTrainer

    def make_stopping(*args: Any, **kwargs: Any) -> Any:
        trainer = make(*args, **kwargs)
        trainer.add_callback(Stop(step, checkpoint))
        return trainer

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage_run, "StageTrainer", make_stopping)
        yield


@pytest.mark.parametrize(
    "settings",
    [
        {"packing": "packed", "questions_per_prefix": 2},
        pytest.param({"packing": "padded", "micro_batch_size": 2}, marks=pytest.mark.medium),
    ],
)
def test_a_run_learns_the_same_with_kept_features(recipe: Callable, seen: list, cache: Path, settings: dict) -> None:
    without = recipe("without", cache_features=False, **settings)
    train(without)
    assert not cache.exists()
    seen.clear()
    kept = recipe("kept", **settings)
    train(kept)
    assert seen == [1] * PICTURES
    assert len(entries(cache)) == PICTURES
    assert losses_of(kept) == pytest.approx(losses_of(without), rel=0, abs=1e-6)
    seen.clear()
    again = recipe("again", **settings)
    train(again)
    assert losses_of(again) == losses_of(kept)
    found = weights_of(again)
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights_of(kept).items())
    assert seen == []


@pytest.mark.medium
def test_loader_workers_find_them_too(recipe: Callable, cache: Path, seen: list) -> None:
    train(recipe("alone"))
    shutil.rmtree(cache)
    train(recipe("workers", workers=2))
    assert losses_of(recipe("workers")) == losses_of(recipe("alone"))
    seen.clear()
    train(recipe("again", workers=2))
    assert losses_of(recipe("again")) == losses_of(recipe("alone"))
    assert seen == []


@pytest.mark.medium
def test_a_stopped_run_goes_on_with_the_same_numbers(
    recipe: Callable, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    whole = recipe("whole")
    train(whole)
    shutil.rmtree(cache)
    stopped = recipe("stopped")
    with stopping(monkeypatch, step=4, checkpoint=2):
        train(stopped)
    # Simulate a kill in the middle of a batch, with some of its entries written.
    there = entries(cache)
    for path in there[::2]:
        path.unlink()
    assert there
    train(stopped)
    assert losses_of(stopped) == losses_of(whole)
    found = weights_of(stopped)
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights_of(whole).items())


@pytest.mark.parametrize("damage", [lambda whole: whole[:40], lambda whole: b"", lambda whole: b"\xff" * len(whole)])
def test_a_damaged_entry_is_computed_anew(
    dataset_of: Callable, damage: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    model, dataset = dataset_of()
    kept = dataset.known_features
    features = filled(model, dataset, 2)
    good = [path.read_bytes() for path in entries(kept.folder)]
    for path in entries(kept.folder):
        path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    assert torch.equal(filled(model, dataset, 2), features)
    assert capsys.readouterr().err.count("cannot be read") == 1
    assert [path.read_bytes() for path in entries(kept.folder)] == good


def filled(model: Any, dataset: ConversationDataset, *rows: int) -> torch.Tensor:
    """The model's input for the images of these rows."""
    assert isinstance(dataset.known_features, FeatureCache)
    batch = Collator(0).with_ids([dataset[row] for row in rows])
    return dataset.known_features.complete(model, batch, in_bfloat16=False)["vision_features"]


def test_an_entry_of_another_shape_is_computed_anew(
    dataset_of: Callable, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, dataset = dataset_of()
    kept = dataset.known_features
    features = filled(model, dataset, 0)
    key = kept.key(data / "0.png")
    kept.write(key, features[0, :3])
    assert kept.read(key) is None
    assert "(3, 24)" in capsys.readouterr().err.replace("\n", " ")
    assert torch.equal(filled(model, dataset, 0), features)
    assert torch.equal(kept.read(key), features[0])


def test_found_and_computed_features_stand_in_the_order_of_the_images(dataset_of: Callable, seen: list) -> None:
    model, dataset = dataset_of()
    dataset.samples[0] = replace(dataset.samples[0], images=("9.png", "2.png"))
    filled(model, dataset, 2)  # 1.png, the image of samples 2 and 3
    assert pictures_at_most(dataset) == PICTURES + 2  # 0.png is the only image of sample 1, and 2.png of another sample
    seen.clear()
    batch = Collator(0).with_ids([dataset[row] for row in (4, 3, 24, 5, 0)])
    # 2.png is in three samples and is computed once; sample 24 has no image.
    assert len(batch["pixel_values"]) == 2
    assert [bool(key) for key in batch["feature_keys"]] == [True, False, True, True, True]
    features = dataset.known_features.complete(model, batch, in_bfloat16=False)["vision_features"]
    assert seen == [1, 1]
    assert dataset[0][0].pixel_values is None
    assert torch.equal(dataset[0][0].features, features[-2:])
    dataset.known_features = None
    with torch.no_grad():
        expected = torch.cat([model.model.tower_features(dataset[row][0].pixel_values) for row in (4, 3, 5, 0)])
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_in_bfloat16_the_projector_reads_what_it_would_read(dataset_of: Callable) -> None:
    model, dataset = dataset_of()
    dataset.known_features = features_kept_for(dataset, model, CPU, in_bfloat16=True)
    batch = Collator(0).with_ids([dataset[0], dataset[24]])
    completed = dataset.known_features.complete(model, batch, in_bfloat16=True)
    assert completed["vision_features"].dtype == torch.bfloat16
    plain = {name: value for name, value in batch.items() if name not in ("feature_keys", "sample_ids")}
    ready = {name: value for name, value in completed.items() if name != "sample_ids"}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(**ready).loss, model(**plain).loss)


def test_a_key_tells_all_that_decides_the_features(dataset_of: Callable, data: Path, tmp_path: Path) -> None:
    model, dataset = dataset_of()
    picture = data / "0.png"
    key = dataset.known_features.key(picture)
    assert dataset_of()[1].known_features.key(picture) == key
    shutil.copy(picture, tmp_path / "copy.png")
    assert dataset.known_features.key(tmp_path / "copy.png") == key
    others = [dataset_of(pad_images=not dataset.picture_settings.get("do_pad"))[1].known_features]
    others.append(features_kept_for(dataset, model, CPU, in_bfloat16=True))
    model.config.vision_feature_layer = -1
    others.append(features_kept_for(dataset, model, CPU, in_bfloat16=False))
    model.config.vision_feature_layer = -2
    with torch.no_grad():
        next(model.model.vision_tower.parameters()).flatten()[0] += 1e-3
    others.append(features_kept_for(dataset, model, CPU, in_bfloat16=False))
    keys = [key, *(other.key(picture) for other in others)]
    Image.new("RGB", (32, 32), "red").save(picture)
    keys.append(dataset.known_features.key(picture))
    assert len(set(keys)) == len(keys)


def test_a_picture_that_cannot_be_read_is_rejected_as_without(dataset_of: Callable, data: Path) -> None:
    _, dataset = dataset_of()
    (data / "0.png").unlink()
    (data / "1.png").write_bytes(b"")
    (row, lost), (other, empty) = dataset.row(0), dataset.row(2)
    assert not row and not other
    assert {one.reason for one in lost} == {"missing"} and {one.reason for one in empty} == {"empty"}
    instead = dataset[0][0]
    assert lost[0] in instead.rejected and instead.id not in {one.id for one in instead.rejected}


def test_a_full_disk_ends_the_keeping_and_not_the_training(
    recipe: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    @contextmanager
    def full(*args: Any) -> Iterator[Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield

    without = recipe("without", cache_features=False)
    train(without)
    monkeypatch.setattr(module, "atomic_write", full)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 95, 5))
    kept = recipe("kept")
    train(kept)
    said = capsys.readouterr().err
    assert said.count("the disk is full") == 1
    assert "the disk fills up" in said
    assert not entries(cache)
    assert losses_of(kept) == pytest.approx(losses_of(without), rel=0, abs=1e-6)


def test_a_tower_that_trains_has_no_features_to_keep(recipe: Callable) -> None:
    with pytest.raises(RecipeError, match="take vision_tower out of train"):
        recipe("wrong", train=["vision_tower", "projector"])
