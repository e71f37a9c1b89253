"""Compare training speed with plain transformers: `python benchmarks/training.py [--sizes tiny,60m,135m]`.

Two implementations run the same optimiser steps alternately in one process, and each printed line compares them:

- *baseline*: transformers' `LlavaForConditionalGeneration` with the usual collator. One sample per row in random
  order, padded to the longest of its micro-batch; an image is encoded again for every row that contains it; logits and
  loss at every position. It keeps no key-value cache, which would only slow it down.
- *ours*: `AlignGPTForConditionalGeneration` through the functions of a training run. Questions about one image share a
  row (`rows_of`, `Collator`), rows are grouped by length as in `StageTrainer`, and the model computes logits only for
  tokens that count.

A step consists of forward and backward passes over the same samples in the same number of micro-batches, with the loss
summed over all tokens that count and divided by their number, clipping and fused AdamW. Initial weights, trained
parameters (pretrain, stage 1: projector; instruct, stage 2: projector and language model), precision and attention are
the same. `speedup` is the baseline's median step time over ours, `memory_ratio` our memory over the baseline's, each
measured in a separate process and without the model as built, and `loss_diff` the largest relative difference between
the losses of a step.

Not compared: models have `alignment: none`, since LLaVA has no gate, so the cost of the gate is excluded (as is its
reading all questions of a row together, the only thing that keeps ours from being exact); weights, tokens and pixels
are random; no reading or resizing of images, no tokenizer, no logging or checkpoints; one device. A real run has more
image tokens (576 in LLaVA-1.5), so that sharing them saves more than it does here.

Samples: in stage 1, captions of 10 to 40 tokens, one per image. In stage 2, a quarter is text only; the rest are 1 to
10 questions per image, of 8 to 40 tokens; answers have 20 to 300 tokens, and short ones are more frequent.
"""

import argparse
import math
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from aligngpt.data.batches.collate import Collator, common_prefix
from aligngpt.data.batches.examples import Example, Row
from aligngpt.data.batches.rows import rows_of
from aligngpt.data.records.sample import Sample
from aligngpt.device import peak_memory, reset_peak_memory, resolve_device, resolve_dtype
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.modeling import IGNORE_INDEX, AlignGPTForConditionalGeneration
from aligngpt.model.packing.attention import NAME as PACKED_ATTENTION
from aligngpt.training.feed.sampler import balanced_parts
from aligngpt.training.recipe import Part
from aligngpt.training.setup.freezing import freeze_all_but, hold_frozen_in

PAD, BOS, EOS, IMAGE, FIRST_WORD = 0, 1, 2, 3, 4
LEARNING_RATES = {1: 1e-3, 2: 2e-5}
TRAINED: dict[int, tuple[Part, ...]] = {1: ("projector", "level_table"), 2: ("language_model", "projector", "gate")}
SIDES = ("baseline", "ours")
CAPTION, QUESTION, ANSWER = (10, 40), (8, 40), (20, 300)
QUESTIONS_AN_IMAGE = (1, 10)
TEXT_ONLY = 0.25
WARM_UP_STEPS = 1

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """A model's shape and the amount of data it trains on.

    Attributes:
        text, vision: arguments of `LlamaConfig` and `CLIPVisionConfig`.
        samples: samples per optimiser step, unless set on the command line.
        micro_batch: samples per forward pass; an average for rows with several samples.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    samples: int
    micro_batch: int

    @property
    def image_tokens(self) -> int:
        """Number of tokens per image in the text."""
        return (self.vision["image_size"] // self.vision["patch_size"]) ** 2


VIT_SMALL = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 112,
    "patch_size": 14,
}
SIZES = {
    "tiny": Size(
        text={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": 512,
        },
        vision={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        samples=64,
        micro_batch=16,
    ),
    "60m": Size(
        text={
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "vocab_size": 32_000,
        },
        vision=VIT_SMALL,
        samples=24,
        micro_batch=8,
    ),
    # SmolLM2-135M, whose output layer is its embedding table.
    "135m": Size(
        text={
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49_152,
            "tie_word_embeddings": True,
        },
        vision=VIT_SMALL,
        samples=8,
        micro_batch=4,
    ),
}


@dataclass(frozen=True)
class Work:
    """The work of both sides: the samples of an optimiser step, in the project's own data types.

    Attributes:
        size: shape of the model.
        stage: 1 or 2.
        samples: samples with image names but no texts; they determine what can share a row.
        examples: the same samples as model inputs.
        questions_per_prefix: maximum number of samples that ours puts in one row.
    """

    size: Size
    stage: int
    samples: list[Sample]
    examples: list[Example]
    questions_per_prefix: int

    @property
    def micro_batches(self) -> int:
        """Forward passes per step, the same number on both sides."""
        return math.ceil(len(self.examples) / self.size.micro_batch)


def draw_work(size: Size, stage: int, count: int, questions_per_prefix: int, seed: int = 0) -> Work:
    """Draw the `count` samples of a step."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    side = size.vision["image_size"]

    def words(bounds: tuple[int, int]) -> list[int]:
        """Random words, log-uniform in number: most answers are short, as in LLaVA's training mixture."""
        low, high = bounds
        number = round(low * (high / low) ** draw.random())
        return [draw.randrange(FIRST_WORD, size.text["vocab_size"]) for _ in range(number)]

    samples: list[Sample] = []
    examples: list[Example] = []

    def add(image: str | None, pixels: Tensor | None) -> None:
        question = [] if stage == 1 else words(QUESTION)
        prompt = [BOS, *([IMAGE] * size.image_tokens if image else []), *question]
        answer = [*words(CAPTION if stage == 1 else ANSWER), EOS]
        labels = [IGNORE_INDEX] * len(prompt) + answer
        samples.append(Sample(id=str(len(samples)), turns=(), images=(image,) if image else ()))
        examples.append(Example(prompt + answer, labels, pixels, None))

    with_images = count if stage == 1 else count - round(TEXT_ONLY * count)
    while len(samples) < with_images:
        name = f"image {len(samples)}"
        pixels = torch.randn(1, 3, side, side, generator=generator)
        questions = 1 if stage == 1 else draw.randint(*QUESTIONS_AN_IMAGE)
        for _ in range(min(questions, with_images - len(samples))):
            add(name, pixels)
    while len(samples) < count:
        add(None, None)
    return Work(size, stage, samples, examples, questions_per_prefix if stage == 2 else 1)


def padded_batches(work: Work, step: int) -> Iterator[Batch]:
    """The baseline's micro-batches: samples in random order, one per row."""
    order = list(range(len(work.examples)))
    random.Random(step).shuffle(order)
    for start in range(0, len(order), work.size.micro_batch):
        members = [work.examples[place] for place in order[start : start + work.size.micro_batch]]
        length = max(len(one.input_ids) for one in members)

        def padded(values: list[list[int]], value: int, length: int = length) -> Tensor:
            return torch.tensor([row + [value] * (length - len(row)) for row in values])

        batch = {
            "input_ids": padded([one.input_ids for one in members], PAD),
            "labels": padded([one.labels for one in members], IGNORE_INDEX),
            "attention_mask": padded([[1] * len(one.input_ids) for one in members], 0),
        }
        pixels = [one.pixel_values for one in members if one.pixel_values is not None]
        if pixels:
            batch["pixel_values"] = torch.cat(pixels)
        yield batch


def packed_batches(work: Work, step: int) -> Iterator[Batch]:
    """Our micro-batches: samples with the same image share a row; batches are packed and balanced by tokens."""
    rows: list[Row] = [
        tuple(work.examples[member] for member in members)
        for members in rows_of(work.samples, work.questions_per_prefix)
    ]
    order = list(range(len(rows)))
    random.Random(step).shuffle(order)
    collate = Collator(PAD, packed=True)
    for members in balanced_parts(order, [length_of(row) for row in rows], work.micro_batches):
        yield collate([rows[place] for place in members])


def length_of(row: Row) -> int:
    """Number of tokens of a row in the collator's layout."""
    shared = common_prefix(row) if len(row) > 1 else 0
    return shared + sum(len(example.input_ids) - shared for example in row)


@dataclass(frozen=True)
class Side:
    """One of the two implementations, ready to train.

    Attributes:
        model: LLaVA's class or ours.
        batches: makes the micro-batches of a step, given its number.
        optimizer: optimises the trained parameters.
        dtype: dtype of the computation; trained parameters are stored in float32.
    """

    model: nn.Module
    batches: Callable[[int], Iterator[Batch]]
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    def step(self, number: int, clock: "Clock | None" = None) -> float:
        """Run one optimiser step; return its loss, the mean over all tokens that count."""
        clock = clock or Clock(self.device)
        with clock.measures("batches"):
            batches = [
                {name: tensor.to(self.device) for name, tensor in batch.items()} for batch in self.batches(number)
            ]
            counted = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
        losses = []
        for batch in batches:
            with (
                clock.measures("forward"),
                torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
            ):
                output = self.model(**batch, num_items_in_batch=counted, use_cache=False)
            with clock.measures("backward"):
                output.loss.backward()
            losses.append(output.loss.detach())
            # Otherwise the output's tensors would still be in memory during the next micro-batch.
            del output
        with clock.measures("optimiser"):
            nn.utils.clip_grad_norm_([one for one in self.model.parameters() if one.requires_grad], 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(sum(losses))


def build_sides(
    work: Work, device: torch.device, dtype: torch.dtype, names: tuple[str, ...] = SIDES
) -> dict[str, Side]:
    """Build one or both sides, with the same weights."""
    sides = {}
    for name in names:
        # A separate one per side, as it stores the attention implementation.
        text = LlamaConfig(
            **work.size.text, max_position_embeddings=8192, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS
        )
        shared: dict[str, Any] = {
            "vision_config": CLIPVisionConfig(**work.size.vision),
            "text_config": text,
            "image_token_index": IMAGE,
            "image_seq_length": work.size.image_tokens,
            "tie_word_embeddings": text.tie_word_embeddings,
        }
        torch.manual_seed(0)
        if name == "ours":
            model: nn.Module = AlignGPTForConditionalGeneration(
                AlignGPTConfig(**shared, alignment="none", align_token_index=-1)
            )
        else:
            model = LlavaForConditionalGeneration(LlavaConfig(**shared))
            model.lm_head.register_forward_hook(_never_answer_image)
        sides[name] = Side(model, _batches_of(name, work), _prepare(model, work.stage, device, dtype, name), dtype)
    if len(sides) == len(SIDES):
        with torch.no_grad():
            sides["baseline"].model.load_state_dict(sides["ours"].model.state_dict())
    return sides


def _batches_of(name: str, work: Work) -> Callable[[int], Iterator[Batch]]:
    make = packed_batches if name == "ours" else padded_batches
    return lambda step: make(work, step)


def _prepare(
    model: nn.Module, stage: int, device: torch.device, dtype: torch.dtype, name: str
) -> torch.optim.Optimizer:
    """Move and freeze a model as a run does; return the optimiser of the trained parameters."""
    model.to(device).train()
    # Parts are identified by parameter names, which LLaVA shares.
    # LLaVA has no gate, which given levels leave out.
    freeze_all_but(model, TRAINED[stage], levels_given=name == "baseline")  # type: ignore[arg-type]
    if name == "ours":
        model.set_attn_implementation({"text_config": PACKED_ATTENTION})  # type: ignore[operator]
    if name == "ours" and stage == 1 and dtype != torch.float32:
        hold_frozen_in(model, dtype)  # type: ignore[arg-type]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=LEARNING_RATES[stage], weight_decay=0.0, fused=True)


def _never_answer_image(module: nn.Module, inputs: object, logits: Tensor) -> None:
    """Remove `<image>` from LLaVA's distribution, as ours does, so that the losses are equal.

    This bypasses autograd and costs next to nothing: the gradient of a logit of minus infinity is zero anyway.
    """
    logits.detach()[..., IMAGE] = -torch.inf


class Clock:
    """Seconds per named activity.

    Args:
        device: synchronised before the time is read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        """The time in seconds, once the device has finished its queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def measures(self, what: str) -> Iterator[None]:
        """Add the time spent inside to the entry `what`."""
        started = self.now()
        yield
        self.seconds[what] += self.now() - started

    def watch(self, module: nn.Module, what: str) -> None:
        """Add the time of a module's forward passes to the entry `what`."""
        started: list[float] = []
        module.register_forward_pre_hook(lambda *_: started.append(self.now()))
        module.register_forward_hook(lambda *_: self._add(what, started.pop()))

    def _add(self, what: str, started: float) -> None:
        self.seconds[what] += self.now() - started


def profile(side: Side, repeats: int) -> dict[str, float]:
    """Seconds of each part of a step; the parts add up to the whole step.

    `rest of forward` is the embedding table, inserting the image tokens, and the attention masks.
    """
    side.step(0)
    clock = Clock(side.device)
    model = side.model.model
    assert isinstance(model, nn.Module)
    watched = {
        "image tower": model.vision_tower,
        "projector": model.multi_modal_projector,
        "language model": model.language_model,
        "inner model": model,
    }
    for what, module in watched.items():
        assert isinstance(module, nn.Module)
        clock.watch(module, what)
    for number in range(1, repeats + 1):
        side.step(number, clock)
    seconds = {what: total / repeats for what, total in clock.seconds.items()}
    inside = sum(seconds.get(what, 0.0) for what in ("image tower", "projector", "language model"))
    parts = {
        "making batches": seconds["batches"],
        "image tower": seconds.get("image tower", 0.0),
        "projector": seconds.get("projector", 0.0),
        "language model forward": seconds["language model"],
        "rest of forward": seconds["inner model"] - inside,
        "head and loss": seconds["forward"] - seconds["inner model"],
        "backward": seconds["backward"],
        "optimiser": seconds["optimiser"],
    }
    return parts | {"whole step": sum(parts.values())}


def step_memory(side: Side) -> int:
    """Bytes used by training beyond the model as built; the second step includes the optimiser's state."""
    on_gpu = side.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(side.device)
    else:
        reset_peak_memory()
    before = torch.cuda.memory_allocated(side.device) if on_gpu else peak_memory()
    for number in range(2):
        side.step(number)
    return (torch.cuda.max_memory_allocated(side.device) if on_gpu else peak_memory()) - before


def memory_in_child(name: str, size: str, stage: int, options: argparse.Namespace) -> int:
    """`step_memory` of one side in a separate process, so that the sides do not affect each other."""
    command = [sys.executable, __file__, "--memory-of", name, "--sizes", size, "--stages", str(stage)]
    command += ["--device", options.device, "--precision", options.precision]
    command += ["--questions-per-prefix", str(options.questions_per_prefix)]
    command += ["--samples", str(options.samples)] if options.samples else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


@dataclass(frozen=True)
class Comparison:
    """The measurements of both sides.

    Attributes:
        seconds: seconds of each optimiser step, by side.
        loss_diff: the largest relative difference between the losses of a step.
    """

    seconds: dict[str, list[float]]
    loss_diff: float

    @property
    def speedup(self) -> float:
        """The baseline's median time over ours."""
        return statistics.median(self.seconds["baseline"]) / statistics.median(self.seconds["ours"])


def compare(sides: dict[str, Side], repeats: int) -> Comparison:
    """Run the same steps on both sides alternately; the first steps are not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    difference = 0.0
    for number in range(WARM_UP_STEPS + repeats):
        losses = {}
        for name, side in sides.items():
            clock = Clock(side.device)
            with clock.measures("step"):
                losses[name] = side.step(number)
            if number >= WARM_UP_STEPS:
                seconds[name].append(clock.seconds["step"])
        if not all(math.isfinite(loss) for loss in losses.values()):
            raise ArithmeticError(f"step {number}: NaN or infinite loss: {losses}")
        note(f"  step {number}: loss {losses['baseline']:.6f} and {losses['ours']:.6f}")
        difference = max(difference, abs(losses["ours"] / losses["baseline"] - 1))
    return Comparison(seconds, difference)


def note(text: str) -> None:
    """Print a progress message to stderr."""
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--sizes", default=",".join(SIZES), help=f"comma-separated, from {', '.join(SIZES)}")
    parser.add_argument("--stages", default="1,2", help="1: pre-training, 2: instruction tuning")
    parser.add_argument("--repeats", type=int, default=3, help="number of timed optimiser steps per side")
    parser.add_argument("--samples", type=int, help="samples per optimiser step (default: depends on the size)")
    parser.add_argument("--questions-per-prefix", type=int, default=10, help="maximum samples per row in ours")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32", help="float32, bfloat16 or auto; for both sides")
    parser.add_argument("--profile", action="store_true", help="print where a step spends its time")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Print a line per size and stage."""
    transformers.logging.set_verbosity_error()
    parser = _parser()
    options = parser.parse_args()
    sizes, stages = options.sizes.split(","), options.stages.split(",")
    if not set(sizes) <= SIZES.keys() or not set(stages) <= {"1", "2"}:
        parser.error(f"--sizes must be from {', '.join(SIZES)}, --stages from 1, 2")
    if options.profile and (len(sizes) > 1 or len(stages) > 1):
        parser.error("--profile takes a single size and stage")
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.precision, device)
    for size, stage in [(size, int(stage)) for size in sizes for stage in stages]:
        count = options.samples or SIZES[size].samples
        work = draw_work(SIZES[size], stage, count, options.questions_per_prefix)
        if options.memory_of:
            print(step_memory(build_sides(work, device, dtype, (options.memory_of,))[options.memory_of]))
            continue
        note(f"size {size}, stage {stage}: {count} samples per step, {device.type}, {options.precision}")
        if options.profile:
            for name, side in build_sides(work, device, dtype).items():
                spent = " ".join(
                    f"{part.replace(' ', '_')}={seconds:.3f}"
                    for part, seconds in profile(side, options.repeats).items()
                )
                print(f"profile size={size} stage={stage} side={name} {spent}")
            continue
        memory = {name: memory_in_child(name, size, stage, options) for name in SIDES}
        result = compare(build_sides(work, device, dtype), options.repeats)
        for name, seconds in result.seconds.items():
            note(f"  {name}: {statistics.median(seconds):.3f} s per step, {memory[name] / 1e6:.0f} MB")
        print(
            f"training size={size} stage={stage} speedup={result.speedup:.2f} "
            f"memory_ratio={memory['ours'] / memory['baseline']:.2f} loss_diff={result.loss_diff:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
