import json
from pathlib import Path

import pytest
from PIL import Image

from aligngpt.quickstart import photographs
from aligngpt.quickstart.photographs import prepare_photographs


def test_photographs_come_with_questions_and_credits(tmp_path: Path) -> None:
    files = prepare_photographs(tmp_path / "photographs")
    records = json.loads(files.questions.read_text())
    names = {record["image"] for record in records}
    assert names == {"images/astronaut.png", "images/chelsea.png", "images/coffee.png", "images/rocket.jpg"}
    for name in names:
        with Image.open(files.folder / name) as image:
            image.load()
            assert min(image.size) >= 300
    for record in records:
        asked, answered = record["conversations"]
        assert asked["from"] == "human"
        assert asked["value"].startswith("<image>\n")
        assert answered["from"] == "gpt"
        assert answered["value"]
    assert len({record["id"] for record in records}) == len(records) == 12
    credit = json.loads((files.folder / "manifest.json").read_text())["credits"]
    assert {f"images/{name}" for name in credit} == names


def test_prepared_photographs_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = prepare_photographs(tmp_path / "photographs")
    monkeypatch.setattr(photographs, "_write", lambda *_: pytest.fail("written again"))
    assert prepare_photographs(tmp_path / "photographs") == files
