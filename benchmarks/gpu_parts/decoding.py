"""Answers by our engine and by transformers' `generate`, beside the time of reading the weights once a token.

A model of 1.2B with random weights in bfloat16, a picture and a question each, greedy, answers of one length. The time
of a step is that of the whole answer without that of the first token, by the number of further tokens.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import training
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from aligngpt.inference.engine import Engine, Request, Sampling
from aligngpt.model.assembling import assemble
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from gpu_parts.run import Run, free, peak_gib, seconds_of
from gpu_parts.training_speed import LLAMA_1B, VIT_L

BATCHES = (1, 8, 32)
QUESTION_WORDS = 24


def decoding(run: Run) -> None:
    """Measure both at each batch size, the engine first: it is what users run."""
    model, processor = build(run)
    tokens = 8 if run.rehearse else 128
    sizes = BATCHES[:2] if run.rehearse else BATCHES
    engine = Engine(model, processor, rows=max(BATCHES))
    for batch in sizes:
        for name, work in (("engine", _engine), ("generate", _generate)):
            if not run.left(15):
                run.remark(f"{name} at batch {batch}: left out, no time")
                continue
            free(run)
            run.attempt(f"{name} at batch {batch}", partial(_measure, run, engine, name, work, batch, tokens))


def build(run: Run) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """A model with random weights made on the device, and its processor."""
    text, vision = (training.SIZES["tiny"].text, training.SIZES["tiny"].vision) if run.rehearse else (LLAMA_1B, VIT_L)
    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{number}": number for number in range(3, text["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    side = vision["image_size"]
    with TemporaryDirectory() as name:
        tower, language = Path(name) / "tower", Path(name) / "language"
        special = {"bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 4096}
        LlamaConfig(**text, **special, architectures=["LlamaForCausalLM"]).save_pretrained(language)
        fast.save_pretrained(language)
        CLIPVisionConfig(**vision, architectures=["CLIPVisionModel"]).save_pretrained(tower)
        square = {"height": side, "width": side}
        CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False).save_pretrained(tower)
        # Its parameters have no values; those of its configuration's model are made where they are needed.
        planned, processor = assemble(tower, language, chat_template="bare", weights=False)
    torch.manual_seed(0)
    with run.device:
        model = AlignGPTForConditionalGeneration(planned.config)
    model.generation_config = planned.generation_config
    # An answer ends with its length alone.
    model.generation_config.eos_token_id = None
    return model.to(run.device, torch.float32 if run.rehearse else torch.bfloat16).eval(), processor


def _measure(run: Run, engine: Engine, name: str, work: Any, batch: int, tokens: int) -> None:
    model = engine.model
    requests = [_request(engine.processor, number) for number in range(batch)]
    answer = work(engine, requests)
    first = seconds_of(run, partial(answer, 1), repeats=3, warm=1)
    whole = seconds_of(run, partial(answer, tokens), repeats=3, warm=1)
    step: float | None = (whole - first) / (tokens - 1)
    if whole <= first:
        run.remark(f"{name} at batch {batch}: {tokens} tokens took no longer than one, so a step has no time")
        step = None
    text: Any = model.config.text_config
    language: Any = model.model.language_model
    weights = sum(one.nbytes for one in language.layers.parameters()) + model.lm_head.weight.nbytes
    prompt = len(engine.processor.tokenizer(_question(0))["input_ids"]) + model.config.image_seq_length
    a_key = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * model.dtype.itemsize
    read = weights + batch * a_key * (prompt + tokens / 2)
    floor = read / run.bandwidth if run.bandwidth else None
    run.add(
        by=name,
        batch=batch,
        tokens=tokens,
        ms_a_step=1e3 * step if step else None,
        tokens_s=batch / step if step else None,
        first_token_ms=1e3 * first,
        floor_ms=1e3 * floor if floor else None,
        times_floor=step / floor if step and floor else None,
        peak_gib=peak_gib(run),
    )


def _engine(engine: Engine, requests: list[Request]) -> Any:
    def answer(tokens: int) -> None:
        # A picture that was read before would otherwise not be read again.
        engine.loop.pictures._kept.clear()
        answers = engine.answer(requests, Sampling(max_new_tokens=tokens))
        if [one.tokens for one in answers] != [tokens] * len(requests):
            raise ArithmeticError(f"answers have {[one.tokens for one in answers]} tokens instead of {tokens} each")

    return answer


def _generate(engine: Engine, requests: list[Request]) -> Any:
    parts = [
        [{**part, "image": one.images[0]} if part["type"] == "image" else part for part in one.messages[0]["content"]]
        for one in requests
    ]
    inputs = engine.processor.apply_chat_template(
        [[{"role": "user", "content": content}] for content in parts],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(engine.model.device, engine.model.dtype)

    def answer(tokens: int) -> None:
        found = engine.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        if found.shape[1] - inputs["input_ids"].shape[1] != tokens:
            raise ArithmeticError(f"generate made {found.shape[1] - inputs['input_ids'].shape[1]} tokens of {tokens}")

    return answer


def _request(processor: AlignGPTProcessor, number: int) -> Request:
    side = processor.image_processor.crop_size["height"]
    pixels = torch.randint(256, (side, side, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    return Request.ask(_question(number), Image.fromarray(pixels.numpy()))


def _question(number: int) -> str:
    return " ".join(f"w{3 + (number * 37 + place * 11) % 400}" for place in range(QUESTION_WORDS))
