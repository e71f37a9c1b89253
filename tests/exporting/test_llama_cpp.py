"""llama.cpp gives the same greedy ids as the model, with pictures and without.

It runs in a Python of its own, with the package `xllamacpp`, which the variable `XLLAMACPP_PYTHON` names:

    python -m venv elsewhere && elsewhere/bin/pip install xllamacpp==2026.10.11549
    XLLAMACPP_PYTHON=elsewhere/bin/python pytest -s tests/exporting/test_llama_cpp.py
"""

import base64
import io
import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from aligngpt.exporting.gguf.export import export_gguf
from aligngpt.inference.engine import Engine
from aligngpt.model.assembling import assemble
from aligngpt.quickstart.backbones import prepare_language_model

PYTHON = os.environ.get("XLLAMACPP_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="XLLAMACPP_PYTHON names no Python with xllamacpp"),
]

SIDE, LEVEL, NEW_TOKENS = 64, 3, 12
NEAR = 0.05
"""Two tokens whose logits are nearer than this count as a tie: llama.cpp looks GELU up in a table of half precision."""

# As exact as llama.cpp gets: F32 throughout, no flash attention.
SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.mmproj.path = sys.argv[1:3]
params.n_ctx, params.n_parallel, params.warmup, params.port = 2048, 1, False, 0
# More threads than free cores wait for each other.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""

QUESTIONS = [
    "What is the capital of France?",
    "Describe the picture in one sentence.",
    "What colour is it?\nAnswer with one word.",
    "Is there a dog? Say <image> or <|im_end|> if you cannot see one.",
    "How many circles are there, 12345 or 3?",
    "Write  a list:\n- one\n- two",
    "¿Qué es esto? 😀",
    "Why is the sky blue?",
]

Ask = Callable[..., Any]


def pictures() -> list[Image.Image]:
    """Squares: four of the tower's size, two that are resized."""
    dice = np.random.default_rng(0)
    made = [Image.linear_gradient("L").rotate(turn).convert("RGB").resize((SIDE, SIDE)) for turn in (0, 90)]
    made += [Image.new("RGB", (SIDE, SIDE), "red")]
    for side in (SIDE, 2 * SIDE + 22, SIDE - 15):
        made.append(Image.fromarray(dice.integers(0, 256, (side, side, 3), dtype=np.uint8)))
    return made


def conversations() -> list[tuple[list[dict[str, Any]], list[Image.Image]]]:
    """Questions without a picture, with one before the text, and with two, one of them after the text."""
    shown, made = pictures(), []
    for number, question in enumerate(QUESTIONS):
        text = {"type": "text", "text": question}
        made.append(([text], []))
        for image in (shown[number % 6], shown[(number + 3) % 6]):
            made.append(([{"type": "image"}, text], [image]))
    first, second = shown[0], shown[3]
    made.append(([{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare them."}], [first, second]))
    made.append(([{"type": "text", "text": "What is it?"}, {"type": "image"}], [second]))
    between = [{"type": "text", "text": "Is"}, {"type": "image"}, {"type": "text", "text": "like"}, {"type": "image"}]
    made.append((between, [first, second]))
    return [([{"role": "user", "content": content}], images) for content, images in made]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M with a small SigLIP tower; the tower, the projector and the levels have random values."""
    place = tmp_path_factory.mktemp("llama_cpp")
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=16,
    )
    transformers.AutoModel.from_config(config).save_pretrained(place / "tower")
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(place / "tower")
    model, processor = assemble(place / "tower", prepare_language_model(place / "cache"))
    with torch.no_grad():
        # As large as the words' embeddings, so that pictures and levels change the answers.
        model.model.multi_modal_projector.linear_2.weight *= 3
        model.model.alignment.levels.normal_(std=model.get_input_embeddings().weight.std().item())
    for part in (model.float(), processor):
        part.save_pretrained(place / "model")
    return place / "model"


@pytest.fixture(scope="module")
def ask(model_folder: Path) -> Iterator[Ask]:
    """Posts to a llama.cpp server that runs the exported model; GET if there is nothing to post."""
    out = model_folder.parent / "gguf"
    export_gguf(model_folder, out, chosen=f"level:{LEVEL}", stored="f32", square_images=True)
    assert PYTHON is not None
    command = [PYTHON, "-c", SERVER, str(out / "model.gguf"), str(out / "mmproj.gguf")]
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_MEDIA_MARKER"}
    with (
        open(model_folder.parent / "log", "w") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as server,
    ):
        assert server.stdout is not None
        address = next((line.strip() for line in server.stdout if line.startswith("http")), None)
        assert address, (model_folder.parent / "log").read_text()[-2000:]

        def post(path: str, body: Any = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)

        yield post
        server.kill()


def data_of(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def as_openai(messages: list[dict[str, Any]], images: list[Image.Image]) -> list[dict[str, Any]]:
    left = iter(images)
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + data_of(next(left))}}
        if part["type"] == "image"
        else part
        for part in messages[0]["content"]
    ]
    return [{"role": "user", "content": content}]


def answer_of_ours(engine: Engine, text: str, images: list[Image.Image]) -> tuple[list[int], list[float], list[int]]:
    """Greedy ids, the gap between the two best logits at each, and the ids of the prompt."""
    inputs = engine.processor(images=images or None, text=[text], return_tensors="pt")
    level = {"alignment_level": torch.tensor([LEVEL])} if images else {}
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    done = engine.model.generate(**inputs, **level, **options)
    best = torch.stack(done.scores)[:, 0].float().topk(2, dim=-1).values
    prompt = inputs["input_ids"][0].tolist()
    return done.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist(), prompt


def test_the_same_greedy_ids_but_for_ties(model_folder: Path, ask: Ask) -> None:
    engine = Engine.load(model_folder, device="cpu", dtype="float32")
    processor = engine.processor
    ends = set(engine.model.generation_config.eos_token_id)
    marker = ask("/props")["media_marker"]
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    same, ties, wrong, answers = 0, [], [], set()
    asked = conversations()
    for messages, images in asked:
        text = processor.apply_chat_template(processor.neutral(messages), tokenize=False, add_generation_prompt=True)
        expected, gaps, prompt = answer_of_ours(engine, text, images)
        rendered = ask("/apply-template", {"messages": as_openai(messages, images)})["prompt"]
        pieces = [
            ask("/tokenize", {"content": piece, "add_special": False, "parse_special": True})["tokens"]
            for piece in rendered.split(marker)
        ]
        assert len(pieces) == 1 + len(images)
        shown = [image_token] * processor.image_seq_length
        assert [*pieces[0], *(number for piece in pieces[1:] for number in (*shown, *piece))] == prompt
        body = {"prompt": {"prompt_string": rendered, "multimodal_data": [data_of(image) for image in images]}}
        options = {"n_predict": NEW_TOKENS, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        answer = ask("/completion", body | options)
        # llama.cpp counts the prompt after adding BOS and the like: nothing was added.
        assert answer["tokens_evaluated"] == len(prompt)
        found, wanted = ([number for number in ids if number not in ends] for ids in (answer["tokens"], expected))
        answers.add((bool(images), tuple(wanted)))
        if found == wanted:
            same += 1
            continue
        place = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
        place = min(len(found), len(wanted)) if place is None else place
        where = f"{messages[0]['content']!r}, {[image.size for image in images]}, token {place}, gap {gaps[place]:.2g}"
        (ties if gaps[place] < NEAR else wrong).append(where)
    print(f"\n{same}/{len(asked)} equal; {len(ties)} differ at ties: {ties}; {len(wrong)} elsewhere: {wrong}")
    assert not wrong
    assert same >= len(asked) - 3
    # The answers depend on what was asked and shown.
    assert len(answers) > len(QUESTIONS) + 2


def test_a_chat_completion_is_the_same_text(model_folder: Path, ask: Ask) -> None:
    """The way that clients take: the server's own template, media and stop handling."""
    engine = Engine.load(model_folder, device="cpu", dtype="float32")
    same = 0
    for messages, images in conversations()[:6]:
        processor = engine.processor
        text = processor.apply_chat_template(processor.neutral(messages), tokenize=False, add_generation_prompt=True)
        ids, _, prompt = answer_of_ours(engine, text, images)
        body = {"messages": as_openai(messages, images), "max_tokens": NEW_TOKENS, "temperature": 0}
        answer = ask("/v1/chat/completions", body)
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        expected = processor.decode(ids, skip_special_tokens=True)
        same += answer["choices"][0]["message"]["content"].strip() == expected.strip()
    assert same >= 5
