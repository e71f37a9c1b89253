"""The engine: an answer depends only on its conversation, a stream can be closed early, and errors say what to do."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_families import LANGUAGES, save_language
from PIL import Image
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from aligngpt.data.images.opening import open_image
from aligngpt.inference.engine import Answer, Engine, EngineError, Request, Sampling
from aligngpt.inference.generation.choosing import Chooser
from aligngpt.inference.loading import load_model
from aligngpt.model.adapters import AdapterError, merge_adapter, save_adapter
from aligngpt.model.assembling import assemble
from aligngpt.model.templates import CHATML, with_images
from aligngpt.training.recipe import LoraRecipe
from aligngpt.training.setup.freezing import freeze_all_but, trained_tensors
from aligngpt.training.setup.lora import add_lora

QUESTION = "what colour is the circle ?"
LONG = "how many big red shape are there on the left of this picture please ?"
SHORT = Sampling(max_new_tokens=8)
DRAWN = Sampling(max_new_tokens=8, temperature=1.5, seed=3)

Pictures = list[Image.Image]


@pytest.fixture
def engine(assembled: Callable) -> Engine:
    return Engine(*assembled())


@pytest.fixture
def requests(pictures: Pictures) -> list[Request]:
    return [
        Request.ask(QUESTION, pictures[0]),
        Request.ask(LONG, pictures[1]),
        Request.ask("is it the red one ?", pictures[2], pictures[3]),
        Request.ask("describe a yellow triangle please"),
    ]


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
NOT_READ = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
IN_LAST = (
    "{% set told = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}"
    "{{ (told if loop.last else '') + m['content'] + '<|im_end|>' }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "trouble"),
    [
        (NO_SYSTEM + CHATML, "cannot write these messages: no system role"),
        (NOT_READ + CHATML, "leaves out text of the system, so the model would not read it"),
        (with_images(IN_LAST), "cannot write these messages: it writes the first question otherwise"),
    ],
)
def test_a_template_that_loses_part_of_a_conversation_is_an_error(
    assembled: Callable, pictures: Pictures, template: str, trouble: str
) -> None:
    model, processor = assembled()
    processor.chat_template = template
    engine = Engine(model, processor)
    talk = [*Request.ask(QUESTION, pictures[0]).messages]
    talk += [{"role": "assistant", "content": "red"}, {"role": "user", "content": LONG}]
    system = {"role": "system", "content": "a big triangle"}
    assert engine.prompts.write(Request(talk, (pictures[0],)), 1).ids
    with pytest.raises(EngineError, match=trouble):
        engine.prompts.write(Request([system, *talk], (pictures[0],)), 1)


def test_a_template_may_leave_out_the_thoughts_of_earlier_answers(assembled: Callable) -> None:
    model, processor = assembled()
    processor.chat_template = CHATML.replace("part['text'] }}", "part['text'].split('</think>')[-1] }}")
    talk = [*Request.ask(QUESTION).messages, {"role": "assistant", "content": [_text("<think>it is</think>red")]}]
    request = Request([*talk, *Request.ask(LONG).messages])
    written = processor.tokenizer.decode(Engine(model, processor).prompts.write(request, 1).ids)
    assert "red" in written and "think" not in written


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def prompt_ids(engine: Engine, request: Request) -> list[int]:
    return engine.prompts.write(request, SHORT.max_new_tokens).ids


def rounded(answers: list[Answer]) -> list[Answer]:
    """Answers whose weights are rounded: their last digits depend on where in memory the parameters are."""
    return [
        replace(one, alignment_weights=one.alignment_weights and tuple(round(w, 5) for w in one.alignment_weights))
        for one in answers
    ]


def inputs_of(engine: Engine, request: Request) -> dict[str, Any]:
    """What `generate` takes, as a user of transformers makes it."""
    parts = iter(request.images)
    messages = [
        {
            **message,
            "content": [
                {**part, "image": next(parts)} if part["type"] == "image" else part for part in message["content"]
            ],
        }
        for message in request.messages
    ]
    return dict(
        engine.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    )


@pytest.mark.parametrize("language", ["llama", "qwen2", "mamba2"])
def test_a_batch_is_answered_as_its_requests_alone(assembled: Callable, requests: list, language: str) -> None:
    engine = Engine(*assembled(language))
    together = engine.answer(requests, SHORT)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = engine.answer([request], SHORT)
        assert (answer.text, answer.tokens, answer.stopped) == (alone.text, alone.tokens, alone.stopped)
        assert answer.alignment_weights == (alone.alignment_weights and pytest.approx(alone.alignment_weights))
    assert len({answer.text for answer in together}) > 1


@pytest.mark.parametrize("language", ["llama", "qwen2"])
@pytest.mark.parametrize("sampling", [SHORT, DRAWN], ids=["greedy", "drawn"])
def test_a_stream_joins_to_the_answer(assembled: Callable, requests: list, language: str, sampling: Sampling) -> None:
    engine = Engine(*assembled(language))
    for request in requests:
        pieces = list(engine.stream(request, sampling))
        (answer,) = engine.answer([request], sampling)
        assert "".join(pieces) == answer.text
        assert len(pieces) > 1


def test_a_stream_has_no_white_space_around_it(assembled: Callable, requests: list) -> None:
    engine = Engine(*assembled("qwen2", chat_template="plain"))
    text = " \n red  green \n"
    tokens = engine.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    script = iter([*tokens, *tokens])
    engine.model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([next(script)]), 100.0)
    )
    sampling = Sampling(max_new_tokens=len(tokens))
    (answer,) = engine.answer(requests[:1], sampling)
    assert answer.text == "red  green"
    assert "".join(engine.stream(requests[0], sampling)) == "red  green"


def test_an_answer_ends_where_the_model_ends_it(engine: Engine, requests: list) -> None:
    (cut,) = engine.answer(requests[:1], SHORT)
    assert (cut.tokens, cut.stopped) == (8, False)
    end = engine.processor.tokenizer.eos_token_id
    engine.model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([end]), 100.0)
    )
    (ended,) = engine.answer(requests[:1], SHORT)
    assert (ended.text, ended.tokens, ended.stopped) == ("", 0, True)


def test_leaving_a_stream_ends_the_generation(engine: Engine, requests: list) -> None:
    steps: list[int] = []
    engine.model.generation_config.eos_token_id = None
    engine.model.get_output_embeddings().register_forward_hook(lambda *_: steps.append(1))
    pieces = engine.stream(requests[0], Sampling(max_new_tokens=400))
    next(pieces)
    assert engine.loop.running == 1
    pieces.close()
    engine.alignment_weights(requests[:1])  # comes after the step that was under way
    engine.answer(requests[:1], Sampling(max_new_tokens=1))
    assert engine.loop.running == 0
    assert len(steps) < 400


def test_an_exception_of_the_generation_reaches_the_reader(engine: Engine, requests: list) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no memory left")

    engine.model.get_output_embeddings().register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        list(engine.stream(requests[0], SHORT))
    assert engine.loop.running == 0


def test_sampling_repeats_under_a_seed_and_draws_from_nobody_else(engine: Engine, requests: list) -> None:
    before = torch.random.get_rng_state()
    texts = [engine.answer(requests, sampling) for sampling in (DRAWN, DRAWN, Sampling(8, temperature=1.5, seed=4))]
    list(engine.stream(requests[0], DRAWN))
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0] != engine.answer(requests, SHORT)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_bit_of_a_seed_counts() -> None:
    seeds = [0, 7, -7, 2**32, 7 + 2**32, 2**62, 2**63 - 1, -(2**63)]
    logits = torch.zeros(1000)
    drawn = {tuple(map(Chooser(Sampling(temperature=1, seed=seed)).draw, [logits] * 4)) for seed in seeds}
    assert len(drawn) == len(seeds)


@pytest.mark.parametrize("temperature", [1e-40, 5e-324, 1e-5])
def test_a_temperature_too_small_to_divide_by_is_greedy(engine: Engine, requests: list, temperature: float) -> None:
    small = Sampling(max_new_tokens=8, temperature=temperature)
    assert engine.answer(requests, small) == engine.answer(requests, Sampling(max_new_tokens=8))


def test_one_stop_text_needs_no_tuple(engine: Engine, requests: list) -> None:
    assert Sampling(stop="###") == Sampling(stop=("###",))
    whole, *_ = engine.answer(requests[:1], SHORT)
    word = whole.text.split()[1]
    assert engine.answer(requests[:1], replace(SHORT, stop=word))[0].text == whole.text.partition(word)[0].strip()


def test_a_small_top_p_is_greedy(engine: Engine, requests: list) -> None:
    nearly = Sampling(max_new_tokens=8, temperature=1.5, top_p=1e-6)
    assert engine.answer(requests, nearly) == engine.answer(requests, SHORT)


def test_a_forced_level_is_the_model_s_own(engine: Engine, pictures: Pictures) -> None:
    with torch.no_grad():
        engine.model.model.alignment.levels.mul_(20)
    texts = {}
    for level in (1, engine.num_levels):
        (answer,) = engine.answer([Request.ask(QUESTION, pictures[0], level=level)], SHORT)
        assert answer.alignment_weights is None
        texts[level] = answer.text
        inputs = inputs_of(engine, Request.ask(QUESTION, pictures[0]))
        tokens = engine.model.generate(**inputs, alignment_level=torch.tensor([level]), max_new_tokens=8)
        prompt = inputs["input_ids"].shape[1]
        assert engine.processor.tokenizer.decode(tokens[0, prompt:], skip_special_tokens=True).strip() == answer.text
    assert len(set(texts.values())) == 2


@pytest.mark.parametrize("level", [0, -1, 9])
def test_a_level_the_model_does_not_have_is_refused(engine: Engine, pictures: Pictures, level: int) -> None:
    with pytest.raises(EngineError, match=rf"level {level} is not one of the model's, 1…8"):
        engine.answer([Request.ask(QUESTION, pictures[0], level=level)], SHORT)
    with pytest.raises(EngineError, match=f"level {level}"):
        list(engine.stream(Request.ask(QUESTION, pictures[0], level=level), SHORT))


def test_forced_and_free_levels_are_answered_together(engine: Engine, pictures: Pictures) -> None:
    with torch.no_grad():
        engine.model.model.alignment.levels.mul_(20)
    mixed = [Request.ask(QUESTION, pictures[0], level=level) for level in (2, None, 7)]
    together = engine.answer(mixed, SHORT)
    assert together == [engine.answer([request], SHORT)[0] for request in mixed]
    assert [answer.alignment_weights is None for answer in together] == [True, False, True]
    assert len({answer.text for answer in together}) > 1


def test_a_model_without_alignment_has_no_levels(assembled: Callable, pictures: Pictures) -> None:
    engine = Engine(*assembled(alignment="none"))
    assert engine.answer([Request.ask(QUESTION, pictures[0])], SHORT)[0].alignment_weights is None
    with pytest.raises(EngineError, match="has no alignment module"):
        engine.answer([Request.ask(QUESTION, pictures[0], level=1)], SHORT)


def test_alignment_weights_are_the_model_s_and_sum_to_one(engine: Engine, requests: list) -> None:
    weights = engine.alignment_weights(requests)
    assert weights[-1] is None
    for request, row in zip(requests[:-1], weights, strict=False):
        assert row is not None and len(row) == engine.num_levels - 1
        assert sum(row) == pytest.approx(1)
        with torch.no_grad():
            expected = engine.model(**inputs_of(engine, request)).alignment_weights[0]
        assert row == pytest.approx(expected.tolist(), abs=1e-6)
    assert [answer.alignment_weights for answer in engine.answer(requests, SHORT)] == weights


def test_a_conversation_longer_than_the_context_is_refused(engine: Engine, pictures: Pictures) -> None:
    prompt = len(prompt_ids(engine, Request.ask(QUESTION, pictures[0])))
    fits = Sampling(max_new_tokens=512 - prompt)
    engine.prompts.write(Request.ask(QUESTION, pictures[0]), fits.max_new_tokens)
    with pytest.raises(EngineError, match=rf"has {prompt} tokens .* context is 512 tokens; shorten"):
        engine.answer([Request.ask(QUESTION, pictures[0])], Sampling(max_new_tokens=fits.max_new_tokens + 1))


def test_pictures_and_their_places_must_agree(engine: Engine, pictures: Pictures) -> None:
    messages = Request.ask(QUESTION, pictures[0]).messages
    with pytest.raises(EngineError, match="placeholders for 1 images, 2 were given"):
        engine.answer([Request(messages, tuple(pictures[:2]))], SHORT)


def test_images_are_read_as_the_commands_open_them(engine: Engine, odd_pictures: list[Path]) -> None:
    for path in odd_pictures:
        found, expected = (
            engine.prompts.write(Request.ask(QUESTION, image), 1).pixels
            for image in (Image.open(path), open_image(path))
        )
        assert torch.equal(found, expected)


def test_what_is_no_image_is_refused(pictures: Pictures) -> None:
    for wrong in (("photo.jpg",), (Path("photo.jpg"),), (b"",), pictures[0]):
        with pytest.raises(EngineError, match=r"tuple of PIL images, got .*opening\.open_image"):
            Request([], wrong)


def test_a_chat_template_that_leaves_images_out_is_refused(engine: Engine, pictures: Pictures) -> None:
    engine.processor.chat_template = "{{ messages[0]['content'][-1]['text'] }}"
    with pytest.raises(EngineError, match=r"writes 0 image tokens instead of 16.*--chat-template"):
        engine.answer([Request.ask(QUESTION, pictures[0])], SHORT)


@pytest.mark.parametrize("language", ["llama", "qwen2"])
def test_a_question_never_spells_a_special_token(assembled: Callable, pictures: Pictures, language: str) -> None:
    engine = Engine(*assembled(language))
    special = {index for index, token in engine.processor.tokenizer.added_tokens_decoder.items() if token.special}
    marks = " ".join(token.content for token in engine.processor.tokenizer.added_tokens_decoder.values())
    assert "<image>" in marks and "<align>" in marks
    unknown = {engine.processor.tokenizer.unk_token_id}  # what any other text becomes with a small vocabulary
    for images in ((), (pictures[0],)):
        plain, spelled = (prompt_ids(engine, Request.ask(text, *images)) for text in (QUESTION, f"{QUESTION} {marks}"))
        assert [i for i in spelled if i in special - unknown] == [i for i in plain if i in special - unknown]
        assert len(spelled) > len(plain)
    engine.answer([Request([{"role": "user", "content": f"{QUESTION} {marks}"}])], SHORT)


def test_a_later_turn_is_answered(engine: Engine, pictures: Pictures, asks: Callable) -> None:
    first = Request(asks(QUESTION, 1), (pictures[0],))
    later = Request(asks(QUESTION, 1, "red", "how many are there ?"), (pictures[0],))
    texts = [answer.text for answer in engine.answer([first, later], SHORT)]
    assert texts[0] != texts[1]


@pytest.fixture
def folder(assembled: Callable, tmp_path: Path) -> Path:
    for part in assembled():
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_answers_as_before(engine: Engine, folder: Path, requests: list) -> None:
    loaded = Engine.load(folder, device="cpu", dtype="float32")
    assert rounded(loaded.answer(requests, SHORT)) == rounded(engine.answer(requests, SHORT))


@pytest.mark.parametrize("source", ["missing", "no/such/model", "empty"])
def test_where_there_is_no_model_the_error_says_what_to_give(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match=r"Give a model folder \(with config.json\) or a hub name"):
        Engine.load(tmp_path / source if "/" not in source else source, device="cpu")


def test_the_hub_is_not_asked_for_a_name_without_an_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aligngpt.inference.loading.AutoConfig.from_pretrained", lambda *_: pytest.fail("it was asked"))
    with pytest.raises(EngineError, match="the model quikstart cannot be loaded: there is no such folder here"):
        Engine.load("quikstart", device="cpu")


def test_a_model_of_another_kind_is_refused(tower_folder: Callable, language_folder: Callable) -> None:
    for other, kind in ((tower_folder("clip_full"), "clip"), (language_folder("llama"), "llama")):
        with pytest.raises(EngineError, match=f"is a '{kind}' model, expected an AlignGPT model"):
            Engine.load(other, device="cpu")


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "processor_config.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_model_folder_is_an_error_that_says_so(folder: Path, file: str, damage: str) -> None:
    path = folder / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:60])
    else:
        path.unlink()
    with pytest.raises(EngineError, match=r"(?s)cannot be loaded: .*(download the model again|Give a model folder)"):
        Engine.load(folder, device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"num_alignment_levels": "8"},
        {"num_alignment_levels": 8.0},
        {"alignment": "Adaptive"},
        {"vision_config": "clip"},
        {"model_type": ["aligngpt"]},
        None,
        [],
        "deep",
    ],
)
def test_a_wrong_value_in_the_configuration_is_an_error_that_says_so(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    written = json.loads(path.read_text()) | change if isinstance(change, dict) else change
    path.write_text("[" * 100_000 if change == "deep" else json.dumps(written))
    with pytest.raises(EngineError, match=r"(?s)cannot be loaded: .*download the model again"):
        Engine.load(folder, device="cpu")


def test_a_model_with_the_processor_of_another_is_refused(folder: Path) -> None:
    path = folder / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": "LlavaProcessor"}))
    with pytest.raises(EngineError, match="has a LlavaProcessor, expected an AlignGPTProcessor"):
        Engine.load(folder, device="cpu")


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "something_new"}))
    with pytest.raises(EngineError, match="something_new"):
        Engine.load(folder, device="cpu")


def test_the_advice_about_an_adapter_folder_is_the_command_that_merges_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(EngineError, match=r"write the merged model first: aligngpt merge ADAPTER --out FOLDER$"):
        Engine.load(tmp_path, device="cpu", bits=4)


@pytest.mark.parametrize("bits", [4, 8])
def test_fewer_bits_hold_the_language_model_alone(
    assembled: Callable, pictures: Pictures, folder: Path, bits: Any
) -> None:
    wide, _ = assembled("llama_wide", chat_template="plain")
    wide.save_pretrained(folder)
    full, small = (Engine.load(folder, device="cpu", dtype="float32", bits=one) for one in (None, bits))
    quantised = [name for name, module in small.model.named_modules() if "bitsandbytes" in type(module).__module__]
    assert len(quantised) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in quantised)
    if bits == 4:
        products = {small.model.get_submodule(name).compute_dtype for name in quantised}
        half = load_model(folder, device="cpu", dtype="bfloat16", bits=4)[0]
        assert (products, half.get_submodule(quantised[0]).compute_dtype) == ({torch.float32}, torch.bfloat16)
    request = Request.ask(QUESTION, pictures[0])
    # The gate reads embeddings and pictures, neither of which are quantised.
    weights = [one.answer([request], SHORT)[0].alignment_weights for one in (full, small)]
    assert weights[0] is not None and weights[0] == pytest.approx(weights[1], abs=1e-5)


def test_a_mixtures_experts_are_said_to_keep_their_precision(
    assembled: Callable, tower_folder: Callable, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide, _ = assembled("llama_wide")
    mixtral = replace(LANGUAGES["mixtral"], settings={"hidden_size": 64, "head_dim": 16})
    save_language(tmp_path / "mixtral", mixtral)
    mixture, _ = assemble(tower_folder("clip"), tmp_path / "mixtral")
    said = []
    for model in (wide, mixture):
        model.save_pretrained(folder)
        load_model(folder, device="cpu", bits=4)
        said.append(capsys.readouterr().err)
    assert "note" not in said[0]
    # Per layer 37,248 weights of experts, router and norms, and 12,288 of attention.
    assert re.search(r"note: 75% of the language model's weights .*; they are not held in 4 bits", said[1])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_gate_in_fewer_bits_still_weighs_the_levels(assembled: Callable, tmp_path: Path, bits: int) -> None:
    wide, _ = assembled("llama_wide")
    wide.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    small = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=settings, device_map={"": "cpu"})
    gate = small.model.alignment
    assert not gate.gate[0].weight.is_floating_point()
    weights = gate.gate_weights(torch.randn(3, gate.gate_grid**2))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_folder_answers_as_the_model_it_is_merged_to(
    assembled: Callable, requests: list, tmp_path: Path, dtype: str
) -> None:
    model, processor = assembled()
    base, adapter, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    for part in (model, processor):
        part.save_pretrained(base)
    adapter.mkdir()
    settings = LoraRecipe(rank=2)
    changed, _ = assembled()
    add_lora(changed, settings, seed=0)
    freeze_all_but(changed, ("language_model", "projector"))
    trained = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in trained_tensors(changed).items()}
    save_adapter(adapter, model, processor, trained, base_folder=base, rank=2, alpha=settings.alpha, dropout=0.0)
    merge_adapter(adapter, merged)
    of_adapter, of_merged, of_base = (Engine.load(one, device="cpu", dtype=dtype) for one in (adapter, merged, base))
    assert of_adapter.model.dtype == of_merged.model.dtype == getattr(torch, dtype)
    answers = [rounded(one.answer(requests, SHORT)) for one in (of_adapter, of_merged, of_base)]
    assert answers[0] == answers[1] != answers[2]
    base.rename(tmp_path / "moved")
    with pytest.raises(AdapterError, match=r"the base .*base of the adapter .*adapter cannot be loaded"):
        Engine.load(adapter, device="cpu")
    named = Engine.load(adapter, base=tmp_path / "moved", device="cpu", dtype=dtype)
    assert rounded(named.answer(requests, SHORT)) == answers[1]
    with pytest.raises(EngineError, match="merged is not an adapter folder and has no base; leave --base out"):
        Engine.load(merged, base=tmp_path / "moved", device="cpu")


def test_greedy_is_greedy_whatever_the_model_would_do_by_itself(engine: Engine, requests: list) -> None:
    expected = engine.answer(requests, SHORT)
    engine.model.generation_config.update(do_sample=True, temperature=3.0, top_k=100)
    assert engine.answer(requests, SHORT) == expected
