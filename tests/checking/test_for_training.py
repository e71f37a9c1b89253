"""Tests of checking data the way a model, or a stage of a recipe, would read it."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligngpt.checking.for_training import check_for_model, check_for_recipe
from aligngpt.data.batches.examples import tokenize
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.errors import AlignGPTError
from aligngpt.training.recipe import RecipeError
from aligngpt.training.setup.loading import load_model


def test_a_stage_counts_tokens_as_it_will_train_on_them(tiny_recipe: Callable, data: Path) -> None:
    recipe = tiny_recipe(instruct__max_length=52)
    (check,) = check_for_recipe([data / "questions.json"], recipe, "instruct")
    assert check.good and check.samples == 25 and check.without_level == 24
    _, processor = load_model(recipe, "instruct", weights=False)
    samples = load_samples(data / "questions.json", rejects=Rejects(None))
    expected = sorted(len(tokenize(sample.messages(), processor)[0]) for sample in samples)
    assert check.lengths is not None
    assert (check.lengths.p50, check.lengths.longest, check.lengths.max_length) == (expected[12], expected[-1], 52)
    assert len(check.lengths.cut) == sum(length > 52 for length in expected) > 0


def test_pre_training_asks_for_levels_of_the_recipe(tiny_recipe: Callable, data: Path) -> None:
    captions = json.loads((data / "captions.json").read_text())
    del captions[1]["similarity"]
    (data / "captions.json").write_text(json.dumps(captions))
    (check,) = check_for_recipe([data / "captions.json"], tiny_recipe(model__num_levels=6), "pretrain")
    reasons = [(problem.record, problem.reason) for problem in check.problems]
    assert reasons == [(1, "no_level"), (6, "level_outside"), (7, "level_outside")]
    (check,) = check_for_recipe([data / "captions.json"], tiny_recipe(model__alignment="none"), "pretrain")
    assert check.good
    (check,) = check_for_recipe([data / "captions.json"], tiny_recipe(), "pretrain", levels=7)
    assert [problem.record for problem in check.problems] == [1, 7]


def test_image_paths_start_from_the_image_root_of_the_stage(tiny_recipe: Callable, data: Path, tmp_path: Path) -> None:
    elsewhere = (data / "questions.json").rename(tmp_path / "questions.json")
    (check,) = check_for_recipe([elsewhere], tiny_recipe(instruct__image_root=str(data)), "instruct")
    assert check.good
    (check,) = check_for_recipe([elsewhere], tiny_recipe(), "instruct")
    assert check.rejected == 24
    (check,) = check_for_recipe([elsewhere], tiny_recipe(), "instruct", image_root=data)
    assert check.good


def test_each_file_of_a_mixture_is_looked_at_from_its_own_root(
    tiny_recipe: Callable, data: Path, tmp_path: Path
) -> None:
    elsewhere = (data / "captions.json").rename(tmp_path / "captions.json")
    sources = [{"data": str(data / "questions.json")}, {"data": str(elsewhere), "image_root": str(data)}]
    paths = [elsewhere, data / "questions.json"]
    checks = check_for_recipe(paths, tiny_recipe(instruct__data=sources), "instruct")
    assert [(check.path, check.image_root, check.good) for check in checks] == [(path, data, True) for path in paths]


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_answers_rated_lower_than_the_recipe_asks_for_are_rejects(
    suffix: str, tiny_recipe: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = {"texts": [{"user": "which ?", "assistant": "red"}]}
    records = [talk | {"relevance_ratings": ratings, "other_ratings": [1]} for ratings in ([2], [4], None)]
    path = tmp_path / f"rated{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    monkeypatch.chdir(tmp_path)
    for stage, own, reasons in (
        ({"relevance": 3}, {}, ["low_rating"]),
        (None, {"min_ratings": {"relevance": 3}}, ["low_rating", "no_rating"]),
        ({"relevance": 3}, {"min_ratings": {}}, []),
    ):
        sources = [{"data": path.name} | own, {"data": str(data / "questions.json")}]
        recipe = tiny_recipe(instruct__data=sources, instruct__min_ratings=stage)
        (check,) = check_for_recipe([path], recipe, "instruct")
        assert [problem.reason for problem in check.problems] == reasons
        assert (check.records, check.samples) == (3, 3 - len(reasons))
        assert ("relevance_ratings" in check.not_read) is (not reasons)
        assert "other_ratings" in check.not_read


def test_a_recipe_without_the_stage_says_so(tiny_recipe: Callable, data: Path) -> None:
    with pytest.raises(RecipeError, match="no section pretrain"):
        check_for_recipe([data / "captions.json"], tiny_recipe(pretrain=None), "pretrain")


def test_a_processor_alone_counts_tokens(assembled: Callable, data: Path, tmp_path: Path) -> None:
    _, processor = assembled("qwen2")
    processor.save_pretrained(tmp_path / "x")
    (check,) = check_for_model([data / "captions.json"], str(tmp_path / "x"), levels=4)
    samples = load_samples(data / "captions.json", rejects=Rejects(None))
    assert check.lengths is not None
    assert check.lengths.longest == max(len(tokenize(sample.messages(), processor)[0]) for sample in samples)
    assert {problem.reason for problem in check.problems} == {"level_outside"}


@pytest.mark.parametrize("kind", ["none", "tower"])
def test_what_has_no_processor_of_ours_is_refused(
    tower_folder: Callable, data: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "none" if kind == "none" else tower_folder("clip")
    with pytest.raises(AlignGPTError, match=r"AlignGPT model|Give a model folder"):
        check_for_model([data / "captions.json"], str(folder))


def test_a_damaged_processor_is_an_error_that_says_so(assembled: Callable, data: Path, tmp_path: Path) -> None:
    _, processor = assembled("qwen2")
    processor.save_pretrained(tmp_path / "x")
    path = tmp_path / "x" / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_processor": "clip"}))
    with pytest.raises(AlignGPTError, match=r"the processor of .*x cannot be loaded"):
        check_for_model([data / "captions.json"], str(tmp_path / "x"))
