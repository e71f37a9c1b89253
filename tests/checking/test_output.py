"""`aligngpt check --json`: nothing but an earlier result is replaced, and that is said before any work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aligngpt.checking.files import check_files
from aligngpt.checking.for_training import check_for_recipe
from aligngpt.cli import app
from aligngpt.cli.options import PROBLEMS_FOUND
from aligngpt.errors import AlignGPTError


def check(*arguments: object) -> int:
    ended = CliRunner().invoke(app, ["check", *map(str, arguments)])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended.exit_code


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any, **__: Any) -> None:
        pytest.fail("work began")

    monkeypatch.setattr("aligngpt.checking.files.check_files", work)


@pytest.mark.usefixtures("untouched")
def test_data_recipes_folders_and_other_files_are_not_replaced(data: Path, tmp_path: Path) -> None:
    captions, questions = data / "captions.json", data / "questions.json"
    other, link, recipe = tmp_path / "notes.json", tmp_path / "link.json", tmp_path / "r.yaml"
    other.write_text('{"files": [{"path": "mine"}]}')
    recipe.write_text("{}")
    link.symlink_to(questions)
    for arguments, said in (
        ([captions, "--json", questions], "not a result of `aligngpt check --json`"),
        ([captions, questions, "--json", captions], "is a file that is read"),
        ([f"file://{captions}", "--json", captions], "is a file that is read"),
        ([captions, questions, "--json", link], "is a file that is read"),
        ([captions, "--recipe", recipe, "--json", recipe], "is a file that is read"),
        ([captions, "--json", other], "not a result of `aligngpt check --json`"),
        ([captions, "--json", data / "0.png"], "not a result of `aligngpt check --json`"),
        ([captions, "--json", data], f"is a folder; name a file with --json, such as {data / 'problems.json'}"),
        ([captions, "--json", other / "below.json"], f"{other} is not a folder"),
        ([captions, "--json", "s3://bucket/found.json"], "cannot be written to"),
        ([captions, "--json", "~/found.json"], f"write the whole path, {Path.home() / 'found.json'}"),
    ):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(AlignGPTError) as caught:
            check(*arguments)
        assert said in str(caught.value)
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_an_earlier_result_is_replaced(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "found.json"
    for name in ("captions.json", "questions.json"):
        assert check(data / name, "--json", out) == 0
        assert json.loads(out.read_text())["files"][0]["path"] == str(data / name)


def test_the_address_of_a_local_file_is_checked_for_a_recipe(tiny_recipe: Callable, data: Path) -> None:
    path = Path(f"file://{data / 'questions.json'}")
    recipe = tiny_recipe(instruct__data=f"file://{data / 'questions.json'}", instruct__image_root=str(data))
    (one,) = check_for_recipe([path], recipe, "instruct")
    assert (one.path, one.image_root, one.good) == (data / "questions.json", data, True)


def test_codes_and_halves_of_characters_are_printed_as_escapes(tmp_path: Path) -> None:
    records = [
        {"id": "\ud83d", "image": "no.jpg", "caption": "half an emoji"},
        {"id": "a\x1b]0;owned\x07\nall is well", "image": "no\x1b[2J.jpg", "caption": "codes"},
        {"id": "ü 🙂", "image": "b.jpg", "caption": "scored", "score": "x" * 10_000},
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    (found,) = check_files([tmp_path / "data.json"])
    text = found.text()
    assert "(id ü 🙂)" in text
    assert r"(id \ud83d)" in text and r"(id a\x1b]0;owned\x07\nall is well)" in text and r"no\x1b[2J.jpg" in text
    assert "\x1b" not in text and "\x07" not in text and len(text) < 2_000
    assert check(tmp_path / "data.json", "--json", tmp_path / "found.json") == PROBLEMS_FOUND
    assert json.loads((tmp_path / "found.json").read_text())["files"][0]["problems"][0]["id"] == "\ud83d"
