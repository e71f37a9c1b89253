"""Data files that training would refuse are named before anything is loaded, with what to do."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.data.samples.levels_table import SOURCE_KEY
from aligngpt.data.sources.finding import archive_at
from aligngpt.training.feed.datasets import training_samples
from aligngpt.training.feed.source_checks import source_problems, swapped_warning
from aligngpt.training.recipe import STAGES, Recipe

TinyRecipe = Callable[..., Recipe]


def without_levels(path: Path, *, of_first: int | None = None) -> Path:
    """Remove the levels of a file's records, or of its first ones."""
    records = json.loads(path.read_text())
    for record in records[:of_first]:
        record.pop("similarity", None)
    path.write_text(json.dumps(records))
    return path


def with_levels(path: Path) -> None:
    path.write_text(json.dumps([record | {"similarity": 1} for record in json.loads(path.read_text())]))


def swapped(data: Path) -> dict[str, Any]:
    return {"pretrain__data": str(data / "questions.json"), "instruct__data": str(data / "captions.json")}


def test_good_data_have_no_problem(tiny_recipe: TinyRecipe) -> None:
    assert source_problems(tiny_recipe(), STAGES) == []
    assert swapped_warning(tiny_recipe()) is None


def test_captions_without_levels_are_told_with_the_commands_that_add_them(tiny_recipe: TinyRecipe, data: Path) -> None:
    path = without_levels(data / "captions.json")
    (problem,) = source_problems(tiny_recipe(), STAGES)
    assert problem == (
        f"{path} (pretrain.data) has no levels: run `aligngpt score {path} --out SCORES …`, then `aligngpt levels "
        f"SCORES --source {path} --out {data / 'captions-levels.json'}`, and name that file in pretrain.data"
    )
    assert source_problems(tiny_recipe(), ["instruct"]) == []
    assert source_problems(tiny_recipe(model__alignment="none"), STAGES) == []


def test_the_commands_have_the_image_root_and_quoted_paths(tiny_recipe: TinyRecipe, data: Path) -> None:
    path = without_levels(data / "captions.json").rename(data / "my captions.json")
    (problem,) = source_problems(tiny_recipe(pretrain__data=str(path), pretrain__image_root=str(data)), ["pretrain"])
    score, levels = (shlex.split(command) for command in problem.split("`")[1::2])
    assert score == ["aligngpt", "score", str(path), "--image-root", str(data), "--out", "SCORES", "…"]
    assert levels[-4:] == ["--source", str(path), "--out", str(data / "my captions-levels.json")]


def test_the_working_directory_without_levels_has_commands_too(
    tiny_recipe: TinyRecipe, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "0.txt").write_text("a thing")
    for path in data.glob("*.json"):
        path.unlink()
    monkeypatch.chdir(data)
    (problem,) = source_problems(tiny_recipe(pretrain__data="."), ["pretrain"])
    assert f"--source . --out {data.parent / data.name}-levels.jsonl" in problem


def test_one_level_far_behind_is_enough_here(tiny_recipe: TinyRecipe, data: Path) -> None:
    without_levels(data / "captions.json", of_first=11)
    assert source_problems(tiny_recipe(), STAGES) == []


def test_the_source_without_levels_is_named_among_several(tiny_recipe: TinyRecipe, data: Path) -> None:
    (data / "more.json").write_text((data / "captions.json").read_text())
    without_levels(data / "more.json")
    sources = [{"data": str(data / name)} for name in ("captions.json", "more.json")]
    (problem,) = source_problems(tiny_recipe(pretrain__data=sources), STAGES)
    assert problem.startswith(f"{data / 'more.json'} (pretrain.data) has no levels: ")


@pytest.mark.parametrize("levels", ["of captions", "none"])
def test_swapped_files_are_called_so(tiny_recipe: TinyRecipe, data: Path, levels: str) -> None:
    if levels == "none":
        without_levels(data / "captions.json")
    (problem,) = source_problems(tiny_recipe(**swapped(data)), STAGES)
    assert "look swapped" in problem and "exchange them in the recipe" in problem
    assert str(data / "questions.json") in problem and str(data / "captions.json") in problem


def test_questions_for_pretraining_alone_are_told_from_captions(tiny_recipe: TinyRecipe, data: Path) -> None:
    recipe = tiny_recipe(pretrain__data=str(data / "questions.json"), instruct=None)
    (problem,) = source_problems(recipe, STAGES)
    assert "has no levels and looks like questions, not captions: run" in problem


def test_swapped_files_that_are_valid_are_warned_of(tiny_recipe: TinyRecipe, data: Path) -> None:
    with_levels(data / "questions.json")
    recipe = tiny_recipe(**swapped(data))
    assert source_problems(recipe, STAGES) == []
    assert "if they are swapped" in (swapped_warning(recipe) or "")
    assert swapped_warning(tiny_recipe()) is None
    assert swapped_warning(tiny_recipe(instruct__data="nowhere.json")) is None


def test_missing_files_and_image_roots_of_both_stages_are_named(tiny_recipe: TinyRecipe, data: Path) -> None:
    recipe = tiny_recipe(
        pretrain__data=str(data / "caption.json"),
        instruct__image_root="no-images",
        instruct__validation={"data": str(data / "none.json")},
    )
    problems = source_problems(recipe, STAGES)
    assert [problem.split(":")[0] for problem in problems] == [
        "pretrain.data",
        "instruct.data",
        "instruct.validation.data",
    ]
    assert f"caption.json does not exist; did you mean {data / 'captions.json'}" in problems[0]
    assert problems[1].endswith("the image root no-images is not a folder")


def test_too_few_levels_do_not_send_the_reader_to_the_image_root(
    tiny_recipe: TinyRecipe, data: Path, tmp_path: Path
) -> None:
    without_levels(data / "captions.json", of_first=11)
    rejects = Rejects(tmp_path / "rejects.jsonl")
    with pytest.raises(TooManyRejects, match=r"11 records of pretrain\.data have an image but no level") as caught:
        training_samples(tiny_recipe(), "pretrain", rejects)
    assert "aligngpt levels" in str(caught.value) and "rejects.jsonl" in str(caught.value)
    assert "image root" not in str(caught.value)


def test_too_few_levels_of_stored_images_ask_for_a_table(tiny_recipe: TinyRecipe, data: Path, tmp_path: Path) -> None:
    listed, stored = without_levels(data / "captions.json", of_first=11), tmp_path / "stored.parquet"
    records = json.loads(listed.read_text())
    rows = [
        record | {"image": {"bytes": (data / record["image"]).read_bytes()}, "similarity": record.get("similarity")}
        for record in records
    ]
    pq.write_table(pa.Table.from_pylist(rows), stored)

    archive, levels = archive_at(stored), tmp_path / "levels.parquet"
    assert archive is not None
    first = pa.table({"record": [0], "level": pa.array([1], pa.int32())})
    pq.write_table(first.replace_schema_metadata({SOURCE_KEY: archive.fingerprint()}), levels)

    def advice(*sources: Path, where: str = "the field `similarity`", **more: str) -> str:
        named = [{"data": str(path), "image_root": str(data)} | more for path in sources]
        with pytest.raises(TooManyRejects) as caught:
            training_samples(tiny_recipe(pretrain__data=named), "pretrain", Rejects(None))
        found, advised = str(caught.value).split("; then ")
        assert f"have an image but no level in {where}. Score all records" in found
        return advised

    added = "add levels with `aligngpt levels SCORES --source … --out …`, and name that file in pretrain.data"
    table = (
        "write a table of levels with `aligngpt levels SCORES --out levels.parquet`, and name it in pretrain.data as "
        "the `levels` of its source"
    )
    assert advice(listed) == added
    assert advice(stored) == advice(stored, where=str(levels), levels=str(levels)) == table
    assert advice(stored, listed) == f"{added}; for Parquet and tar files, {table}"
