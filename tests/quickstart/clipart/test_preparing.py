"""The prepared folder: splits, captions and questions of a small library; and of the real one where it is there."""

import json
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aligngpt.quickstart.clipart.drawings import read_drawings
from aligngpt.quickstart.clipart.entries import Entry, read_entries
from aligngpt.quickstart.clipart.packages import INSTALLED, ClipartError
from aligngpt.quickstart.clipart.preparing import ClipartFiles, prepare_clipart
from aligngpt.quickstart.clipart.questions import Others
from aligngpt.quickstart.clipart.series import LARGE, SHARES, series_of, split_of
from aligngpt.quickstart.clipart.wording import agrees, content_words
from aligngpt.quickstart.prepared_folder import MANIFEST


@pytest.fixture(scope="session")
def prepared(many: Path, tmp_path_factory: pytest.TempPathFactory) -> ClipartFiles:
    return prepare_clipart(tmp_path_factory.mktemp("prepared") / "clipart", many, seed=3)


def all_entries(files: ClipartFiles) -> dict[str, list[Entry]]:
    return {split: read_entries(files.entries(split)) for split in SHARES}


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_drawing_is_in_one_split_with_its_picture_and_title(prepared: ClipartFiles) -> None:
    splits = all_entries(prepared)
    entries = [entry for own in splits.values() for entry in own]
    assert len({entry.id for entry in entries}) == len({entry.source for entry in entries}) == 60
    assert all(Image.open(prepared.folder / entry.image).size == (84, 84) for entry in entries)
    kinds = Counter((entry.title == "Various Cliparts", entry.kind) for entry in entries)
    assert kinds == {(True, "series-title"): 12, (False, "agrees"): 48}
    for texts in ("titles", "descriptions"):
        records = read(prepared.encoder_captions(texts))
        told = {record["image"]: record["conversations"][1]["value"] for record in records}
        assert told == {entry.image: getattr(entry, texts[:-1]) for entry in splits["encoder"]}


def test_options_have_one_right_description_and_three_of_other_pictures(prepared: ClipartFiles) -> None:
    for split in ("train", "test"):
        own = {entry.image: entry for entry in all_entries(prepared)[split]}
        described = {entry.description: entry for entry in own.values()}
        asked = [record for record in read(prepared.questions(split)) if record["question_type"] == "options"]
        assert asked
        for record in asked:
            lines = record["conversations"][0]["value"].split("\n")[2:6]
            options = {line[0]: described[line[3:]] for line in lines}
            right = options.pop(record["conversations"][1]["value"])
            assert right == own[record["image"]] and record["scope"] == "whole"
            assert len(options) == 3
            for other in options.values():
                assert not content_words([other.name]) & right.words and not content_words([right.name]) & other.words


def test_answers_are_balanced_and_true(prepared: ClipartFiles) -> None:
    for split in ("train", "test"):
        own = {entry.image: entry for entry in all_entries(prepared)[split]}
        answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for record in read(prepared.questions(split)):
            question, answer = (turn["value"] for turn in record["conversations"])
            answers[record["question_type"]][answer] += 1
            if record["question_type"] == "presence":
                name = question.removeprefix("<image>\nis this a picture of ").removesuffix("?")
                assert (name == own[record["image"]].name) is (answer == "yes")
        for counts in answers.values():
            assert max(counts.values()) - min(counts.values()) <= 1


def test_the_same_seed_gives_the_same_files_and_another_one_other_splits(
    prepared: ClipartFiles, many: Path, tmp_path: Path
) -> None:
    same = prepare_clipart(tmp_path / "same", many, seed=3)
    for name in ("pictures_test.jsonl", "questions_train.json", "titles_encoder.json"):
        assert (same.folder / name).read_bytes() == (prepared.folder / name).read_bytes()
    time = (same.folder / MANIFEST).stat().st_mtime_ns
    assert prepare_clipart(same.folder, many, seed=3) == same and (same.folder / MANIFEST).stat().st_mtime_ns == time
    prepare_clipart(same.folder, many, seed=4)
    assert same.entries("test").read_bytes() != prepared.entries("test").read_bytes()


def test_a_library_that_changed_is_prepared_anew(many: Path, tmp_path: Path) -> None:
    library = Path(shutil.copytree(many, tmp_path / "library"))
    files = prepare_clipart(tmp_path / "made", library, seed=3)
    (library / "svg/animals/cat_ann_auth_01.svg").unlink()
    prepare_clipart(files.folder, library, seed=3)
    assert sum(map(len, all_entries(files).values())) == 59


def test_pictures_that_cannot_be_used_are_counted(many: Path, tmp_path: Path) -> None:
    library = Path(shutil.copytree(many, tmp_path / "library"))
    (library / "png/animals/cat_ann_auth_01.png").write_bytes(b"GIF89a not a picture")
    Image.new("RGBA", (5, 5)).save(library / "png/animals/wolf_ann_auth_01.png")
    files = prepare_clipart(tmp_path / "made", library, seed=3)
    manifest = json.loads((files.folder / MANIFEST).read_text())
    assert (
        manifest["usable"] == 58 and sum(manifest["left_out"].values()) == 2 and manifest["left_out"]["PNG blank"] == 1
    )


def test_too_few_drawings_are_refused(library: Path, add: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(ClipartError, match=r"no usable drawing \(there are no SVG files"):
        prepare_clipart(tmp_path / "made", library, seed=3)
    add("food/pear", "pear")
    with pytest.raises(ClipartError, match=r"no drawing is left for the split .* has only 1 usable"):
        prepare_clipart(tmp_path / "made", library, seed=3)
    assert not (tmp_path / "made").exists()


def test_a_series_is_by_author_and_first_word_or_look(library: Path, add: Callable[..., None]) -> None:
    add("food/pear_red_01", "a")
    add("food/pear02", "b")
    add("food/pear_03", "c", creator="Someone Else")
    add("food/quince", "d")
    drawings, _ = read_drawings(library)
    assert [drawing.stem for drawing in drawings] == ["pear02", "pear_03", "pear_red_01", "quince"]
    one, other, third, fourth = series_of(drawings, [b"1", b"2", b"3", b"2"])
    assert one == third and other == fourth and one != other


def test_splits_have_their_shares_and_large_series_are_not_tested_on() -> None:
    found = Counter(split_of(f"series {number}", 1, seed=1) for number in range(2000))
    assert all(abs(found[split] / 2000 - share) < 0.03 for split, share in SHARES.items())
    assert {split_of(f"series {number}", LARGE + 1, seed=1) for number in range(100)} == {"captions", "encoder"}


@pytest.mark.medium
@pytest.mark.skipif(not INSTALLED.is_dir(), reason="needs Debian's packages openclipart-png and openclipart-svg")
def test_the_real_library_has_thousands_of_titles_that_agree_and_hundreds_that_do_not() -> None:
    drawings, left_out = read_drawings(INSTALLED)
    assert len(drawings) > 4000 and left_out["generated stars"] > 1000
    right = sum(map(agrees, drawings))
    assert right > 3000 and len(drawings) - right > 300


def test_wrong_descriptions_come_from_the_same_folder_where_they_can(prepared: ClipartFiles) -> None:
    entries = [entry for own in all_entries(prepared).values() for entry in own]
    others, rng = Others(entries), random.Random(1)
    for entry in entries:
        drawn = others.draw(entry, 3, rng, hard=2)
        assert drawn is not None and [one.folder == entry.folder for one in drawn[:2]] == [True, True]
    # Nothing is left where every other name is also said about the picture.
    everything = replace(entries[0], keywords=tuple(entry.name for entry in entries))
    assert Others([everything, *entries[1:]]).draw(everything, 1, rng, hard=1) is None
