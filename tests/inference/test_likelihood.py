"""The likelihood of given answers is the model's own, whether they are rated together or alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aligngpt.data.batches.examples import tokenize
from aligngpt.inference.engine import Engine, EngineError, Request, Sampling
from aligngpt.model.modeling import IGNORE_INDEX

ANSWERS = ["red", "a big green triangle", "three", "it is red and there are four of them"]


@pytest.mark.parametrize("language", ["llama", "qwen2", "mamba2"])
@pytest.mark.parametrize("shown", [0, 1, 2])
def test_it_is_what_a_forward_pass_gives(assembled: Callable, pictures: list[Any], language: str, shown: int) -> None:
    engine = Engine(*assembled(language))
    request = Request.ask("what colour is the circle ?", *pictures[:shown])
    (rated,) = engine.likelihood(request, ANSWERS)
    for answer, found in zip(ANSWERS, rated, strict=True):
        before, ids = engine.prompts.answer_ids(request, answer)
        labels = torch.tensor([[IGNORE_INDEX] * len(before) + ids])
        pixels = engine.prompts.write(request, 1).pixels
        with torch.no_grad():
            losses = engine.model(
                input_ids=torch.tensor([before + ids]), pixel_values=pixels, labels=labels
            ).token_losses
        assert found.token_log_probabilities == pytest.approx((-losses).tolist(), abs=1e-4)
        assert found.log_probability == pytest.approx(-float(losses.sum()), abs=1e-3)
    assert len({round(one.log_probability, 3) for one in rated}) == len(ANSWERS)


def test_the_model_s_own_answer_is_the_greedy_one(assembled: Callable, pictures: list[Any]) -> None:
    engine = Engine(*assembled("llama"))
    request = Request.ask("what colour is the circle ?", pictures[0])
    (answer,) = engine.answer([request], Sampling(5, log_probabilities=2))
    (rated,) = engine.likelihood(request, [answer.text, "red red red"])
    assert [choice.log_probability for choice in answer.choices] == pytest.approx(
        list(rated[0].token_log_probabilities[: answer.tokens]), abs=1e-4
    )
    for choice in answer.choices:
        assert choice.alternatives[0] == (choice.id, pytest.approx(choice.log_probability))
        assert choice.alternatives[0][1] >= choice.alternatives[1][1]


def test_levels_are_forced_one_after_another(assembled: Callable, pictures: list[Any]) -> None:
    engine = Engine(*assembled())
    with torch.no_grad():
        engine.model.model.alignment.levels.mul_(20)
    request = Request.ask("what ?", pictures[0])
    rated = engine.likelihood(request, ANSWERS[:2], levels=[1, 8, None])
    alone = [
        engine.likelihood(Request.ask("what ?", pictures[0], level=level), ANSWERS[:2])[0] for level in (1, 8, None)
    ]
    for row, one in zip(rated, alone, strict=True):
        assert [found.log_probability for found in row] == pytest.approx([found.log_probability for found in one])
    assert len({round(row[0].log_probability, 3) for row in rated}) == 3


def test_tokens_of_an_answer_are_those_of_training(assembled: Callable, pictures: list[Any], asks: Callable) -> None:
    engine = Engine(*assembled())
    messages = asks("what colour is the circle ?", 1, "red", "how many are there ?")
    before, ids = engine.prompts.answer_ids(Request(messages, (pictures[0],)), "there are three")
    told = [*messages, {"role": "assistant", "content": "there are three"}]
    whole, labels = tokenize(told, engine.processor)
    assert (before + ids) == whole[: len(before + ids)]
    counted = [token for token, label in zip(whole, labels, strict=True) if label != IGNORE_INDEX]
    assert counted[-len(ids) :] == ids
    assert len(counted) > len(ids)  # the first answer is trained on too
    assert before == engine.prompts.write(Request(messages, (pictures[0],)), 1).ids


def test_of_no_answers_nothing_is_told(assembled: Callable) -> None:
    engine = Engine(*assembled())
    assert engine.likelihood(Request.ask("what ?"), []) == [[]]
    assert engine.likelihood(Request.ask("what ?"), [], levels=[1, None, 2]) == [[], [], []]


def test_an_answer_that_cannot_be_rated_is_refused(assembled: Callable) -> None:
    model, processor = assembled()
    processor.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(EngineError, match="the answer 'red' cannot be rated: "):
        Engine(model, processor).likelihood(Request([{"role": "user", "content": "what ?"}]), ["red"])


@pytest.mark.parametrize("language", ["llama", "mamba2"])
def test_damaged_weights_are_an_error_and_no_likelihood(
    assembled: Callable, pictures: list[Any], language: str
) -> None:
    engine = Engine(*assembled(language))
    with torch.no_grad():
        engine.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="the model's output is not a number"):
        engine.likelihood(Request.ask("what colour is the circle ?", pictures[0]), ANSWERS)


def test_an_impossible_answer_has_no_probability(assembled: Callable, pictures: list[Any]) -> None:
    model, processor = assembled("llama")
    engine = Engine(model, processor)
    request = Request.ask("what colour is the circle ?", pictures[0])
    _, (first, *_) = engine.prompts.answer_ids(request, "red")

    def forbid(_: Any, __: Any, output: Any) -> None:
        output.logits[..., first] = -torch.inf

    model.register_forward_hook(forbid)
    ((rated,),) = engine.likelihood(request, ["red"])
    assert rated.log_probability == -torch.inf
