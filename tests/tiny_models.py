"""Tiny random backbones as Hugging Face folders, and models assembled from them, made once for all tests."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from PIL.ExifTags import Base
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from aligngpt.model.assembling import assemble
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor

Assembled = tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]

WORDS = """
what colour is the shape in this picture ? red green blue yellow circle square triangle a an and of on left right
how many are there one two three four yes no it big small describe please USER ASSISTANT user assistant system : . ,
""".split()  # noqa: SIM905

IMAGE_SIZE = 32
PATCH_SIZE = 8

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
GEMMA = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{{ '<start_of_turn>' + message['role'] + '\\n' + message['content'] + '<end_of_turn>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>assistant\\n' }}{%- endif -%}"
)

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "initializer_range": 0.2,
}


def build_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """`llama` adds BOS; `gemma` too, and its template writes it; `chatml` has none; `smol`'s BOS opens every turn."""
    marks = {
        "llama": ["<unk>", "<s>", "</s>"],
        "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "smol": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    }[kind]
    if kind == "chatml":  # byte-level, as Qwen's: spaces belong to the words, nothing is unknown
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHATML, **names)
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*marks, "<unk>", *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {
        "llama": {"bos_token": "<s>", "eos_token": "</s>"},
        "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        "smol": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    }[kind]
    if kind in ("llama", "gemma"):
        bos = names["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    tokenizer.add_special_tokens(marks)
    template = {"llama": None, "gemma": GEMMA, "smol": CHATML}[kind]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", chat_template=template, **names)


# family: configuration class, what differs from TEXT, tokenizer
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}, "llama"),
    "llama_tied": ("LlamaConfig", {"tie_word_embeddings": True}, "smol"),
    # Wide enough for the blocks of 64 weights that quantisation makes.
    "llama_wide": (
        "LlamaConfig",
        {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": False, "initializer_range": 0.1},
        "llama",
    ),
    # A window shorter than an image's tokens, which two layers together see past.
    "mistral": ("MistralConfig", {"sliding_window": 12}, "llama"),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}, "chatml"),
    "qwen3": ("Qwen3Config", {"head_dim": 8}, "chatml"),
    "gemma": ("GemmaConfig", {"head_dim": 8, "num_key_value_heads": 1, "hidden_act": "gelu"}, "gemma"),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
        "gemma",
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "gemma",
    ),
    "phi": ("PhiConfig", {"num_key_value_heads": 4}, "chatml"),
    "phi3": ("Phi3Config", {"pad_token_id": 0}, "llama"),
    "gpt_neox": ("GPTNeoXConfig", {}, "chatml"),
    "stablelm": ("StableLmConfig", {}, "chatml"),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}, "chatml"),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0, "embedding_multiplier": 3.0}, "chatml"),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}, "chatml"),
    "falcon_h1": (
        "FalconH1Config",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "lm_head_multiplier": 0.5},
        "chatml",
    ),
    "mamba2": (
        "Mamba2Config",
        {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16, "expand": 2},
        "chatml",
    ),
    "opt": (
        "OPTConfig",
        {"word_embed_proj_dim": 16, "ffn_dim": 48, "do_layer_norm_before": False, "pad_token_id": 0},
        "chatml",
    ),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture(scope="session")
def language_folder(folders: Path) -> Callable[[str], Path]:
    """The folder of a language model of the given family, with its tokenizer."""

    def make(family: str) -> Path:
        folder = folders / family
        if not folder.exists():
            name, changes, kind = FAMILIES[family]
            tokenizer = build_tokenizer(kind)
            special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            config_class = getattr(transformers, name)
            config = config_class(**{**TEXT, "vocab_size": len(tokenizer), **special, **changes})
            torch.manual_seed(1)
            model = transformers.AutoModelForCausalLM.from_config(config)
            if (bias := model.get_output_embeddings().bias) is not None:
                torch.nn.init.normal_(bias)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return make


def _vision_model(kind: str) -> PreTrainedModel:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    dino = {key: value for key, value in VISION.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
    configs: dict[str, Callable[[], PretrainedConfig]] = {
        "clip": lambda: transformers.CLIPVisionConfig(**VISION),
        "clip_full": lambda: transformers.CLIPConfig(vision_config=dict(VISION), text_config=text),
        "siglip": lambda: transformers.SiglipVisionConfig(**VISION),
        "siglip_full": lambda: transformers.SiglipConfig(vision_config=dict(VISION), text_config=text),
        "dinov2": lambda: transformers.Dinov2Config(**dino),
        "dinov2_registers": lambda: transformers.Dinov2WithRegistersConfig(**dino, num_register_tokens=4),
    }
    return transformers.AutoModel.from_config(configs[kind]())


@pytest.fixture(scope="session")
def tower_folder(folders: Path) -> Callable[[str], Path]:
    """The folder of a vision tower of the given kind (`…_full`: with its text tower), 4 × 4 patches of 8 px."""

    def make(kind: str) -> Path:
        folder = folders / kind
        if not folder.exists():
            torch.manual_seed(2)
            _vision_model(kind).save_pretrained(folder)
            side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
            if kind.startswith("siglip"):
                SiglipImageProcessorPil(size=side).save_pretrained(folder)
            else:
                CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def assembled(language_folder: Callable[[str], Path], tower_folder: Callable[[str], Path]) -> Callable[..., Assembled]:
    """A fresh copy of the model and processor assembled from a tower and a language model."""
    made: dict[tuple, Assembled] = {}

    def make(language: str = "llama", tower: str = "clip", **options: Any) -> Assembled:
        key = (language, tower, repr(sorted(options.items())))
        if key not in made:
            made[key] = assemble(tower_folder(tower), language_folder(language), **options)
        return deepcopy(made[key])

    return make


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Six pictures of different shapes."""
    generator = np.random.default_rng(0)
    shapes = [(32, 32), (20, 40), (48, 24), (32, 32), (64, 50), (9, 30)]
    return [Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]


@pytest.fixture
def odd_pictures(tmp_path: Path) -> list[Path]:
    """Files whose stored pixels are not what is seen: turned by EXIF, transparent, and gray with 16 bits."""
    generator = np.random.default_rng(0)
    turned, clear, gray = (tmp_path / name for name in ("turned.png", "clear.png", "gray.png"))
    orientation = Image.Exif()
    orientation[Base.Orientation] = 6
    Image.fromarray(generator.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(turned, exif=orientation)
    dark = np.full((32, 32, 4), 40, dtype=np.uint8)
    dark[:16, :, 3] = 0
    Image.fromarray(dark).save(clear)
    Image.fromarray(generator.integers(0, 65536, (32, 32), dtype=np.uint16)).save(gray)
    return [turned, clear, gray]


@pytest.fixture
def asks() -> Callable[..., list[dict[str, Any]]]:
    """A conversation: a question with some images before it, and further turns, user and assistant by turns."""

    def make(question: str, images: list[Image.Image] | int = 0, *turns: str) -> list[dict[str, Any]]:
        shown = [{"type": "image"}] * images if isinstance(images, int) else [_part(image) for image in images]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [*shown, {"type": "text", "text": question}]},
        ]
        for i, text in enumerate(turns):
            role = "user" if i % 2 else "assistant"
            messages.append({"role": role, "content": [{"type": "text", "text": text}]})
        return messages

    return make


def _part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image", "image": image}


@pytest.fixture
def batch_of(pictures: list[Image.Image]) -> Callable[..., dict[str, torch.Tensor]]:
    """A padded batch of texts; the pictures go to their `<image>` placeholders in reading order, from `start` on."""

    def make(
        processor: AlignGPTProcessor, texts: list[str], *, side: str = "left", start: int = 0
    ) -> dict[str, torch.Tensor]:
        processor.tokenizer.padding_side = side
        count = sum(text.count("<image>") for text in texts)
        images = pictures[start : start + count] or None
        return dict(processor(images=images, text=texts, padding=True, return_tensors="pt"))

    return make
