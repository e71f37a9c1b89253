"""Models whose positions are rotated by the length of a conversation answer as they do by themselves."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny_models
import torch
from PIL import Image

from aligngpt.inference.engine import Engine, Request, Sampling
from aligngpt.inference.generation import loop
from aligngpt.inference.generation.cache import can_be_pooled
from aligngpt.inference.generation.rotation import switching_lengths

ORIGINAL = 64
WORDS = "what colour is the big red circle on left of this picture please "
SHORT, LONG = Request.ask(WORDS), Request.ask(WORDS * 12)
GREEDY = Sampling(16)

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "factor": 8.0,
    "original_max_position_embeddings": ORIGINAL,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
OF_PHI3 = {"pad_token_id": 0, "original_max_position_embeddings": ORIGINAL, "rope_parameters": LONGROPE}
FAMILIES = {
    "phi3_long": ("Phi3Config", OF_PHI3, "llama"),
    "llama_long": ("LlamaConfig", {"tie_word_embeddings": False, "rope_parameters": LONGROPE}, "llama"),
    "llama_dynamic": (
        "LlamaConfig",
        {"tie_word_embeddings": False, "max_position_embeddings": ORIGINAL, "rope_parameters": DYNAMIC},
        "llama",
    ),
}


@pytest.fixture(params=list(FAMILIES))
def engine(request: pytest.FixtureRequest, assembled: Callable, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    for name, family in FAMILIES.items():
        monkeypatch.setitem(tiny_models.FAMILIES, name, family)
    with Engine(*assembled(request.param)) as engine:
        engine.model.generation_config.eos_token_id = None
        if request.param == "llama_dynamic":
            # Longer conversations than the model was made for are what it stretches in.
            monkeypatch.setattr(type(engine.prompts), "context", 512)
        yield engine


def own_greedy(engine: Engine, request: Request, tokens: int) -> str:
    """What the model says by itself; `longrope` reads everything again for each token, `dynamic` keeps its cache."""
    ids = torch.tensor([engine.prompts.write(request, 1).ids])
    model, read = engine.model, ids.shape[1]
    keeps = "dynamic" in str(model.config.text_config.rope_parameters)
    said: list[int] = []
    state: Any = None
    for module in model.modules():
        if keeps and hasattr(module, "original_max_seq_len"):
            # As if nothing had been read before.
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = module.original_inv_freq.clone()
    with torch.inference_mode():
        for place in range(tokens):
            if keeps and place:
                where = torch.tensor([[read + place - 1]])
                output = model(input_ids=ids[:, -1:], position_ids=where, cache=state, use_cache=True)
            else:
                output = model(input_ids=ids, use_cache=keeps)
            state = output.cache if keeps else None
            said.append(int(output.logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([said[-1:]])], dim=1)
    return str(engine.processor.tokenizer.decode(said, skip_special_tokens=True)).strip()


def test_an_answer_is_the_model_s_own_beside_others_and_in_a_long_prompt(
    engine: Engine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Request.ask(WORDS * 4, pictures[0])
    asked = [SHORT, LONG, Request.ask(WORDS * 6), shown]
    expected = [own_greedy(engine, request, GREEDY.max_new_tokens) for request in asked[:3]]
    assert len(set(expected)) == 3
    alone = [engine.answer([request], GREEDY)[0].text for request in asked]
    assert alone[:3] == expected
    monkeypatch.setattr(loop, "LONG_PROMPT", 48)
    assert [answer.text for answer in engine.answer(asked, GREEDY)] == alone


def test_an_answer_that_becomes_long_is_the_model_s_own(engine: Engine) -> None:
    tokens = 2 * ORIGINAL
    (answer,) = engine.answer([SHORT], Sampling(tokens))
    assert len(engine.prompts.write(SHORT, 1).ids) < ORIGINAL
    assert answer.text == own_greedy(engine, SHORT, tokens)


def test_a_second_turn_is_the_model_s_own(engine: Engine) -> None:
    (first,) = engine.answer([Request(SHORT.messages, keep=True)], GREEDY)
    told = {"role": "assistant", "content": [{"type": "text", "text": first.text}]}
    later = Request([*SHORT.messages, told, *Request.ask(WORDS * 3).messages], keep=True)
    (second,) = engine.answer([later], GREEDY)
    assert second.text == own_greedy(engine, later, GREEDY.max_new_tokens)
    assert second.reused_tokens == 0


def test_answers_are_rated_by_their_own_length(engine: Engine) -> None:
    texts = ["red circle", WORDS * 5]
    alone = [engine.likelihood(SHORT, [text])[0][0] for text in texts]
    engine.answer([LONG], GREEDY)
    assert engine.likelihood(SHORT, texts)[0] == alone


@pytest.mark.parametrize(("settings", "pooled"), [(PLAIN, True), (LONGROPE, False), (DYNAMIC, False)])
def test_one_type_of_layer_that_rotates_by_length_is_enough(settings: dict[str, Any], pooled: bool) -> None:
    from transformers import Gemma3TextConfig

    types = {"sliding_attention": PLAIN, "full_attention": settings}
    config = Gemma3TextConfig(num_hidden_layers=2, layer_types=list(types))
    config.rope_parameters = types
    assert can_be_pooled(config) is pooled
    assert switching_lengths(config) == ({ORIGINAL + 1} if settings is LONGROPE else set())
