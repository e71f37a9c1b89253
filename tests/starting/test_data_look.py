"""What `aligngpt init` finds out about data: the samples that may be the longest, at paths and at addresses."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from object_store import Store

from aligngpt.data.batches.examples import tokenize
from aligngpt.data.samples.reading import readable_samples
from aligngpt.data.sources.remote import RemotePath
from aligngpt.starting.asking import Asker
from aligngpt.starting.data_look import LONGEST, DataLook, look_at
from aligngpt.starting.known_backbones import write_stand_in
from aligngpt.starting.machine import this_machine
from aligngpt.starting.making import Given, make_new_recipe
from aligngpt.starting.output import StartError
from aligngpt.training import memory_plan
from aligngpt.training.recipe import load_recipe
from aligngpt.training.setup.loading import load_model


def make(data: Path, out: Path, **given: Any) -> Any:
    files = {"captions": data / "captions.json", "questions": data / "questions.json"}
    return make_new_recipe(
        Given(**files | {"device": "cpu", "memory": 8.0} | given), Asker(interactive=False, defaults=True), out
    )


@pytest.fixture
def hidden(data: Path) -> Path:
    """Questions about images, which have few characters, among more texts than are looked at, which have many."""
    records = json.loads((data / "questions.json").read_text())
    records += [{"question": f"{'x' * 200} {number}", "answer": "yes"} for number in range(LONGEST + 5)]
    (data / "questions.json").write_text(json.dumps(records))
    return data


def test_the_longest_samples_of_each_number_of_images_are_kept(hidden: Path) -> None:
    look = look_at(hidden / "questions.json")
    lengths = {count: [len(one.turns[0].text) for one in look.longest if len(one.images) == count] for count in (0, 1)}
    assert len(lengths[0]) == len(lengths[1]) == LONGEST
    assert min(lengths[0]) > 200 and lengths[0] == sorted(lengths[0], reverse=True)
    assert look.characters == 200 + len(" 24") + len("yes")


def test_texts_of_many_bytes_are_among_the_longest(data: Path) -> None:
    """A Thai character takes three bytes, and several tokens of a tokenizer made for English."""
    records = [
        {"question": f"{text} {number}", "answer": "yes"} for text in ("x" * 300, "ก" * 200) for number in range(40)
    ]
    (data / "questions.json").write_text(json.dumps(records))
    look = look_at(data / "questions.json")
    assert sum("ก" in one.turns[0].text for one in look.longest) == LONGEST
    assert len(look.longest) == 2 * LONGEST and look.characters == 300 + len(" 10") + len("yes")


@pytest.mark.medium
def test_no_sample_is_longer_than_the_recipe_allows(hidden: Path, tmp_path: Path, language_folder: Callable) -> None:
    """An image takes more tokens than a text of many characters."""
    out = tmp_path / "r.yaml"
    tower = write_stand_in(tmp_path / "tower", "openai/clip-vit-large-patch14")
    make(hidden, out, tower=str(tower), language=str(language_folder("llama_wide")))
    recipe = load_recipe(out)
    _, processor = load_model(recipe, "instruct", weights=False)
    assert recipe.instruct is not None
    samples = list(readable_samples(hidden / "questions.json"))
    tokens = [len(tokenize(one.messages(), processor, max_length=1 << 30)[0]) for one in samples]
    longest_text = max(count for count, one in zip(tokens, samples, strict=True) if not one.images)
    assert longest_text + 64 < max(tokens) <= recipe.instruct.max_length < max(tokens) + 64


@pytest.mark.medium
def test_an_image_that_the_language_model_has_no_room_for_is_refused(
    data: Path, tmp_path: Path, language_folder: Callable
) -> None:
    tower = write_stand_in(tmp_path / "tower", "openai/clip-vit-large-patch14-336")
    with pytest.raises(StartError, match=r"an image takes 576 tokens with .* has room for 512; choose another"):
        make(data, tmp_path / "r.yaml", tower=str(tower), language=str(language_folder("llama_wide")))


def test_the_advice_to_check_is_a_command_with_the_same_image_root(data: Path, tmp_path: Path) -> None:
    folder = (tmp_path / "my data").resolve()
    folder.mkdir()
    records = [{"image": "0.png", "question": "what ?", "answer": "red"}, {"image": "none.png", "question": "what ?"}]
    (folder / "bad.json").write_text(json.dumps(records))
    with pytest.raises(StartError) as caught:
        look_at(folder / "bad.json", data)
    command = shlex.split(str(caught.value).split("`")[1])
    assert command == ["aligngpt", "check", str(folder / "bad.json"), "--image-root", str(data)]


def test_images_are_looked_for_near_the_file_unless_several_folders_have_them(data: Path) -> None:
    for folder in ("images", "depth"):
        (data / folder).mkdir()
    pictures = list(data.glob("*.png"))
    for picture in pictures:
        picture.rename(data / "images" / picture.name)
    assert look_at(data / "captions.json").image_root == data / "images"
    for picture in pictures:
        (data / "depth" / picture.name).write_bytes((data / "images" / picture.name).read_bytes())
    with pytest.raises(StartError) as caught:
        look_at(data / "captions.json")
    assert f"found in {data / 'depth'} and in {data / 'images'}" in str(caught.value)
    assert "--image-root" in str(caught.value)
    assert look_at(data / "captions.json", data / "images").image_root == data / "images"


def test_the_working_directory_is_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, picture in enumerate(data.glob("*.png")):
        picture.with_suffix(".txt").write_text(f"thing {number}")
    for path in data.glob("*.json"):
        path.unlink()
    monkeypatch.chdir(data)
    look = look_at(Path("."))
    assert (look.kind, look.check.images, look.check.broken_images) == ("captions", 12, 0)


def test_addresses_are_looked_at(store: Store, data: Path) -> None:
    local = look_at(Path(f"file://{data / 'captions.json'}"))
    assert (local.path, local.check.samples) == (data / "captions.json", 12)
    for path in data.iterdir():
        store.put(f"d/{path.name}", path.read_bytes())
    look = look_at(Path("s3://pairs/d/captions.json"))
    assert isinstance(look.path, RemotePath) and str(look.path) == "s3://pairs/d/captions.json"
    assert (look.kind, look.check.images, look.check.broken_images) == ("captions", 12, 0)
    with pytest.raises(StartError, match=r"the data s3://pairs/d/none\.json does not exist"):
        look_at(Path("s3://pairs/d/none.json"))


@pytest.mark.medium
def test_the_recipe_and_its_commands_name_the_address(
    store: Store, data: Path, tmp_path: Path, language_folder: Callable, tower_folder: Callable
) -> None:
    records = json.loads((data / "captions.json").read_text())
    plain = [{"image": one["image"], "caption": one["caption"]} for one in records]
    (data / "captions.json").write_text(json.dumps(plain))
    for path in data.iterdir():
        store.put(f"d/{path.name}", path.read_bytes())
    backbones = {"tower": str(tower_folder("clip")), "language": str(language_folder("llama_wide"))}
    files = {name: Path(f"s3://pairs/d/{name}.json") for name in ("captions", "questions")}
    made = make(data, tmp_path / "r.yaml", **backbones | files)
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.instruct is not None and recipe.instruct.data == "s3://pairs/d/questions.json"
    assert recipe.instruct.image_root == "s3://pairs/d"
    # Levels cannot be written to the store.
    assert recipe.pretrain is not None and recipe.pretrain.data == "captions-levels.json"
    words = shlex.split(made.commands[1])
    assert words[-4:] == ["--source", "s3://pairs/d/captions.json", "--out", "captions-levels.json"]


@pytest.mark.parametrize("part", ["tower", "language"])
def test_a_misspelt_listed_name_is_refused_before_the_data_is_read(
    part: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligngpt.starting.making.look_at", lambda *_: pytest.fail("work began"))
    near = {"tower": "openai/clip-vit-base-patch23", "language": "lmsys/vicuna-7b-v1.6"}[part]
    meant = {"tower": "openai/clip-vit-base-patch32", "language": "lmsys/vicuna-7b-v1.5"}[part]
    with pytest.raises(StartError, match=f"did you mean {meant}"):
        make(data, tmp_path / "r.yaml", **{f"{part}_like": near})


@pytest.mark.medium
def test_a_listed_name_that_is_not_needed_is_noted(
    data: Path, tmp_path: Path, language_folder: Callable, tower_folder: Callable
) -> None:
    tower, language = str(tower_folder("clip")), str(language_folder("llama_wide"))
    made = make(data, tmp_path / "r.yaml", tower=tower, language=language, language_like="lmsys/vicuna-7b-v1.5")
    (note,) = (one for one in made.notes if "-like" in one)
    assert note.startswith("--language-model-like lmsys/vicuna-7b-v1.5 is not used") and language in note


@pytest.mark.medium
def test_too_little_memory_is_answered_with_what_is_smaller(
    data: Path, tmp_path: Path, language_folder: Callable, tower_folder: Callable
) -> None:
    small = {"tower": "openai/clip-vit-base-patch32", "language": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    with pytest.raises(StartError, match=r"can be planned with; choose a device with more memory$"):
        make(data, tmp_path / "r.yaml", memory=0.1, **small)
    tower = small | {"tower": "openai/clip-vit-large-patch14"}
    with pytest.raises(StartError, match="choose a smaller vision tower, such as openai/clip-vit-base-patch32, or a d"):
        make(data, tmp_path / "r.yaml", memory=0.1, **tower)
    with pytest.raises(StartError, match="choose a smaller language model, such as HuggingFaceTB/SmolLM2-135M"):
        make(data, tmp_path / "r.yaml", memory=0.1, **small | {"language": "Qwen/Qwen2.5-0.5B-Instruct"})


@pytest.mark.parametrize("run", ["", "  ", "s3://bucket/run", "~/run"])
def test_a_run_without_a_folder_is_refused(run: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"give one with --run|cannot be written to|write the whole path"):
        make(data, tmp_path / "r.yaml", run=run)
    assert not (tmp_path / "r.yaml").exists()


def test_a_recipe_is_not_written_over_an_answer(data: Path) -> None:
    with pytest.raises(StartError, match="is the file of questions; name another file for the recipe with --out"):
        make_new_recipe(
            Given(captions=data / "captions.json", questions=data / "questions.json"),
            Asker(interactive=False, defaults=True),
            data / "questions.json",
            force=True,
        )


def test_a_look_is_one_line(data: Path) -> None:
    look: DataLook = look_at(data / "captions.json")
    assert "\n" not in look.text() and "longest text 14 characters" in look.text()


@pytest.mark.parametrize(("available", "expected"), [(16, 10), (8, 8), (None, 10)])
def test_an_apple_gpu_has_what_metal_recommends_of_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int | None, expected: int
) -> None:
    monkeypatch.setattr(memory_plan, "available_memory", lambda: available)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert memory_plan.device_memory(torch.device("mps")) == expected
    assert this_machine(tmp_path)[:3] == ("mps", "an Apple GPU", expected)
