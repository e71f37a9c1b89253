"""Compare the engine with transformers' own `generate`: `python benchmarks/inference.py [--sizes tiny,135m]`.

Both run the same weights in one process, alternately; each ratio is of the shortest times of `--repeats` runs.

- *batch1*: one question about a picture, answered by `generate`, over the same by the engine: above 1, the engine is
  faster.
- *batch8*: eight questions about different pictures, answered one after another, over the same eight together, both by
  the engine. Above the last line stands the same for its two parts: reading (pictures and prompts, up to the first
  token) and decoding (the further tokens). On a CPU, reading can hardly gain from company: the prompts of one request
  are enough rows to keep it busy.
- *turn2*: the second turn of a conversation read from its beginning, over the same turn continued from the kept first
  one, up to the first token; the vision tower must not run then.
- *floor*: the time in which this machine reads the weights of the language model once, over the time that the engine
  takes for a further token at batch 1. Reading them is the least that a token can take, so 1 is the limit. The speed of
  memory is measured in the same run, by products of a matrix of 512 MiB with a vector.

Weights, tokens and pixels are random, answers have a fixed number of tokens, nothing is sampled. Without a tokenizer of
a real model, text takes its share of the time as that of random tokens. The last line is for programs.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from aligngpt.device import resolve_device, resolve_dtype
from aligngpt.inference.engine import Engine, Request, Sampling
from aligngpt.model.assembling import assemble

LLAMA = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    # The shape of SmolLM2-135M.
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
WORDS = {"tiny": 500, "135m": 49_150, "1b": 128_000}
TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3}
SIDE, PATCH = 224, 16
QUESTION_WORDS = 24
ONE, ONE_TOKEN = ", one token", Sampling(max_new_tokens=1)
BANDWIDTH_BYTES = 512 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="135m", help=f"comma-separated: {', '.join(LLAMA)}")
    parser.add_argument("--tokens", type=int, default=48, help="length of an answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    device = resolve_device(options.device)
    print(f"{device}, {options.precision}, {torch.get_num_threads()} threads")
    for size in options.sizes.split(","):
        with TemporaryDirectory() as folder:
            engine = build(Path(folder), size, device, resolve_dtype(options.precision, device))
            compare(engine, size, options.tokens, options.repeats)


def build(folder: Path, size: str, device: torch.device, dtype: torch.dtype) -> Engine:
    """An engine with random weights."""
    torch.manual_seed(0)
    words = [f"w{number}" for number in range(WORDS[size])]
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2} | {word: place for place, word in enumerate(words, start=3)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    language = LlamaForCausalLM(
        LlamaConfig(
            **LLAMA[size],
            vocab_size=len(fast),
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    tower = CLIPVisionModel(CLIPVisionConfig(**TOWER, image_size=SIDE, patch_size=PATCH))
    for name, part in (("language", language), ("tower", tower)):
        part.save_pretrained(folder / name)
    fast.save_pretrained(folder / "language")
    CLIPImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False).save_pretrained(folder / "tower")
    model, processor = assemble(folder / "tower", folder / "language", chat_template="bare", seed=0)
    # An answer ends with its length alone.
    model.generation_config.eos_token_id = None
    return Engine(model.to(device, dtype), processor)


def compare(engine: Engine, size: str, tokens: int, repeats: int) -> None:
    """Print the times of one size and their ratios."""
    requests = [Request.ask(_question(number), _picture(number)) for number in range(8)]
    sampling = Sampling(max_new_tokens=tokens)
    model, processor = engine.model, engine.processor
    inputs = _inputs(processor, requests[0]).to(model.device, model.dtype)
    answers = engine.answer(requests[:1], sampling)
    own = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    words = processor.tokenizer.decode(own[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    if words.strip() != answers[0].text:
        raise SystemExit("the engine and generate do not give the same answer")
    times: dict[str, list[float]] = {}
    eight = {"one after another": [[one] for one in requests], "eight together": [requests]}
    for _ in range(repeats):
        _timed(times, "generate", lambda: model.generate(**inputs, max_new_tokens=tokens, do_sample=False))
        for name, groups in ({"engine": [requests[:1]]} | eight).items():
            for end, length in (("", sampling), (ONE, ONE_TOKEN)):
                # The engine keeps the features of the latest pictures, which would spare it the tower here.
                engine.loop.pictures._kept.clear()
                _timed(times, name + end, partial(_answer_each, engine, groups, length))
    _turns(engine, times, repeats)
    text = model.model.language_model
    read = sum(parameter.nbytes for parameter in text.parameters())
    if model.lm_head.weight.data_ptr() != text.embed_tokens.weight.data_ptr():
        read += model.lm_head.weight.nbytes - text.embed_tokens.weight.nbytes
    bandwidth = _bandwidth(model.device)
    best = {name: min(found) for name, found in times.items()}
    step = (best["engine"] - best["engine" + ONE]) / (tokens - 1)
    print(f"{size}: language model {read / 1e6:.0f} MB, memory {bandwidth / 1e9:.1f} GB/s")
    for name, seconds in best.items():
        print(f"  {name}: {seconds * 1e3:.0f} ms (median {statistics.median(times[name]) * 1e3:.0f} ms)")
    print(f"  a further token at batch 1: {step * 1e3:.1f} ms, {1 / step:.0f} tokens/s")
    reading = {name: best[name + ONE] for name in eight}
    decoding = {name: best[name] - best[name + ONE] for name in eight}
    for what, found in (("reading", reading), ("decoding", decoding)):
        alone, together = found.values()
        print(f"  {what} eight: {alone * 1e3:.0f} ms one after another, {together * 1e3:.0f} ms together: ", end="")
        print(f"{alone / together:.2f}")
    print(
        f"inference batch1={best['generate'] / best['engine']:.2f} "
        f"batch8={best['one after another'] / best['eight together']:.2f} "
        f"turn2={best['turn 2 from the beginning'] / best['turn 2 continued']:.2f} "
        f"floor={read / bandwidth / step:.2f}"
    )


def _turns(engine: Engine, times: dict[str, list[float]], repeats: int) -> None:
    looked: list[int] = []
    tower = engine.model.model.vision_tower
    hook = tower.register_forward_hook(lambda *_: looked.append(1))
    for number in range(repeats):
        picture = _picture(100 + number)
        first = Request.ask(_question(number), picture)
        messages = [
            *first.messages,
            {"role": "assistant", "content": _question(50 + number)},
            {"role": "user", "content": _question(60 + number)},
        ]
        kept = Request(first.messages, (picture,), keep=True)
        engine.answer([kept], Sampling(max_new_tokens=2))
        later = Request(messages, (picture,))
        engine.loop.pictures._kept.clear()
        _timed(times, "turn 2 from the beginning", lambda later=later: engine.answer([later], ONE_TOKEN))  # type: ignore[misc]
        engine.loop.pictures._kept.clear()
        seen = len(looked)
        continued = Request(messages, (picture,), keep=True)
        _timed(times, "turn 2 continued", lambda continued=continued: engine.answer([continued], ONE_TOKEN))  # type: ignore[misc]
        if len(looked) != seen:
            raise SystemExit("the second turn read the picture again")
    hook.remove()


def _answer_each(engine: Engine, groups: Sequence[Sequence[Request]], sampling: Sampling) -> None:
    for group in groups:
        engine.answer(group, sampling)


def _timed(times: dict[str, list[float]], name: str, run: Callable[[], Any]) -> None:
    begun = time.perf_counter()
    run()
    times.setdefault(name, []).append(time.perf_counter() - begun)


def _bandwidth(device: torch.device) -> float:
    """Bytes per second of reading a large matrix once."""
    width = 4096
    matrix = torch.ones(BANDWIDTH_BYTES // 4 // width, width, device=device)
    vector = torch.ones(width, device=device)
    fastest = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        torch.mv(matrix, vector)[0].item()
        fastest = min(fastest, time.perf_counter() - begun)
    return BANDWIDTH_BYTES / fastest


def _inputs(processor: Any, request: Request) -> Any:
    (message,) = request.messages
    parts = [{**part, "image": request.images[0]} if part["type"] == "image" else part for part in message["content"]]
    return processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def _question(number: int) -> str:
    return " ".join(f"w{(number * 37 + place * 11) % 400}" for place in range(QUESTION_WORDS))


def _picture(number: int) -> Image.Image:
    pixels = torch.randint(256, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


if __name__ == "__main__":
    main()
