"""Tables of images and captions are checked as `aligngpt score` reads them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from aligngpt.checking.files import check_files
from aligngpt.checking.for_training import check_for_recipe
from aligngpt.checking.result import FileCheck
from aligngpt.data.records.pairs import Pair, open_pairs


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six rows: two are good, one lacks its image, one its caption, one leaves the image root, one has a field more."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    rows = ["x,a.png,a red square,7", "y,b.png,another,8", "z,no.png,nothing,9", "u,a.png,,1", "v,../a.png,out,2"]
    (tmp_path / "pairs.csv").write_text("\n".join(["id,image,caption,stars", *rows, "w,a.png,one, two,3"]) + "\n")
    return tmp_path / "pairs.csv"


def checked(path: Path, **options: object) -> FileCheck:
    (check,) = check_files([path], **options)
    return check


def test_every_problem_of_a_table_is_found(table: Path) -> None:
    check = checked(table)
    assert [(one.record, one.id, one.reason) for one in check.problems] == [
        (2, "z", "missing"),
        (3, "u", "empty_text"),
        (4, "v", "outside_root"),
        (5, None, "broken_line"),
    ]
    assert (check.records, check.samples, check.images, check.broken_images) == (6, 2, 4, 2)
    assert check.error is None and check.image_root == table.parent
    assert check.not_read == {"stars": 4}
    assert f"{table}: 4 of 6 records would be rejected" in check.text()


def test_the_good_rows_are_those_that_scoring_reads(table: Path) -> None:
    pairs = open_pairs(table)
    read = [one for shard in pairs.shards() for one in pairs.read(shard) if isinstance(one, Pair)]
    # Scoring finds the missing image only when it opens it.
    assert {one.id for one in read} == {"x", "y", "z"}
    assert checked(table).samples == 2


def test_a_folder_of_images_with_a_table_and_another_root_are_checked(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "captions.csv").write_text("image,caption\na.png,a red square\n")
    assert checked(folder).problems[0].reason == "missing" and checked(folder).image_root == folder
    assert checked(folder, image_root=tmp_path).good


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pairs.csv", "", "is empty"),
        ("pairs.csv", "name,words\na.png,x\n", "caption"),
        ("pairs.tsv", "name\twords\na.png\tx\n", "found name, words"),
    ],
)
def test_a_table_that_cannot_be_read_says_what_is_expected(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    check = checked(tmp_path / name)
    assert check.error is not None and said in check.error and not check.good


def test_a_table_for_pre_training_needs_levels_as_any_data(table: Path, tiny_recipe: Callable) -> None:
    (check,) = check_for_recipe([table], tiny_recipe(), "pretrain")
    assert [one.reason for one in check.problems if one.id == "x"] == ["no_level"]
    table.write_text("image,caption,level\na.png,a red square,2\nb.png,another,8\n")
    (check,) = check_for_recipe([table], tiny_recipe(), "pretrain")
    assert check.good and check.levels == {2: 1, 8: 1}
