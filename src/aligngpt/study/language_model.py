"""A small language model that knows the words of the scenes and can answer questions about descriptions.

It stands for the language model that a vision-language model starts from: it has read descriptions of every kind, right
ones and bad ones, and questions answered from descriptions, but has seen no picture. It is a Llama of two
million parameters by default: a run of the study then takes far less time than with the smallest published
models.
"""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from aligngpt.files import atomic_folder, atomic_write
from aligngpt.progress import Meter
from aligngpt.quickstart.scenes.captions import OPENINGS, Style, choose_style, write_caption
from aligngpt.quickstart.scenes.material import Material
from aligngpt.quickstart.scenes.noise import make_noise
from aligngpt.quickstart.scenes.questions import QuestionWriter
from aligngpt.quickstart.scenes.scene import Scene, SceneRules
from aligngpt.study.plan import LanguageModelPlan

BEGIN, END = "<|begin|>", "<|end|>"
STEPS_BETWEEN_CHECKPOINTS = 100
BAD_SHARE = 0.3
"""Share of the descriptions without a question that are of the bad kinds: the language model knows these too."""


def texts_of(material: Material, scenes: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """Description, question and answer of scenes that are drawn for their text alone; both empty without a question."""
    rng = random.Random(f"{seed}/language model")
    rules = SceneRules(material.things, tuple(hand.name for hand in material.hands), frozenset())
    writer = QuestionWriter(material.things)
    drawn: list[Scene] = [rules.draw(rng) for _ in range(scenes)]
    styles = [choose_style(scene, rng) for scene in drawn]
    captions = [write_caption(scene, style) for scene, style in zip(drawn, styles, strict=True)]
    bad = make_noise(drawn, captions, styles, material.things, f"{seed}/language model")
    for scene, caption, (_, wrong) in zip(drawn, captions, bad, strict=True):
        yield (wrong if rng.random() < BAD_SHARE else caption), "", ""
        # Questions need a description that tells where everything is.
        exact = write_caption(scene, Style(rng.choice(OPENINGS), places=True))
        for question in writer.write(scene, 2, rng):
            yield exact, question.text, question.answer


def prepare_scene_language_model(folder: Path, material: Material, settings: LanguageModelPlan, *, seed: int) -> Path:
    """Train the language model, or reuse the one in the folder; resumes where it was interrupted.

    Args:
        folder: of the model and its tokenizer.
        material: whose names are learnt.
        settings: size and training.
        seed: random seed of texts, initialisation and order.

    Returns:
        `folder`.
    """
    return prepare_language_model(folder, texts_of(material, settings.scenes, seed), settings, seed=seed)


def prepare_language_model(
    folder: Path, texts: Iterable[tuple[str, str, str]], settings: LanguageModelPlan, *, seed: int
) -> Path:
    """Train a language model on texts, or reuse the one in the folder; resumes where it was interrupted.

    Args:
        folder: of the model and its tokenizer.
        texts: description, question and answer; the last two are empty for a description alone. They are not read if
            the model is there.
        settings: size and training.
        seed: random seed of initialisation and order.

    Returns:
        `folder`.
    """
    if (folder / "config.json").is_file():
        return folder
    texts = list(texts)
    tokenizer = _train_tokenizer([" ".join(part for part in parts if part) for parts in texts], settings.vocabulary)
    lines = [
        f"{BEGIN}{description} {question} {answer}{END}" if question else f"{description}\n"
        for description, question, answer in texts
    ]
    random.Random(seed).shuffle(lines)
    ids = [token for line in tokenizer(lines, add_special_tokens=False)["input_ids"] for token in line]
    blocks = torch.tensor(ids[: len(ids) // settings.length * settings.length]).view(-1, settings.length)
    model = _train(blocks, tokenizer, settings, seed, folder.with_name(f"{folder.name}.checkpoint.pt"))
    with atomic_folder(folder) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    folder.with_name(f"{folder.name}.checkpoint.pt").unlink(missing_ok=True)
    return folder


def _train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=END)


def _train(
    blocks: Tensor, tokenizer: PreTrainedTokenizerFast, settings: LanguageModelPlan, seed: int, checkpoint: Path
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=settings.hidden,
            intermediate_size=settings.hidden * 8 // 3 // 8 * 8,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.steps // 20, settings.steps)
    done = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done = state["step"]
    model.train()
    with Meter("language model", settings.steps, initial=done, unit="steps") as meter:
        for step in range(done, settings.steps):
            generator = torch.Generator().manual_seed(seed * settings.steps + step)
            ids = blocks[torch.randint(len(blocks), (settings.batch,), generator=generator)]
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            meter.advance(remark=f"loss {loss.item():.3f}")
            if (step + 1) % STEPS_BETWEEN_CHECKPOINTS == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                with atomic_write(checkpoint, "wb") as file:
                    torch.save(state | {"schedule": schedule.state_dict()}, file)
    return model.eval()
