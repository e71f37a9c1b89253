"""What a model is measured by agrees with what it does one sample at a time."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aligngpt.data.rejects import TooManyRejects
from aligngpt.inference.engine import Engine, Request, Sampling
from aligngpt.study.data import StudyData
from aligngpt.study.measuring import Measure, mean_weights


@pytest.fixture
def model(assembled: Callable):
    return assembled("qwen2", chat_template="bare")


def test_answers_are_those_of_one_question_at_a_time(model, study_data: StudyData, data: Path) -> None:
    network, processor = model
    questions = study_data.tests["test"]
    records = json.loads(questions.read_text())
    # Some answers are what the model says, so that right and wrong ones are among them.
    engine = Engine(network, processor)
    for place in (0, 5, 6):
        picture = Image.open(data / records[place]["image"])
        question = records[place]["conversations"][0]["value"].removeprefix("<image>\n")
        answer = engine.answer([Request.ask(question, picture)], Sampling(max_new_tokens=3))[0]
        records[place]["conversations"][1]["value"] = answer.text.strip() or "red"
    questions.write_text(json.dumps(records))

    together = Measure(network, processor, data).answers(questions)
    for place, record in enumerate(records):
        alone_path = data / "alone.json"
        alone_path.write_text(json.dumps([record]))
        alone = Measure(network, processor, data).answers(alone_path)
        np.testing.assert_allclose(together.log_probability[place], alone.log_probability[0], rtol=2e-3)
        np.testing.assert_allclose(together.confidence[place], alone.confidence[0], rtol=2e-3)
        np.testing.assert_allclose(together.weights[place], alone.weights[0], rtol=2e-2, atol=1e-3)
        assert together.right[place] == alone.right[0] and together.first_right[place] == alone.first_right[0]
    assert together.weights.shape == (24, 7)


def test_log_probabilities_are_the_models_loss(model, study_data: StudyData, data: Path) -> None:
    network, processor = model
    text = "<image>what colour is it ? red" + processor.tokenizer.eos_token
    inputs = processor(images=[Image.open(data / "0.png")], text=[text], return_tensors="pt")
    prompt = processor(images=[Image.open(data / "0.png")], text=["<image>what colour is it ?"], return_tensors="pt")
    labels = inputs["input_ids"].clone()
    labels[:, : prompt["input_ids"].shape[1]] = -100
    with torch.no_grad():
        loss = network(**inputs, labels=labels, num_items_in_batch=1).loss
    found = Measure(network, processor, data).answers(study_data.tests["test"])
    assert found.log_probability[0] == pytest.approx(-loss.item(), rel=2e-3)


def test_captions_differ_by_level_and_by_picture(model, study_data: StudyData, data: Path) -> None:
    network, processor = model
    measure = Measure(network, processor, data)
    first, last = (measure.captions(study_data.probe.right, level) for level in (1, 8))
    assert first.shape == (6,) and (first < 0).all() and not np.allclose(first, last)
    blank = measure.captions(study_data.probe.right, 8, blank=True)
    # Records 0 and 3 have the same caption but different pictures, which a blank one cannot tell apart.
    assert blank[0] == pytest.approx(blank[3], rel=1e-5)
    assert last[0] != pytest.approx(last[3], rel=1e-5)


def test_a_question_without_its_picture_is_an_error(model, study_data: StudyData, data: Path) -> None:
    (data / "3.png").unlink()
    with pytest.raises(TooManyRejects, match="2 of 24 records cannot be used"):
        Measure(*model, data).answers(study_data.tests["test"])


def test_mean_weights_are_by_kind() -> None:
    weights = np.array([[0, 1], [1, 0], [0.5, 0.5]], dtype=np.float16)
    assert mean_weights(weights, ["a", "b", "a"]) == {"a": [0.25, 0.75], "b": [1.0, 0.0]}
