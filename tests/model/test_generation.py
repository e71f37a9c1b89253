"""Generation: the gate reads the prompt once, and an answer does not depend on batch, beams or cache."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from aligngpt.model.modeling import AlignGPTForConditionalGeneration

ONE = "USER : <image> what colour is the circle ? ASSISTANT :"
LONG = "USER : <image> how many big red shape are there on the left of this picture please ? ASSISTANT :"
TWO = "USER : <image> <image> is it the red one ? ASSISTANT :"
NONE = "USER : describe a yellow triangle please ASSISTANT :"
TEXTS = [ONE, LONG, TWO, NONE]
FIRST_IMAGE = [0, 1, 2, 4]

Batch = dict[str, Tensor]
# Tiny random models end answers at random: all get the same length.
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}


def answers(model: AlignGPTForConditionalGeneration, batch: Batch, **options: Any) -> Tensor:
    return model.generate(**batch, **(GREEDY | options))[:, batch["input_ids"].shape[1] :]


def watch_gate(model: AlignGPTForConditionalGeneration) -> list[Tensor]:
    """Record the weights of every run of the alignment module from now on."""
    seen: list[Tensor] = []
    model.model.alignment.register_forward_hook(lambda module, inputs, output: seen.append(output.weights))
    return seen


def test_greedy_takes_the_most_likely_token_each_time(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE])
    forbidden = model.generation_config.eos_token_id
    ids = batch["input_ids"]
    prompt = ids.shape[1]
    for _ in range(8):
        with torch.no_grad():
            instruction = (torch.arange(ids.shape[1]) < prompt).unsqueeze(0)
            out = model(input_ids=ids, pixel_values=batch["pixel_values"], instruction_mask=instruction)
        scores = out.logits[0, -1]
        scores[forbidden] = -torch.inf
        ids = torch.cat([ids, scores.argmax().reshape(1, 1)], dim=1)
    assert torch.equal(answers(model, batch), ids[:, -8:])


def test_sampling_repeats_under_a_seed(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, TEXTS)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(answers(model, batch, do_sample=True))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("language", "beams"),
    [("llama", 1), ("mistral", 1), ("qwen3", 1), ("gemma3", 1), ("falcon_h1", 1), ("mamba2", 1), ("llama", 3)],
)
def test_a_batch_answers_as_its_samples_do_alone(
    assembled: Callable, batch_of: Callable, language: str, beams: int
) -> None:
    model, processor = assembled(language, chat_template="plain")
    together = answers(model, batch_of(processor, TEXTS), num_beams=beams)
    for row, (text, start) in enumerate(zip(TEXTS, FIRST_IMAGE, strict=True)):
        single = answers(model, batch_of(processor, [text], start=start), num_beams=beams)
        assert torch.equal(together[row], single[0])


def test_beams_find_what_the_scores_say(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, TEXTS)

    def likelihood(tokens: Tensor) -> Tensor:
        ids = torch.cat([batch["input_ids"], tokens], dim=1)
        mask = torch.cat([batch["attention_mask"], torch.ones_like(tokens)], dim=1)
        instruction = (torch.arange(ids.shape[1]) < batch["input_ids"].shape[1]).expand(len(ids), -1)
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                pixel_values=batch["pixel_values"],
                instruction_mask=instruction,
                logits_to_keep=9,
            ).logits
        return logits[:, :-1].log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).sum(dim=(1, 2))

    out = model.generate(
        **batch, **GREEDY, num_beams=4, length_penalty=0.0, output_scores=True, return_dict_in_generate=True
    )
    found = out.sequences[:, batch["input_ids"].shape[1] :]
    torch.testing.assert_close(out.sequences_scores, likelihood(found), rtol=1e-4, atol=1e-4)
    assert (likelihood(found) >= likelihood(answers(model, batch)) - 1e-4).all()


def test_several_answers_of_a_prompt_keep_its_images(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, TEXTS)
    several = answers(model, batch, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(several, answers(model, batch).repeat_interleave(2, dim=0))


@pytest.mark.parametrize("language", ["llama", "mistral", "gemma2", "gemma3"])
def test_a_static_cache_changes_nothing(assembled: Callable, batch_of: Callable, language: str) -> None:
    model, processor = assembled(language, chat_template="plain")
    batch = batch_of(processor, TEXTS)
    expected = answers(model, batch)
    static = answers(model, batch, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, expected)


@pytest.mark.parametrize("language", ["llama", "mistral", "gemma2", "gemma3", "falcon_h1", "mamba2"])
@pytest.mark.parametrize("text_pooling", ["instruction", "all"])
def test_without_a_cache_the_gate_still_reads_the_prompt_alone(
    assembled: Callable, batch_of: Callable, language: str, text_pooling: str
) -> None:
    model, processor = assembled(language, chat_template="plain", text_pooling=text_pooling)
    batch = batch_of(processor, [ONE, LONG])
    cached = answers(model, batch)
    seen = watch_gate(model)
    uncached = answers(model, batch, use_cache=False)
    assert torch.equal(uncached, cached)
    assert len(seen) == 1
    torch.testing.assert_close(model(**batch).alignment_weights, seen[0])


def test_with_a_cache_the_gate_runs_once(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, TEXTS)
    seen = watch_gate(model)
    answers(model, batch)
    assert len(seen) == 1


def test_all_pooling_reads_a_whole_conversation(assembled: Callable, batch_of: Callable) -> None:
    text = ONE + " red USER : how many are there ? ASSISTANT :"
    for text_pooling in ("instruction", "all"):
        model, processor = assembled(text_pooling=text_pooling)
        batch = batch_of(processor, [text])
        first = torch.zeros_like(batch["input_ids"])
        first[:, : batch_of(processor, [ONE])["input_ids"].shape[1]] = 1
        seen = watch_gate(model)
        answers(model, batch, instruction_mask=first)
        answers(model, batch)
        assert torch.allclose(seen[0], seen[1], atol=1e-6) == (text_pooling == "all")


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}])
def test_placeholders_are_never_generated(assembled: Callable, batch_of: Callable, options: dict) -> None:
    model, processor = assembled("phi", chat_template="plain")
    placeholders = [model.config.image_token_index, model.config.align_token_index]
    with torch.no_grad():
        model.lm_head.bias[placeholders] = 100.0
    batch = batch_of(processor, [ONE, NONE])
    assert torch.isneginf(model(**batch).logits[..., placeholders]).all()
    assert not torch.isin(answers(model, batch, **options), torch.tensor(placeholders)).any()


def test_the_image_and_the_level_change_the_answer(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE] * 4)
    batch["pixel_values"] = 5 * batch["pixel_values"]
    free = answers(model, batch)
    assert len({tuple(row) for row in free.tolist()}) > 1
    same_image = batch | {"pixel_values": batch["pixel_values"][:1].repeat(4, 1, 1, 1)}
    with torch.no_grad():
        model.model.alignment.levels.mul_(20)
    forced = answers(model, same_image, alignment_level=torch.tensor([1, 3, 6, 8]))
    assert len({tuple(row) for row in forced.tolist()}) > 1
    one = {name: tensor[1:2] for name, tensor in same_image.items()}
    assert torch.equal(answers(model, one, alignment_level=torch.tensor([3]))[0], forced[1])
    assert torch.equal(answers(model, same_image, alignment_level=3), forced[1].expand(4, -1))


def test_generation_stops_at_the_end_of_a_turn(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled("qwen2")
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in model.generation_config.eos_token_id
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([end]), 100.0)
    )
    batch = batch_of(processor, [ONE])
    assert answers(model, batch, min_new_tokens=None).tolist() == [[end]]


def test_the_prompt_can_be_given_by_position(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE, LONG])
    expected = answers(model, batch, use_cache=False)
    ids = batch.pop("input_ids")
    found = model.generate(ids, **batch, **GREEDY, use_cache=False)
    assert torch.equal(found[:, ids.shape[1] :], expected)


def test_a_recurrent_state_rules_out_assisted_decoding(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled("mamba2", chat_template="plain")
    assert model._is_stateful
    with pytest.raises(ValueError, match="stateful"):
        answers(model, batch_of(processor, [ONE]), prompt_lookup_num_tokens=2)
    model, processor = assembled("llama")
    batch = batch_of(processor, [ONE])
    assert torch.equal(answers(model, batch, prompt_lookup_num_tokens=2), answers(model, batch))


@pytest.mark.parametrize("chunk", [5, 16, 21])
def test_a_prompt_read_in_parts_is_answered_the_same(assembled: Callable, batch_of: Callable, chunk: int) -> None:
    model, processor = assembled()
    batch = batch_of(processor, TEXTS)
    seen = watch_gate(model)
    assert torch.equal(answers(model, batch, prefill_chunk_size=chunk), answers(model, batch))
    assert len(seen) == 2


def test_a_conversation_goes_on_from_its_cache(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    first = batch_of(processor, [ONE])
    out = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    # The last token was generated but not yet read.
    said = out.sequences
    asked = processor.tokenizer(" USER : how many are there ? ASSISTANT :", add_special_tokens=False)["input_ids"]
    ids = torch.cat([said, torch.tensor([asked])], dim=1)
    seen = watch_gate(model)
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), cache=out.cache, **GREEDY)
    assert not seen
    instruction = (torch.arange(ids.shape[1]) < first["input_ids"].shape[1]).unsqueeze(0)
    whole = {"input_ids": ids, "pixel_values": first["pixel_values"], "instruction_mask": instruction}
    assert torch.equal(found, model.generate(**whole, **GREEDY))
    assert len(seen) == 1


def test_the_old_name_of_the_cache_is_understood(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, [ONE])
    cache = transformers.DynamicCache()
    with pytest.warns(FutureWarning, match="past_key_values"):
        model(**batch, past_key_values=cache)
    assert cache.get_seq_length() == batch["input_ids"].shape[1]


def test_embeddings_can_be_the_prompt(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, TEXTS)
    expected = answers(model, batch)
    embeds = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    assert torch.equal(model.generate(inputs_embeds=embeds, **batch, **GREEDY), expected)
