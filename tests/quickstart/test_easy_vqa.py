import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aligngpt.quickstart import easy_vqa
from aligngpt.quickstart.easy_vqa import EasyVQAError, EasyVQAFiles, prepare_easy_vqa, read_questions
from aligngpt.quickstart.packages import PackageError
from aligngpt.quickstart.shapes import COLOURS, SHAPES, Content, picture_contents

COLOUR_VALUES = {
    (0, 0, 0): "black",
    (0, 0, 255): "blue",
    (165, 42, 42): "brown",
    (128, 128, 128): "gray",
    (0, 255, 0): "green",
    (255, 0, 0): "red",
    (0, 128, 128): "teal",
    (255, 255, 0): "yellow",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> EasyVQAFiles:
    return prepare_easy_vqa(tmp_path_factory.mktemp("data") / "easy-vqa", seed=3)


def records(path: Path) -> list[dict[str, Any]]:
    loaded = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, list)
    return loaded


def answer(record: dict[str, Any]) -> str:
    return str(record["conversations"][1]["value"])


def shown_colour(path: Path) -> str:
    """The actual colour in the image: the background is far from all eight colours, and only edges are blends."""
    with Image.open(path) as image:
        counts = image.convert("RGB").getcolors(64 * 64)
    assert counts is not None
    return next(COLOUR_VALUES[value] for _, value in sorted(counts, reverse=True) if value in COLOUR_VALUES)


@pytest.mark.medium
def test_every_training_picture_gets_a_caption_and_the_shares_hold(files: EasyVQAFiles) -> None:
    captions = records(files.captions)
    assert len({record["image"] for record in captions}) == len({record["id"] for record in captions}) == 4000
    assert Counter(record["caption_quality"] for record in captions) == {
        "right": 2800,
        "vague": 600,
        "wrong": 600,
    }


def test_records_are_llava_records_of_existing_pictures(files: EasyVQAFiles) -> None:
    written = (
        files.captions,
        files.train_questions,
        files.validation_questions,
        files.test_questions,
        files.test_pairs,
    )
    for path in written:
        for record in records(path):
            asked, answered = record["conversations"]
            assert asked["from"] == "human"
            assert asked["value"].startswith("<image>")
            assert answered["from"] == "gpt"
            assert answered["value"]
            assert (files.folder / record["image"]).is_file()


def test_questions_are_all_there_with_their_types(files: EasyVQAFiles) -> None:
    train, test = records(files.train_questions), records(files.test_questions)
    validation = records(files.validation_questions)
    assert (len(train) + len(validation), len(test)) == (38575, 9673)
    pictures = [{record["image"] for record in questions} for questions in (train, validation)]
    assert (len(pictures[0]), len(pictures[1])) == (3940, 60)
    assert not pictures[0] & pictures[1]
    assert train[0] == {
        "id": "train-question-0",
        "image": "images/train/0.png",
        "conversations": [
            {"from": "human", "value": "<image>\nwhat is the blue shape?"},
            {"from": "gpt", "value": "rectangle"},
        ],
        "question_type": "shape",
    }
    assert Counter(record["question_type"] for record in test) == {
        "colour": 1280,
        "shape": 1257,
        "presence-colour": 2557,
        "presence-colour-negated": 2644,
        "presence-shape": 974,
        "presence-shape-negated": 961,
    }
    for record in train:
        kinds = {"colour": COLOURS, "shape": SHAPES}
        assert answer(record) in kinds.get(record["question_type"], ("yes", "no"))


def test_captions_are_as_good_as_they_say_by_the_colours_of_the_pixels(files: EasyVQAFiles) -> None:
    wrong_colours = 0
    for record in [*records(files.captions), *records(files.test_pairs)]:
        said = set(answer(record).split()) & set(COLOURS)
        if said and said != {shown_colour(files.folder / record["image"])}:
            assert record["caption_quality"] == "wrong"
            wrong_colours += 1
    assert wrong_colours > 600


def test_test_pairs_are_a_right_and_a_wrong_caption_of_each_known_picture(files: EasyVQAFiles) -> None:
    contents = picture_contents(read_questions("test"))
    known = {image: content for image, content in contents.items() if content.complete}
    pairs = records(files.test_pairs)
    assert len(known) == 888
    assert len(pairs) == 2 * len(known)
    for right, wrong in zip(pairs[::2], pairs[1::2], strict=True):
        assert (right["caption_quality"], wrong["caption_quality"]) == ("right", "wrong")
        assert right["image"] == wrong["image"]
        content = known[int(Path(right["image"]).stem)]
        assert said_in(answer(right)) == content
        assert said_in(answer(wrong)) != content


def said_in(caption: str) -> Content:
    (colour,), (shape,) = set(caption.split()) & set(COLOURS), set(caption.split()) & set(SHAPES)
    return Content(colour, shape)


def test_the_manifest_states_licence_seed_shares_and_counts(files: EasyVQAFiles) -> None:
    manifest = json.loads((files.folder / "manifest.json").read_text())
    stated = {key: manifest["made_from"][key] for key in ("package", "licence", "seed", "vague_share", "wrong_share")}
    assert stated == {
        "package": "easy-vqa==1.0",
        "licence": "MIT",
        "seed": 3,
        "vague_share": 0.15,
        "wrong_share": 0.15,
    }
    assert manifest["captions"] == {"right": 2800, "vague": 600, "wrong": 600}
    assert (manifest["train_images_fully_known"], manifest["test_images_fully_known"]) == (3578, 888)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_captions(
    files: EasyVQAFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(easy_vqa, "_copy_images", lambda *_: None)
    same, other = prepare_easy_vqa(tmp_path / "same", seed=3), prepare_easy_vqa(tmp_path / "other", seed=4)
    for name in ("captions", "test_pairs", "train_questions", "validation_questions", "test_questions"):
        assert getattr(same, name).read_bytes() == getattr(files, name).read_bytes()
    assert other.captions.read_bytes() != files.captions.read_bytes()
    assert other.test_questions.read_bytes() == files.test_questions.read_bytes()


def test_prepared_files_are_used_again(files: EasyVQAFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(easy_vqa, "_write", refuse)
    assert prepare_easy_vqa(files.folder, seed=3) == files
    with pytest.raises(AssertionError, match="written again"):
        prepare_easy_vqa(files.folder, seed=3, wrong_share=0.2)


@pytest.mark.parametrize(("vague", "wrong"), [(-0.1, 0.1), (0.1, -0.1), (0.6, 0.5), (float("nan"), 0.1)])
def test_senseless_shares_are_refused(tmp_path: Path, vague: float, wrong: float) -> None:
    with pytest.raises(EasyVQAError, match="vague_share"):
        prepare_easy_vqa(tmp_path / "out", vague_share=vague, wrong_share=wrong)
    assert not (tmp_path / "out").exists()


def test_a_missing_picture_is_named_and_nothing_is_left(
    files: EasyVQAFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        (tmp_path / "easy_vqa" / "data" / split / "images").mkdir(parents=True)
        questions = f"data/{split}/questions.json"
        shutil.copyfile(easy_vqa.EASY_VQA.folder() / questions, tmp_path / "easy_vqa" / questions)
    (tmp_path / "easy_vqa" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PackageError, match=r"train/images/0\.png of easy-vqa==1\.0 is missing"):
        prepare_easy_vqa(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["easy_vqa"]
