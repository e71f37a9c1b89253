"""A study's scenes: the pairs at a share of bad captions, their scores, the probe, and the language model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aligngpt.data.sources.json import read_records
from aligngpt.quickstart.scenes.material import Material
from aligngpt.study import scenes_data
from aligngpt.study.data import StudyData
from aligngpt.study.features import keep_features
from aligngpt.study.language_model import (
    END,
    Text,
    _tokens_of,
    _train_tokenizer,
    _words_of,
    prepare_scene_language_model,
    texts_of,
)
from aligngpt.study.plan import LanguageModelPlan, Plan, ScenesPlan
from aligngpt.study.scenes_data import prepare_scenes_data

LANGUAGE = LanguageModelPlan(
    hidden=16, layers=1, heads=2, vocabulary=400, scenes=60, steps=6, batch=4, length=32, learning_rate=1e-2
)


@pytest.fixture
def prepared(
    material: Material,
    tower_folder: Callable,
    text_tower: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], StudyData]:
    monkeypatch.setattr(scenes_data, "prepare_vision_tower", lambda *_, **__: tower_folder("dinov2"))
    monkeypatch.setattr(scenes_data, "prepare_text_tower", lambda *_: text_tower)
    monkeypatch.setattr(scenes_data, "VISION_LAYERS", 2)
    plan = ScenesPlan(
        seed=1,
        source="npm",
        captions=30,
        encoder=20,
        train=6,
        test=8,
        shift=4,
        encoder_noise=0.3,
        probe=5,
        language_model=LANGUAGE,
    )
    return lambda: prepare_scenes_data(plan, {"chat_template": "bare"}, tmp_path / "data", material=material)


def test_everything_is_made_once_and_fits_together(
    prepared: Callable[[], StudyData], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepared()
    capsys.readouterr()
    again = prepared()
    # Nothing was trained or scored a second time.
    assert "fitting" not in capsys.readouterr().err
    assert [pair.score for pair in again.pairs(0.6)] == [pair.score for pair in data.pairs(0.6)]

    exact, some, many = (data.pairs(noise) for noise in (0.0, 0.3, 0.6))
    bad = [{pair.id for pair in pairs if pair.kind != "clean"} for pairs in (exact, some, many)]
    assert [len(ids) for ids in bad] == [0, 9, 18] and bad[1] < bad[2]
    for pairs in (some, many):
        for pair, clean in zip(pairs, exact, strict=True):
            same = pair.id not in bad[2] or pair.kind == "clean"
            assert (pair.image, pair.id) == (clean.image, clean.id)
            assert (pair.score == clean.score and pair.caption == clean.caption) or not same
            assert (pair.quality == 1) == (pair.kind == "clean")
    # A bad caption has a score of its own.
    assert any(pair.score != clean.score for pair, clean in zip(many, exact, strict=True))

    assert list(data.tests) == ["test", "test_hand", "test_combination", "test_subgroup"]
    right, wrong = ([record for _, record in read_records(path)] for path in (data.probe.right, data.probe.wrong))
    assert [record["image"] for record in right] == [record["image"] for record in wrong] and len(right) == 5
    assert all(one["conversations"] != other["conversations"] for one, other in zip(right, wrong, strict=True))
    assert len(data.probe.right_scores) == len(data.probe.wrong_scores) == len(data.probe.kinds) == 5
    trained = {record["image"] for _, record in read_records(data.questions)} | {pair.image for pair in exact}
    assert not trained & {record["image"] for record in right}
    assert set(data.facts["auc"]) == {pair.kind for pair in data.pairs(1.0)}


def test_every_picture_of_a_run_is_kept(
    prepared: Callable[[], StudyData], plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    data = prepared()
    keep_features(plan_of({"arms": ["none"]}), data, tmp_path / "study")
    kept = list((tmp_path / "cache" / "features").rglob("*.safetensors"))
    pictures = {path.read_bytes() for path in (data.image_root / "images").rglob("*.png")}
    encoder = {path.read_bytes() for path in (data.image_root / "images" / "encoder").glob("*.png")}
    validation = {path.read_bytes() for path in (data.image_root / "images" / "validation").glob("*.png")}
    assert len(kept) == len(pictures - encoder - validation)


def test_texts_are_descriptions_and_what_can_be_told_from_them(material: Material) -> None:
    texts = list(texts_of(material, 40, seed=0))
    alone, asked, places, again, first, asked_of_lists = (texts[start::6] for start in range(6))
    assert not any(text.told for text in alone)
    names = {thing.name for thing in material.things}
    pairs = [(text.given, *pair) for text in (*asked, *asked_of_lists) for pair in text.told]
    assert len(pairs) > 400 and all(question and answer.endswith(END) for _, question, answer in pairs)
    named = [(given, answer[1 : -len(END)]) for given, question, answer in pairs if question.startswith(" what is in")]
    # The answer can be read in what is given.
    assert named and all(answer in names and answer in given for given, answer in named)
    for text in places:
        ((given, listed),) = text.told
        assert not given
        assert all(word in text.given for pair in listed[1 : -len(END)].split(", ") for word in pair.split(": "))
    assert {listed[1:].split(": ")[0] in names for text in places for _, listed in text.told} == {True, False}
    assert all(text.told == (("", f" {text.given}{END}"),) for text in again)
    for text in first:
        ((given, caption),) = text.told
        assert given == "\n" and ": " in text.given and any(name in caption for name in names if name in text.given)
    assert texts == list(texts_of(material, 40, seed=0)) != list(texts_of(material, 40, seed=1))


def test_only_what_is_told_is_learnt() -> None:
    texts = [Text("a wolf"), Text("a fox", ((" what is it?", f" fox{END}"), ("", f" red{END}")))]
    tokenizer = _train_tokenizer([part for text in texts for part in _words_of(text)], 300)
    ids, labels = _tokens_of(texts, tokenizer, 1)
    learnt = "".join(tokenizer.decode(row[row != -100]) if (row != -100).any() else "·" for row in labels)
    assert learnt.replace("·", "") == "<|begin|>a wolf\n fox<|end|> red<|end|>"
    assert tokenizer.decode(ids.flatten()) == "<|begin|>a wolf\n<|begin|>a fox what is it? fox<|end|> red<|end|>"
    assert (labels == ids)[labels != -100].all()


def test_a_language_model_is_the_same_after_an_interruption(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligngpt.study import language_model

    monkeypatch.setattr(language_model, "STEPS_BETWEEN_CHECKPOINTS", 2)
    whole = prepare_scene_language_model(tmp_path / "whole", material, LANGUAGE, seed=3)

    class Stopped(Exception):
        pass

    advance = language_model.Meter.advance

    def stop(self: object, *args: object, **kwargs: object) -> None:
        advance(self, *args, **kwargs)
        if self.done == 5:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(language_model.Meter, "advance", stop)
        with pytest.raises(Stopped):
            prepare_scene_language_model(tmp_path / "broken", material, LANGUAGE, seed=3)
    assert not (tmp_path / "broken").exists()
    resumed = prepare_scene_language_model(tmp_path / "broken", material, LANGUAGE, seed=3)
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (whole, resumed)]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "whole"]
    tokenizer = AutoTokenizer.from_pretrained(whole)
    text = "a wolf in the top left, and grapes"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert np.isfinite(models[0](**tokenizer(text, return_tensors="pt")).logits.detach().numpy()).all()
