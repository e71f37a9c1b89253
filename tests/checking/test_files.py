"""Tests that checking data reports everything that would fail in training, all at once."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aligngpt.checking.files import Reading, check_files, write_checks
from aligngpt.checking.result import FileCheck, Repeat, Repeats
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.data.sources.base import SourceError


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[..., Path]:
    """A file of the given records, next to the images a.png, b.jpg, cut.png (truncated) and text.png (not an image)."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for name in ("a.png", "b.jpg", "cut.png"):
        noise.save(tmp_path / name)
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")

    def write(*records: Any, name: str = "data.jsonl") -> Path:
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
        return tmp_path / name

    return write


def pair(image: str | list[str] = "a.png", caption: str = "a red circle", **fields: Any) -> dict[str, Any]:
    return {"image": image, "caption": caption, **fields}


def talk(*texts: str, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return fields | {"messages": [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]}


def checked(path: Path, **options: Any) -> FileCheck:
    (check,) = check_files([path], **options)
    return check


def reasons(check: FileCheck) -> list[tuple[int, str]]:
    return [(problem.record, problem.reason) for problem in check.problems]


def test_good_data_are_counted(file_of: Callable) -> None:
    talks = talk("is it ?", "yes", "big ?", "no", images=["a.png"]), talk("1 + 1 ?", "2")
    check = checked(file_of(pair(similarity=3), pair("b.jpg", similarity=3), *talks))
    assert check.good and check.rejected == 0 and check.error is None
    assert (check.records, check.samples, check.turns, check.text_only) == (4, 4, 10, 1)
    assert (check.images, check.broken_images) == (2, 0)
    assert (check.levels, check.without_level, check.lengths) == ({4: 2}, 1, None)
    text = check.text()
    assert text.startswith(f"{check.path}: all 4 records can be used\n")
    assert "1 (25.0% of the samples)" in text and "2 distinct, 0 of which" in text
    assert "50.0% of the records have one; records with an image but no level: 1" in text
    assert "rejected" not in text and "note" not in text


def test_every_problem_is_found_at_once(file_of: Callable) -> None:
    path = file_of(
        pair(),
        pair("no.png", id="x"),
        pair("text.png"),
        pair("../a.png"),
        talk("only a question", id="y"),
        pair(similarity=8),
        [1],
        "{broken",
        pair(["no.png", "text.png"], similarity=9),
    )
    check = checked(path, levels=8)
    assert reasons(check) == [
        (1, "missing"),
        (2, "not_an_image"),
        (3, "outside_root"),
        (4, "unanswered"),
        (5, "level_outside"),
        (6, "not_an_object"),
        (7, "broken_line"),
        (8, "level_outside"),
        (8, "missing"),
        (8, "not_an_image"),
    ]
    assert (check.records, check.samples, check.rejected, check.good) == (9, 1, 8, False)
    assert (check.images, check.broken_images) == (4, 3)
    text = check.text()
    assert "8 of 9 records would be rejected" in text
    assert "  rejected, missing: 2 records\n    record 1 (id x): " in text
    assert "`similarity` is 8, expected 0…7" in text


def test_what_is_good_is_what_training_loads(file_of: Callable) -> None:
    path = file_of(pair(), pair("no.png"), pair("text.png"), [1], pair("b.jpg", ""), talk("a", "b"))
    with Rejects(None, max_share=1.0) as rejects:
        loaded = load_samples(path, rejects=rejects)
    check = checked(path)
    assert (check.samples, check.rejected) == (len(loaded), rejects.count) == (2, 4)


def test_of_each_reason_three_examples_are_shown(file_of: Callable, tmp_path: Path) -> None:
    check = checked(file_of(pair(), *[pair(f"{place}.png") for place in range(5)]))
    assert "missing: 5 records" in check.text() and "3.png" not in check.text() and "and 2 more" in check.text()
    write_checks(tmp_path / "found.json", [check])
    (found,) = json.loads((tmp_path / "found.json").read_text())["files"]
    assert [problem["record"] for problem in found["problems"]] == [1, 2, 3, 4, 5]
    assert found["path"] == str(check.path) and found["rejected"] == 5


def test_samples_are_checked_in_parts_and_all_are_counted(file_of: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [pair(image, id=id) for image in ("a.png", "b.jpg", "no.png", "none.png") for id in "xyz"]
    path = file_of(*records, [1], "{broken", [2], [3])
    whole = checked(path)
    monkeypatch.setattr("aligngpt.checking.files.PART", 5)
    assert checked(path) == whole
    assert (whole.records, whole.samples, whole.rejected, whole.images, whole.broken_images) == (16, 6, 10, 4, 2)
    assert whole.repeated_ids.count == 9 and whole.identical.count == 8
    for module in ("files", "repeats"):
        monkeypatch.setattr(f"aligngpt.checking.{module}.MOST_LISTED", 2)
    check = checked(path)
    assert check.problem_counts == {"missing": 6, "not_an_object": 3, "broken_line": 1}
    listed = [(6, "missing"), (7, "missing"), (12, "not_an_object"), (13, "broken_line"), (14, "not_an_object")]
    assert reasons(check) == listed
    assert check.repeated_ids == Repeats((Repeat(3, 0, "x"), Repeat(4, 1, "y")), 9)
    assert check.identical == Repeats((Repeat(1, 0, "y"), Repeat(2, 0, "z")), 8)
    assert (check.samples, check.rejected) == (6, 10) and "rejected, missing: 6 records" in check.text()
    assert check.facts()["identical_count"] == 8 and check.facts()["problem_counts"]["missing"] == 6


def test_samples_are_not_kept_in_memory(file_of: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aligngpt.checking.files.PART", 16)
    monkeypatch.setattr("aligngpt.checking.files.MOST_LISTED", 16)
    monkeypatch.setattr("aligngpt.checking.files.MOST_KNOWN", 16)

    def peak(count: int) -> int:
        """Bytes taken at most by checking samples of 4 KB, each with an image that is missing."""
        path = file_of(*[talk("is it ?", "yes " * 1_000, images=[f"{place}.png"]) for place in range(count)])
        tracemalloc.start()
        check = checked(path)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert check.rejected == count
        return most

    peak(1)
    assert peak(1_000) - peak(200) < 800 * 400


@pytest.mark.parametrize(
    ("name", "there"), [("a.jpg", "a.png"), ("b.jpeg", "b.jpg"), ("A.png", "a.png"), ("B.JPG", "b.jpg")]
)
def test_a_picture_of_another_extension_is_pointed_out(file_of: Callable, name: str, there: str) -> None:
    (problem,) = checked(file_of(pair(), pair(name))).problems
    assert problem.reason == "missing"
    assert problem.detail.endswith(f"{name} does not exist, but found {there}; correct the name in the record")


def test_only_a_full_look_finds_a_picture_that_is_cut_short(file_of: Callable) -> None:
    path = file_of(pair(), pair("cut.png"))
    assert checked(path).good
    assert reasons(checked(path, full=True)) == [(1, "truncated")]


@pytest.mark.parametrize("full", [False, True])
def test_a_picture_too_narrow_for_image_processors_is_found(file_of: Callable, tmp_path: Path, full: bool) -> None:
    Image.new("RGB", (2_000, 1)).save(tmp_path / "line.png")
    assert reasons(checked(file_of(pair("line.png"), pair()), full=full)) == [(0, "too_large")]


def test_a_picture_is_opened_once_for_all_files(file_of: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr("aligngpt.checking.files.check_image", opened.append)
    check_files([file_of(pair(), pair()), file_of(pair(), pair("b.jpg"), name="more.json")])
    assert sorted(path.name for path in opened) == ["a.png", "b.jpg"]


def test_repeats_are_noted_and_no_problem(file_of: Callable) -> None:
    path = file_of(pair(id="x"), pair("b.jpg", id="x"), pair(id="y", similarity=2), pair("b.jpg", "blue"), pair(id=3))
    check = checked(path)
    assert check.good
    assert check.repeated_ids == Repeats((Repeat(1, 0, "x"),), 1)
    assert check.identical == Repeats((Repeat(2, 0, "y"), Repeat(4, 0, "3")), 2)
    assert "note: 1 record with the id of an earlier record: record 1 (id x) repeats 0" in check.text()
    assert (
        "note: 2 records with the images and turns of an earlier record: record 2 (id y) repeats 0; record 4 "
        in check.text()
    )


def test_levels_are_counted_and_those_outside_are_wrong(file_of: Callable) -> None:
    path = file_of(pair(similarity=0), pair("b.jpg", similarity=0), talk("a", "b"), talk("c", "d", similarity=4))
    assert checked(path).good
    check = checked(path, levels=3)
    assert (check.levels, reasons(check)) == ({1: 2, 5: 1}, [(3, "level_outside")])
    lines = [line.split() for line in check.text().splitlines()]
    assert ["level", "1", "2", "66.7%"] in lines and ["level", "3", "0", "0.0%"] in lines
    assert ["outside", "1…3:", "1"] in lines
    assert reasons(checked(file_of(pair(), talk("a", "b")), needs_level=True)) == [(0, "no_level")]


def test_a_wrong_image_root_is_suspected_when_no_picture_is_there(file_of: Callable, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check = checked(file_of(pair(), talk("a", "b")), image_root=tmp_path / "empty")
    assert f"none of the images can be used: is {tmp_path / 'empty'} the right image root?" in check.text()
    with pytest.raises(SourceError, match="none is not a folder"):
        check_files([file_of(pair())], image_root=tmp_path / "none")


@pytest.mark.parametrize("written", ["", "[]", '[{"image": "a.png"', "text", None])
def test_a_file_that_cannot_be_read_does_not_hide_the_others(
    file_of: Callable, tmp_path: Path, written: str | None
) -> None:
    if written is not None:
        (tmp_path / "broken.json").write_text(written)
    broken, good = check_files([tmp_path / "broken.json", file_of(pair())])
    assert good.good and not broken.good
    assert broken.error is not None and "broken.json" in broken.error
    assert broken.error in broken.text() and broken.text().count("\n") == 0


def test_tokens_are_counted_and_samples_too_long_are_named(assembled: Callable, file_of: Callable) -> None:
    _, processor = assembled("qwen2")
    talks = [talk("is it ?", "yes", "how many ?", "two " * place) for place in range(1, 11)]
    path = file_of(*talks, talk("is it ? " * 50, "yes"))
    whole = checked(path, reading=Reading(processor))
    assert whole.good and whole.lengths is not None and whole.lengths.cut == ()
    assert whole.lengths.p50 < whole.lengths.p95 == whole.lengths.p99 == whole.lengths.longest
    limit = whole.lengths.p50
    check = checked(path, reading=Reading(processor, max_length=limit))
    assert reasons(check) == [(10, "too_long")]
    assert check.lengths is not None and check.lengths[:4] == whole.lengths[:4]
    assert (check.lengths.cut, check.lengths.cut_count) == ((6, 7, 8, 9), 4)
    assert f"4 samples of more than {limit} tokens would lose turns" in check.text()
    assert "records 6, 7, 8, …" in check.text()


def test_samples_with_nothing_to_learn_from_are_found(assembled: Callable, file_of: Callable) -> None:
    _, processor = assembled("qwen2")
    silent = "{% for message in messages %}{{ message['role'] if message['role'] == 'user' }}{% endfor %}"
    check = checked(file_of(talk("a", "b")), reading=Reading(processor, silent))
    assert reasons(check) == [(0, "template")] and check.lengths is None
    refuses = "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}" + processor.chat_template
    told = {"conversations": [{"from": "system", "value": "Be brief."}, *talk("a", "b")["messages"]]}
    check = checked(file_of(talk("a", "b"), told), reading=Reading(processor, refuses))
    assert reasons(check) == [(1, "template")] and "no system" in check.problems[0].detail
