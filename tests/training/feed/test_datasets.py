"""Training and validation data of a stage: one file, several with weights, a held-out share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from aligngpt.data.batches.collate import Collator
from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.model.assembling import assemble
from aligngpt.training.dry_run import plan
from aligngpt.training.feed.datasets import training_data, training_samples, validation_of
from aligngpt.training.recipe import Recipe, RecipeError, make_recipe
from aligngpt.training.run import train
from aligngpt.training.setup.row_attention import decide_packing
from aligngpt.training.stage import fingerprint_of


@pytest.fixture
def sources(data: Path) -> list[dict[str, Any]]:
    """The questions with weight 0.4, and others about images with the same names in another folder, with weight 2."""
    other = data / "other"
    other.mkdir()
    for place in range(3):
        Image.new("RGB", (32, 32), (90 * place, 0, 0)).save(other / f"{place}.png")
    records = [{"image": f"{n}.png", "question": "is it red ?", "answer": "yes"} for n in range(3)]
    (other / "others.json").write_text(json.dumps(records))
    return [
        {"data": str(data / "questions.json"), "weight": 0.4},
        {"data": str(other / "others.json"), "image_root": str(other), "weight": 2},
    ]


def dataset_of(recipe: Recipe, rejects: Rejects) -> Any:
    model, processor = assemble(recipe.model.vision_tower, recipe.model.language_model, weights=False)
    samples = training_samples(recipe, "instruct", rejects)
    return training_data(samples, recipe, "instruct", model, processor)


def test_each_source_has_its_own_image_root(tiny_recipe: Callable, sources: list, data: Path) -> None:
    dataset = dataset_of(tiny_recipe(instruct__data=sources), Rejects(None))
    assert len(dataset) == 28
    assert {dataset.root_of(place) for place in range(25)} == {data}
    assert {dataset.root_of(place) for place in range(25, 28)} == {data / "other"}
    assert dataset.samples[0].images == dataset.samples[25].images
    # One image is noise, the other has a single colour.
    noise, plain = (dataset[place][0].pixel_values for place in (0, 25))
    assert noise.std(dim=(2, 3)).min() > 0.1 > plain.std(dim=(2, 3)).max()


def test_rejects_name_their_source_and_their_share_is_that_of_all(
    tiny_recipe: Callable, sources: list, data: Path, tmp_path: Path
) -> None:
    (data / "other" / "0.png").unlink()
    with Rejects(tmp_path / "rejects.jsonl", max_share=0.1) as rejects:
        assert len(training_samples(tiny_recipe(instruct__data=sources), "instruct", rejects)) == 27
    reject = json.loads((tmp_path / "rejects.jsonl").read_text())
    assert reject["reason"] == "missing" and reject["detail"].startswith(sources[1]["data"])
    with pytest.raises(TooManyRejects, match="1 of 28 records"):
        training_samples(tiny_recipe(instruct__data=sources), "instruct", Rejects(None, max_share=0.02))


def test_samples_that_lose_their_end_are_warned_of(
    tiny_recipe: Callable, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"question": "is it red ?", "answer": "red " * length} for length in (3, 30)]
    (data / "long.json").write_text(json.dumps(records))
    for limit, count in ((40, 1), (256, 0)):
        dataset_of(tiny_recipe(instruct__data=str(data / "long.json"), instruct__max_length=limit), Rejects(None))
        assert capsys.readouterr().err.count("warning: instruct: 1 of 2 samples looked at have more than 40") == count


def test_what_training_and_validation_skip_is_told(
    tiny_recipe: Callable, sources: list, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "other" / "0.png").unlink()
    options = {"validation": {"data": sources[1:]}, "data": sources, "max_reject_share": 0.5}
    recipe = tiny_recipe(**{f"instruct__{name}": value for name, value in options.items()})
    with Rejects(tmp_path / "rejects.jsonl") as rejects:
        dataset = dataset_of(recipe, rejects)
    said = f"instruct.data: 1 record skipped (missing 1); {tmp_path / 'rejects.jsonl'} lists all of them\n"
    assert said in capsys.readouterr().err
    validation_of(recipe, "instruct", dataset, Collator(0))
    said = "instruct.validation.data: 1 record skipped (missing 1); `aligngpt check` lists all of them\n"
    assert said in capsys.readouterr().err


def test_a_dry_run_sums_the_sources(tiny_recipe: Callable, sources: list) -> None:
    recipe = tiny_recipe(instruct__data=sources, instruct__max_steps=None, instruct__epochs=3)
    (one,) = plan(recipe, ("instruct",))
    assert one.data is not None and (one.data.samples, one.data.epoch_rows) == (28, 10 + 6)
    assert one.steps == 3 * 4
    sources[1]["data"] = "nowhere.json"
    assert "no data at nowhere.json" in plan(tiny_recipe(instruct__data=sources), ("instruct",))[0].text()


def test_the_fingerprint_is_of_all_sources_and_of_what_is_held_out(
    tiny_recipe: Callable, sources: list, data: Path
) -> None:
    def fingerprint(**changes: Any) -> str:
        recipe = tiny_recipe(**changes)
        return fingerprint_of(recipe, "instruct", recipe.instruct)

    mixed = fingerprint(instruct__data=sources)
    assert mixed == fingerprint(instruct__data=sources) != fingerprint()
    looks = {"data": "elsewhere.json"}
    assert fingerprint(instruct__validation=looks) == fingerprint() != fingerprint(instruct__validation={"share": 0.5})
    (data / "other" / "others.json").write_text("[]")
    assert fingerprint(instruct__data=sources) != mixed
    sources[0]["weight"] = 1
    assert fingerprint(instruct__data=sources) not in (mixed, fingerprint())


def test_a_share_is_held_out_and_looked_at(tiny_recipe: Callable) -> None:
    recipe = tiny_recipe(instruct__validation={"share": 0.4, "minutes": 1e-9})
    dataset = dataset_of(recipe, Rejects(None))
    validation = validation_of(recipe, "instruct", dataset, Collator(0))
    assert validation is not None
    kept, others = ({sample.record for sample in one.samples} for one in (dataset, validation.dataset))
    assert kept | others == set(range(25)) and not kept & others and kept and others
    assert not {s.images for s in dataset.samples if s.images} & {s.images for s in validation.dataset.samples}
    (result,) = train(tiny_recipe(pretrain=None, instruct__validation={"share": 0.4, "minutes": 1e-9}))
    lines = (Path(recipe.output) / "instruct" / "metrics.jsonl").read_text().splitlines()
    assert sum("validation_accuracy" in line for line in lines) == result.steps
    with pytest.raises(RecipeError, match="holds out none of 25 samples"):
        training_samples(tiny_recipe(instruct__validation={"share": 1e-9}), "instruct", Rejects(None))


@pytest.mark.parametrize("packed", [False, True])
def test_losses_by_level_and_source_are_those_of_their_samples(
    tiny_recipe: Callable, sources: list, assembled: Callable, packed: bool
) -> None:
    def measured(files: Any, name: str = "instruct") -> Any:
        options = {"validation": {"data": files}, "micro_batch_size": 4, "packing": "packed" if packed else "padded"}
        recipe = tiny_recipe(**{f"{name}__{key}": value for key, value in options.items()})
        model, processor = assembled("qwen2", alignment="global")
        stage = recipe.stage(name)
        if packed:
            decide_packing(model, recipe, stage, torch.device("cpu"), torch.float32)
        dataset = training_data(training_samples(recipe, name, Rejects(None)), recipe, name, model, processor)
        collator = Collator(processor.tokenizer.pad_token_id, packed=packed)
        validation = validation_of(recipe, name, dataset, collator)
        return validation.measure(model)

    others = sources[1]
    records = json.loads(Path(others["data"]).read_text())
    both, first, second = (measured(files) for files in (sources, sources[:1], sources[1:]))
    assert both.losses == {"questions": pytest.approx(first.loss), "others": pytest.approx(second.loss)}
    assert first.losses == {}
    records = [record | {"similarity": place} for place, record in enumerate(records)]
    Path(others["data"]).write_text(json.dumps(records))
    with pytest.raises(TooManyRejects, match=r"24 records of pretrain\.validation\.data have an image but no level"):
        measured(sources, "pretrain")
    # If no levels are learnt they are not checked, and some samples may have none.
    assert measured(sources).losses.keys() == {"questions", "others"}
    by_level = measured(sources[1:], "pretrain")
    assert set(by_level.losses) == {"level_1", "level_2", "level_3"}
    # All three have the same number of tokens.
    assert sum(by_level.losses.values()) / 3 == pytest.approx(by_level.loss)
    Path(others["data"]).write_text(json.dumps(records[2:]))
    assert measured(sources[1:], "pretrain").loss == pytest.approx(by_level.losses["level_3"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": []}, "data.sources: List should have at least 1 item"),
        ({"data": [{"data": "a.json", "weigth": 1}]}, "data.sources.0.weigth: unknown; did you mean weight"),
        ({"data": [{"data": "a.json", "weight": 0}]}, "data.sources.0.weight: Input should be greater than 0"),
        ({"data": 3}, "data: Input should be a valid string"),
        ({"validation": {"share": 0.1, "data": "a.json"}}, "name data or share"),
        ({"validation": {"samples": 3}}, "name data or share"),
    ],
)
def test_wrong_data_is_named(tiny_recipe: Callable, changes: dict[str, Any], message: str) -> None:
    content = tiny_recipe().model_dump(mode="json", exclude_defaults=True)
    content["instruct"] |= changes
    with pytest.raises(RecipeError) as caught:
        make_recipe(content)
    assert message in str(caught.value)


def test_the_lowest_ratings_of_a_source_are_those_of_the_recipe(
    tiny_recipe: Callable, sources: list, data: Path
) -> None:
    texts = [{"user": "is it red ?", "assistant": "yes"}, {"user": "is it blue ?", "assistant": "no"}]
    record = {"images": ["0.png"], "texts": texts, "relevance_ratings": [2, 5]}
    (data / "other" / "others.json").write_text(json.dumps([record]))
    for lowest, context in ((None, ()), ({"relevance": 3}, (1,))):
        recipe = tiny_recipe(instruct__data=[sources[0], sources[1] | {"min_ratings": lowest}])
        assert training_samples(recipe, "instruct", Rejects(None))[25].context == context


def test_the_lowest_ratings_of_a_stage_are_for_sources_without_their_own(
    tiny_recipe: Callable, sources: list, data: Path
) -> None:
    texts = [{"user": "is it red ?", "assistant": "yes"}, {"user": "is it blue ?", "assistant": "no"}]
    record = {"images": ["0.png"], "texts": texts, "relevance_ratings": [2, 5]}
    (data / "other" / "others.json").write_text(json.dumps([record]))
    for own, context in (({}, ()), ({"min_ratings": {"relevance": 1}}, ()), ({"min_ratings": None}, (1,))):
        recipe = tiny_recipe(
            instruct__data=[sources[0], sources[1] | {"min_ratings": {}} | own], instruct__min_ratings={"relevance": 3}
        )
        samples = training_samples(recipe, "instruct", Rejects(None))
        # The questions of the first source have no ratings.
        assert len(samples) == 26 and samples[25].context == context
