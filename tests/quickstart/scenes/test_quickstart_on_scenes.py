"""The quickstart's steps on tiny scenes with tiny random backbones, and its caption files."""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from aligngpt.data.sources.json import read_records
from aligngpt.quickstart.data_sets import QuickstartData, QuickstartFiles, data_set
from aligngpt.quickstart.outcome import NotLearntError
from aligngpt.quickstart.pipeline import run_steps
from aligngpt.quickstart.run_folder import Run, Settings
from aligngpt.quickstart.scenes.files import ScenesFiles
from aligngpt.quickstart.scenes.language_model import scenes_language_model
from aligngpt.quickstart.scenes.material import Material
from aligngpt.quickstart.scenes.noise import Noise
from aligngpt.quickstart.scenes.preparing import Sizes
from aligngpt.quickstart.scenes_files import QUALITY, prepare_scenes_for_quickstart
from aligngpt.training.recipe import load_recipe

SETTINGS = Settings(1, 3, "scenes", "npm")


@pytest.fixture(scope="session")
def prepared(
    material: Material, sizes: Sizes, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ScenesFiles, Path, Path]:
    folder = tmp_path_factory.mktemp("quickstart") / "data"
    return prepare_scenes_for_quickstart(folder, sizes=sizes, material=material, noise=0.5)


@pytest.fixture
def tiny_scenes(
    prepared: tuple[ScenesFiles, Path, Path],
    language_folder: Callable[[str], Path],
    tower_folder: Callable[[str], Path],
    text_tower: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> QuickstartData:
    """The quickstart's scenes with tiny pictures, backbones and stages of four steps."""
    folders = {
        "vision_tower": tower_folder("dinov2"),
        "text_tower": text_tower,
    }
    for name, folder in folders.items():
        monkeypatch.setattr(f"aligngpt.quickstart.pipeline.prepare_{name}", lambda *_, _folder=folder, **__: _folder)
    monkeypatch.setattr("aligngpt.quickstart.pipeline.VISION_LAYERS", 2)
    scenes = data_set("scenes")
    content = load_recipe(scenes.recipe).model_dump(mode="json")
    for stage in ("pretrain", "instruct"):
        content[stage] |= {"min_steps": 4, "max_steps": 4, "batch_size": 4, "precision": "float32"}
    content["pretrain"]["warm_start"]["steps"] = 4
    content["model"]["vision_feature_layer"] = -2
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    files, captions, pairs = prepared
    found = QuickstartFiles(
        files.folder,
        captions,
        files.encoder_captions,
        pairs,
        files.train_questions,
        files.validation_questions,
        {split: files.questions(split) for split in files.test_splits},
    )
    return replace(
        scenes,
        prepare=lambda folder, seed: found,
        recipe=tmp_path / "tiny.yaml",
        language_model=lambda _: language_folder("llama_tied"),
    )


def test_the_language_model_of_scenes_comes_with_the_package() -> None:
    folder = data_set("scenes").language_model(Path("unused"))
    assert folder == scenes_language_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = "a lobster in the middle left and the bottom left, and a jellyfish in the bottom middle"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert loss < math.log(len(tokenizer)) / 2, "it has learnt such captions"


def test_each_caption_says_whether_it_is_right_vague_or_wrong(prepared: tuple[ScenesFiles, Path, Path]) -> None:
    files, captions, pairs = prepared
    assert set(QUALITY) == {"clean", *get_args(Noise)}
    records: list[Any] = [record for _, record in read_records(captions)]
    assert [(one["id"], one["noise"], one["conversations"]) for one in records] == [
        (one["id"], one["noise"], one["conversations"])
        for _, one in read_records(files.captions)
        if isinstance(one, dict)
    ]
    assert Counter(one["caption_quality"] for one in records)["right"] == len(records) // 2
    for one in records:
        assert (one["conversations"][1]["value"] == one["caption_clean"]) is (one["caption_quality"] == "right")
    tested: list[Any] = [record for _, record in read_records(pairs)]
    assert all(first["caption_quality"] == "right" != second["caption_quality"] for first, second in _two(tested))
    assert all(first["image"] == second["image"] for first, second in _two(tested))


def _two(records: list[Any]) -> list[tuple[Any, Any]]:
    assert len(records) == 40
    return list(zip(records[::2], records[1::2], strict=True))


def test_caption_files_keep_their_time_when_nothing_changes(
    prepared: tuple[ScenesFiles, Path, Path], material: Material, sizes: Sizes
) -> None:
    before = [path.stat().st_mtime_ns for path in prepared[1:]]
    again = prepare_scenes_for_quickstart(prepared[0].folder, sizes=sizes, material=material, noise=0.5)
    assert again == prepared
    assert [path.stat().st_mtime_ns for path in again[1:]] == before


@pytest.mark.medium
def test_the_whole_quickstart_on_scenes(
    tiny_scenes: QuickstartData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random backbones learn nothing in four steps, so the run ends with the error that says so."""
    run = Run(tmp_path / "run", SETTINGS)
    with pytest.raises(NotLearntError, match=r"learnt too little"):
        run_steps(run, tiny_scenes)
    first = capsys.readouterr().out
    assert "Scenes, test splits" in first
    splits = ("test_hand", "test_combination", "test_subgroup")
    for split in splits:
        assert f"AlignGPT, {split}" in first and f"Text only, {split}" in first
    kinds = json.loads((run.folder / "separation.json").read_text())["by_kind"]
    assert kinds and set(kinds) <= set(get_args(Noise)) and sum(one["captions"] for one in kinds.values()) == 20
    assert all(0 <= one["low"] <= one["roc_auc"] <= one["high"] <= 1 for one in kinds.values())
    assert all(f"{kind} {one['roc_auc']:.3f} (" in first for kind, one in kinds.items())
    assert '0.png "how many things are in the picture?"' in first
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert all(f"AlignGPT, {split}" in page for split in splits) and "Dashed: the reference" not in page
    # A baseline on another split is not one that the accuracy on `test` is compared with.
    assert "Text only" in page and "Text only, test_hand" not in page
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config["merge_image_tokens"] == 2

    finished = Run.open(run.folder, SETTINGS)
    with pytest.raises(NotLearntError):
        run_steps(finished, tiny_scenes)
    again = capsys.readouterr()
    assert again.out == first and "is already finished" in " ".join(again.err.split())
