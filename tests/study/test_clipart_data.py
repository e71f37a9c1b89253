"""A study's clip art: titles as they are with their scores and truth, the probe, and the language model's texts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_clipart import tiny_library

from aligngpt.data.sources.json import read_records
from aligngpt.quickstart.clipart.entries import read_entries
from aligngpt.quickstart.clipart.packages import ClipartError
from aligngpt.study import clipart_data
from aligngpt.study.clipart_data import prepare_clipart_data, texts_of
from aligngpt.study.data import StudyData
from aligngpt.study.language_model import END
from aligngpt.study.plan import ClipartPlan, LanguageModelPlan, Plan

LANGUAGE = LanguageModelPlan(
    hidden=16, layers=1, heads=2, vocabulary=400, steps=4, batch=4, length=32, learning_rate=1e-2
)


@pytest.fixture
def prepared(
    tower_folder: Callable, text_tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., StudyData]:
    monkeypatch.setattr(clipart_data, "prepare_vision_tower", lambda *_, **__: tower_folder("dinov2"))
    monkeypatch.setattr(clipart_data, "prepare_text_tower", lambda *_: text_tower)
    monkeypatch.setattr(clipart_data, "VISION_LAYERS", 2)
    library = tiny_library(tmp_path / "library")

    def make(seed: int = 3) -> StudyData:
        plan = ClipartPlan(seed=seed, folder=str(library), probe=5, language_model=LANGUAGE)
        return prepare_clipart_data(plan, {"chat_template": "bare"}, tmp_path / "data")

    return make


@pytest.mark.medium
def test_everything_is_made_once_and_fits_together(
    prepared: Callable[..., StudyData], capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepared()
    capsys.readouterr()
    again = prepared()
    # Nothing was trained or scored a second time.
    assert "fitting" not in capsys.readouterr().err
    pairs = data.pairs(0.0)
    assert again.pairs(0.0) == pairs and again.model == data.model

    vague = [pair for pair in pairs if pair.caption == "Various Cliparts"]
    assert 0 < len(vague) < len(pairs)
    for pair in pairs:
        assert (pair.quality, pair.kind) == ((0.0, "series-title") if pair in vague else (1.0, "agrees"))
        assert (data.image_root / pair.image).is_file()
    assert len({pair.score for pair in pairs}) > 1
    assert set(data.facts["auc"]) == {"all", "series-title"} and data.facts["clipart"]["usable"] == 60

    right, wrong = ([record for _, record in read_records(path)] for path in (data.probe.right, data.probe.wrong))
    assert [record["image"] for record in right] == [record["image"] for record in wrong] and len(right) == 5
    assert all(one["conversations"] != other["conversations"] for one, other in zip(right, wrong, strict=True))
    assert len(data.probe.right_scores) == len(data.probe.wrong_scores) == len(data.probe.kinds) == 5
    tested = {record["image"] for _, record in read_records(data.tests["test"])}
    trained = {record["image"] for _, record in read_records(data.questions)} | {pair.image for pair in pairs}
    assert not trained & (tested | {record["image"] for record in right})

    other = prepared(seed=4)
    # The dual encoder of other splits may have seen these pictures.
    assert other.model["language_model"] != data.model["language_model"]
    assert {pair.image for pair in other.pairs(0.0)} != {pair.image for pair in pairs}


def test_the_language_model_reads_other_pictures_and_answers_from_their_descriptions(
    prepared: Callable[..., StudyData],
) -> None:
    folder = prepared().image_root
    entries = read_entries(folder / "pictures_encoder.jsonl")
    texts = list(texts_of(entries, 3))
    alone = {text.given for text in texts if not text.told}
    assert alone == {text for entry in entries for text in (entry.title, entry.description)}
    asked = [
        (text.given, question[1:], answer[1:].removesuffix(END)) for text in texts for question, answer in text.told
    ]
    for description, question, answer in asked:
        if answer in ("yes", "no"):
            name = question.removeprefix("is this a picture of ").removesuffix("?")
            assert (name == description.split(", ")[0]) is (answer == "yes")
        else:
            assert f"\n{answer}. {description}\n" in question
    assert {answer for _, _, answer in asked} == {"yes", "no", "A", "B", "C", "D"}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClipartError, match="nowhere does not hold the folders png and svg"):
        prepare_clipart_data(ClipartPlan(folder=str(tmp_path / "nowhere")), {}, tmp_path / "data")


def plan_of(**sections: object) -> Plan:
    base = {"output": "out", "pretrain": {}, "instruct": {}, "cells": [{"arms": ["none", "oracle"], "seeds": 2}]}
    return Plan.model_validate(base | sections)


def test_a_plan_has_one_kind_of_data_and_no_share_of_bad_captions_with_clip_art() -> None:
    plan = plan_of(clipart={})
    assert plan.quick().cells[0].answers == (1500,)
    with pytest.raises(ValueError, match="name scenes, clipart or files, one of the three"):
        plan_of(clipart={}, scenes={})
    with pytest.raises(ValueError, match="share of bad captions can only be chosen for scenes"):
        plan_of(clipart={}, cells=[{"arms": ["none"], "noise": [0.3]}])
    with pytest.raises(ValueError, match="reads no scenes; remove it"):
        plan_of(clipart={"language_model": {"scenes": 10}})
