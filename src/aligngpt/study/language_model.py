"""A small language model that knows the words of the scenes and can answer questions about descriptions.

It stands for the language model that a vision-language model starts from: it has read descriptions of every kind, right
ones and bad ones, and questions answered from descriptions, but has seen no picture. It is a Llama of two
million parameters by default: a run of the study then takes far less time than with the smallest published
models.

What takes such a model longest is looking something up in its context. So some of the texts repeat a description, or
tell the same places in another order, which gives it many things to look up in few tokens. Others give a list of what
is where, and then a description or questions: only a model that reads what comes before a description has a use for
the image tokens that come before a caption.
"""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

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
NOT_LEARNT = -100
WEIGHT_DECAY = 0.01
BAD_SHARE = 0.3
"""Share of the descriptions without a question that are of the bad kinds: the language model knows these too."""

QUESTIONS_OF_A_SCENE = 8


class Text(NamedTuple):
    """A text that the language model reads.

    Attributes:
        given: a description or a list; learnt if nothing is told about it.
        told: what is told about it, one after another; of each, what is given and what is learnt.
    """

    given: str
    told: tuple[tuple[str, str], ...] = ()


def texts_of(material: Material, scenes: int, seed: int) -> Iterator[Text]:
    """Six texts about each of so many scenes, which are drawn for their text alone.

    A description, right or bad. About a description of all places: questions with answers, the same places in another
    order, and the description again. About a list of all places: a description, and questions with answers.
    """
    rng = random.Random(f"{seed}/language model")
    rules = SceneRules(material.things, tuple(hand.name for hand in material.hands), frozenset())
    writer = QuestionWriter(material.things)
    drawn: list[Scene] = [rules.draw(rng) for _ in range(scenes)]
    styles = [choose_style(scene, rng) for scene in drawn]
    captions = [write_caption(scene, style) for scene, style in zip(drawn, styles, strict=True)]
    bad = make_noise(drawn, captions, styles, material.things, f"{seed}/language model")

    def asked(scene: Scene) -> tuple[tuple[str, str], ...]:
        questions = writer.write(scene, QUESTIONS_OF_A_SCENE, rng)
        return tuple((f" {question.text}", f" {question.answer}{END}") for question in questions)

    for scene, caption, (_, wrong) in zip(drawn, captions, bad, strict=True):
        yield Text(wrong if rng.random() < BAD_SHARE else caption)
        # Questions need a description that tells where everything is.
        exact = write_caption(scene, Style(rng.choice(OPENINGS), places=True))
        yield Text(exact, asked(scene))
        yield Text(exact, (("", f" {_list_of_places(scene, rng)}{END}"),))
        yield Text(exact, (("", f" {exact}{END}"),))
        yield Text(_list_of_places(scene, rng), (("\n", f"{caption}\n"),))
        yield Text(_list_of_places(scene, rng), asked(scene))


def _list_of_places(scene: Scene, rng: random.Random) -> str:
    """The things of a scene in random order, each after its place or before it."""
    cells = rng.sample(scene.occupied, len(scene.occupied))
    named = [(scene.place(cell), thing.name) for cell in cells if (thing := scene.cells[cell]) is not None]
    first = rng.randrange(2)
    return ", ".join(f"{pair[first]}: {pair[1 - first]}" for pair in named)


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


def prepare_language_model(folder: Path, texts: Iterable[Text], settings: LanguageModelPlan, *, seed: int) -> Path:
    """Train a language model on texts, or reuse the one in the folder; resumes where it was interrupted.

    Args:
        folder: of the model and its tokenizer.
        texts: what it reads; not read here if the model is there.
        settings: size and training.
        seed: random seed of initialisation and order.

    Returns:
        `folder`.
    """
    if (folder / "config.json").is_file():
        return folder
    texts = list(texts)
    tokenizer = _train_tokenizer([part for text in texts for part in _words_of(text)], settings.vocabulary)
    random.Random(seed).shuffle(texts)
    ids, labels = _tokens_of(texts, tokenizer, settings.length)
    model = _train(ids, labels, tokenizer, settings, seed, folder.with_name(f"{folder.name}.checkpoint.pt"))
    with atomic_folder(folder) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    folder.with_name(f"{folder.name}.checkpoint.pt").unlink(missing_ok=True)
    return folder


def _words_of(text: Text) -> list[str]:
    return [text.given, *(part.replace(END, "") for pair in text.told for part in pair)]


def _tokens_of(texts: Iterable[Text], tokenizer: PreTrainedTokenizerFast, length: int) -> tuple[Tensor, Tensor]:
    """All texts one after another in rows, and the tokens that are learnt of them, `(rows, length)` each."""
    parts: list[str] = []
    learnt: list[bool] = []
    for text in texts:
        parts.append(BEGIN + text.given if text.told else f"{BEGIN}{text.given}\n")
        learnt.append(not text.told)
        for given, told in text.told:
            parts += [given, told]
            learnt += [False, True]
    encoded = tokenizer(parts, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([token for part in encoded for token in part])
    counted = torch.tensor([known for part, known in zip(encoded, learnt, strict=True) for _ in part])
    rows = len(ids) // length
    labels = torch.where(counted, ids, NOT_LEARNT)
    return ids[: rows * length].view(rows, length), labels[: rows * length].view(rows, length)


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
    ids: Tensor,
    labels: Tensor,
    tokenizer: PreTrainedTokenizerFast,
    settings: LanguageModelPlan,
    seed: int,
    checkpoint: Path,
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
    optimizers = _optimizers(model, settings)
    schedules = [get_cosine_schedule_with_warmup(one, settings.steps // 20, settings.steps) for one in optimizers]
    done = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for name, parts in (("optimizers", optimizers), ("schedules", schedules)):
            for part, saved in zip(parts, state[name], strict=True):
                part.load_state_dict(saved)
        done = state["step"]
    model.train()
    with Meter("language model", settings.steps, initial=done, unit="steps") as meter:
        for step in range(done, settings.steps):
            generator = torch.Generator().manual_seed(seed * settings.steps + step)
            rows = torch.randint(len(ids), (settings.batch,), generator=generator)
            loss = model(input_ids=ids[rows], labels=labels[rows]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for part in (*optimizers, *schedules):
                part.step()
            model.zero_grad()
            meter.advance(remark=f"loss {loss.item():.3f}")
            if (step + 1) % STEPS_BETWEEN_CHECKPOINTS == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizers": [one.state_dict() for one in optimizers],
                    "schedules": [one.state_dict() for one in schedules],
                    "step": step + 1,
                }
                with atomic_write(checkpoint, "wb") as file:
                    torch.save(state, file)
    return model.eval()


def _optimizers(model: LlamaForCausalLM, settings: LanguageModelPlan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_learning_rate, momentum=0.95, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, settings.learning_rate, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY),
    ]
