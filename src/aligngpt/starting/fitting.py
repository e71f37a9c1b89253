"""Settings that fit the memory, chosen with the estimates of `aligngpt train --dry-run`."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import nn

from aligngpt.data.batches.examples import ExampleError, tokenize
from aligngpt.data.records.sample import Sample, to_record
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.templates import NAMED_TEMPLATES
from aligngpt.progress import console
from aligngpt.starting.backbones import Backbone
from aligngpt.starting.data_look import DataLook
from aligngpt.starting.machine import GIGABYTE, Machine
from aligngpt.starting.output import StartError
from aligngpt.starting.settings import Settings, StageSettings, recipe_text
from aligngpt.training.activation_memory import FLOAT32
from aligngpt.training.dry_run import StagePlan, plan
from aligngpt.training.recipe import Recipe, StageName, make_recipe
from aligngpt.training.setup.loading import load_model

USABLE = 0.8
"""Share of the device's memory that the estimate may take: the rest is for libraries, images and fragmentation."""

COMFORTABLE = 4
"""Samples at a time below which gradient checkpointing, or adapters, are preferred."""

LONGEST_ALLOWED = 2048
"""Maximum tokens per sample in a new recipe, as in the paper; longer samples are cut off."""

FEW, MANY = 20_000, 100_000
"""Number of samples below which there are three epochs and small batches, and from which batches are the paper's."""

SMALL_LANGUAGE_MODEL, SMALL_VISION_TOWER = "HuggingFaceTB/SmolLM2-135M-Instruct", "openai/clip-vit-base-patch32"
SMALL = {SMALL_LANGUAGE_MODEL: 135_000_000, SMALL_VISION_TOWER: 88_000_000}
"""The smallest listed backbones, and their numbers of parameters."""

WARM_START_BYTES = 512 * 2**20
"""Memory for the image features of the warm start."""


class Wanted(NamedTuple):
    """What a recipe is made for.

    Attributes:
        captions, questions: the data.
        captions_in_recipe: the data that the recipe names for stage 1: the captions with their levels.
        levels_in_recipe: a table of these levels, if they are not in the data.
        tower, language: the backbones.
        machine: to train on; its memory is known.
        output: folder of the run.
        num_levels: number of levels N.
    """

    captions: DataLook
    questions: DataLook
    captions_in_recipe: str
    levels_in_recipe: str | None
    tower: Backbone
    language: Backbone
    machine: Machine
    output: str
    num_levels: int


@dataclass(frozen=True)
class Fitted:
    """The chosen settings.

    Attributes:
        settings: of the recipe.
        memory: estimated bytes on the device, by stage.
        assembling: bytes of main memory while the model is assembled.
        disk: bytes that checkpoints and the model take, and cached features if they are on the same disk.
        cut: stages whose longest samples are longer than the maximum, with their tokens.
    """

    settings: Settings
    memory: dict[StageName, int]
    assembling: int
    disk: int
    cut: dict[StageName, int]


def fit(wanted: Wanted) -> Fitted:
    """Choose batches, adapters and checkpointing so that both stages fit the memory of the machine.

    No gradient checkpointing comes before checkpointing; on a GPU, all weights before adapters of rank 16 before
    adapters on weights in 4 bits. On a CPU adapters are the first choice, because they train faster.

    Raises:
        StartError: no choice fits; the message says how much memory the smallest needs.
        BackboneError: a backbone is of an unsupported kind.
    """
    shown, console.quiet = console.quiet, True
    try:
        # The plans read a few samples, whose progress says nothing about the user's files.
        with tempfile.TemporaryDirectory() as folder:
            return _Fitting(wanted, Path(folder)).fitted()
    finally:
        console.quiet = shown


class _Fitting:
    def __init__(self, wanted: Wanted, scratch: Path) -> None:
        self.wanted, self.scratch = wanted, scratch
        assert wanted.machine.memory is not None
        self.limit = int(USABLE * wanted.machine.memory)
        self.tower = str(wanted.tower.source(scratch))
        self.language = str(wanted.language.source(scratch))

    def fitted(self) -> Fitted:
        first = self._first_settings()
        model, processor = load_model(self._recipe(first), "pretrain", weights=False)
        self.sizes = _parameters(model.model.language_model), _parameters(model.model.vision_tower)
        features = _feature_bytes(model)
        settings, cut = self._with_lengths(first, model, processor, features)
        pretrain, memory_1, _ = self._stage_that_fits(settings, "pretrain")
        settings = replace(settings, pretrain=pretrain)
        instruct, memory_2, planned = self._stage_that_fits(settings, "instruct")
        settings = replace(settings, instruct=instruct)
        parameters = _parameters(model)
        trained = sum(row.trained for row in planned.parts)
        images = self.wanted.captions.check.images + self.wanted.questions.check.images
        is_beside = settings.pretrain.cache_features and self.wanted.machine.cache_disk is None
        cached = images * features if is_beside else 0
        return Fitted(
            settings=settings,
            memory={"pretrain": memory_1, "instruct": memory_2},
            assembling=FLOAT32 * parameters,
            # A checkpoint has weights and two moments, and is complete before the previous one is removed.
            disk=FLOAT32 * parameters + 2 * 3 * FLOAT32 * trained + cached,
            cut=cut,
        )

    def _first_settings(self) -> Settings:
        wanted = self.wanted
        on_gpu = wanted.machine.device != "cpu"
        stages = []
        for look, data, levels, name in (
            (wanted.captions, wanted.captions_in_recipe, wanted.levels_in_recipe, "pretrain"),
            (wanted.questions, str(wanted.questions.path), None, "instruct"),
        ):
            samples = look.check.samples
            batch = _batch_size(name, samples, on_gpu)
            stages.append(
                StageSettings(
                    data=data,
                    levels=levels,
                    image_root=None if look.image_root is None else str(look.image_root),
                    epochs=3 if samples < FEW else 1,
                    batch_size=batch,
                    micro_batch_size=1,
                    max_length=LONGEST_ALLOWED,
                    gradient_checkpointing=False,
                    cache_features=False,
                    group_by_length=on_gpu and name == "instruct" and not look.is_archive,
                )
            )
        little = wanted.captions.check.samples < FEW
        return Settings(
            vision_tower=wanted.tower.name,
            language_model=wanted.language.name,
            num_levels=wanted.num_levels,
            warm_start=300 if little else None,
            warm_start_pairs=2,
            pretrain=stages[0],
            instruct=stages[1],
            device=wanted.machine.device,
            workers=max(0, min(4, wanted.machine.cpus - 1)) if on_gpu else 0,
            output=wanted.output,
        )

    def _with_lengths(
        self, settings: Settings, model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor, features: int
    ) -> tuple[Settings, dict[StageName, int]]:
        """The settings with the lengths of the longest samples; also writes these for the estimates."""
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or LONGEST_ALLOWED
        most = min(LONGEST_ALLOWED, int(positions))
        if model.config.image_seq_length >= most:
            raise StartError(
                f"an image takes {model.config.image_seq_length:,} tokens with {settings.vision_tower}, and "
                f"{settings.language_model} has room for {most:,}; choose another vision tower or language model"
            )
        cut: dict[StageName, int] = {}
        lengths: dict[StageName, int] = {}
        named: list[tuple[StageName, DataLook, str | None]] = [
            ("pretrain", self.wanted.captions, NAMED_TEMPLATES["plain"]),
            ("instruct", self.wanted.questions, None),
        ]
        for name, look, template in named:
            tokens = _tokens(look.longest, processor, template)
            if not tokens:
                raise StartError(f"the longest samples of {look.path} have nothing to train on; see `aligngpt check`")
            longest = max(tokens.values())
            if longest > most:
                cut[name] = longest
            lengths[name] = min(most, 64 * -(-longest // 64))
            self._write_samples(name, [look.longest[place] for place in tokens])
        machine, images = self.wanted.machine, self.wanted.captions.check.images + self.wanted.questions.check.images
        room = machine.disk if machine.cache_disk is None else machine.cache_disk
        cache = machine.device == "cpu" and images * features < room / 4
        pairs = max(2, min(4096, WARM_START_BYTES // features))
        pretrain = replace(settings.pretrain, max_length=lengths["pretrain"], cache_features=cache)
        instruct = replace(settings.instruct, max_length=lengths["instruct"], cache_features=cache)
        return replace(settings, warm_start_pairs=pairs, pretrain=pretrain, instruct=instruct), cut

    def _stage_that_fits(self, settings: Settings, name: StageName) -> tuple[StageSettings, int, StagePlan]:
        """The stage with the first choice that fits comfortably, or else the first that fits at all."""
        tight: tuple[StageSettings, int, StagePlan] | None = None
        least: int | None = None
        stage: StageSettings = getattr(settings, name)
        comfortable = min(COMFORTABLE, stage.batch_size)
        for adapters, bits in self._ways(name):
            for checkpointing in (False, True):
                one = replace(stage, adapters=adapters, bits=bits, gradient_checkpointing=checkpointing)
                [planned] = plan(self._recipe(_with_stage(settings, name, one)), (name,))
                held, per_sample = planned.memory.weights + planned.memory.training, planned.memory.activations
                least = min(held + per_sample, least or held + per_sample)
                micro = _largest_that_fits(self.limit - held, per_sample, stage.batch_size)
                if micro is None:
                    continue
                found = replace(one, micro_batch_size=micro), held + micro * per_sample, planned
                if micro >= comfortable:
                    return found
                tight = tight or found
        if tight is not None:
            return tight
        assert least is not None and self.wanted.machine.memory is not None
        raise StartError(
            f"{settings.language_model} with {settings.vision_tower} needs at least {least / GIGABYTE:.1f} GB in "
            f"{name}, but {self.limit / GIGABYTE:.1f} GB of the {self.wanted.machine.memory / GIGABYTE:.1f} GB can "
            f"be planned with; {self._advice(settings)}"
        )

    def _advice(self, settings: Settings) -> str:
        """What to choose if nothing fits: a smaller model only if there is one in the list."""
        smaller = [
            f"a smaller {part}, such as {name},"
            for part, name, size in (
                ("language model", SMALL_LANGUAGE_MODEL, self.sizes[0]),
                ("vision tower", SMALL_VISION_TOWER, self.sizes[1]),
            )
            if name not in (settings.language_model, settings.vision_tower) and size > SMALL[name]
        ]
        return f"choose {' or '.join([*smaller, 'a device with more memory'])}"

    def _ways(self, name: StageName) -> list[tuple[bool, int | None]]:
        if name == "pretrain":
            return [(False, None)]
        if self.wanted.machine.device == "cpu":
            return [(True, None)]
        in_bits: list[tuple[bool, int | None]] = [(True, 4)] if self.wanted.machine.device == "cuda" else []
        return [(False, None), (True, None), *in_bits]

    def _write_samples(self, name: StageName, samples: Sequence[Sample]) -> None:
        # Only the number of images matters, and paths must look like paths.
        records = [to_record(one.showing([f"{place}.png" for place in range(len(one.images))])) for one in samples]
        path = self.scratch / f"{name}.json"
        path.write_text(json.dumps([record | {"similarity": 0} for record in records]), encoding="utf-8")

    def _recipe(self, settings: Settings) -> Recipe:
        """The recipe with local backbones and the longest samples only."""
        content: dict[str, Any] = yaml.safe_load(recipe_text(settings))
        content["model"] |= {"vision_tower": self.tower, "language_model": self.language}
        for name in ("pretrain", "instruct"):
            content[name] |= {"data": str(self.scratch / f"{name}.json"), "image_root": None}
        return make_recipe(content)


def _with_stage(settings: Settings, name: StageName, stage: StageSettings) -> Settings:
    return replace(settings, pretrain=stage) if name == "pretrain" else replace(settings, instruct=stage)


def _tokens(samples: Sequence[Sample], processor: AlignGPTProcessor, template: str | None) -> dict[int, int]:
    """Number of tokens by place of the sample, without those that cannot be trained on."""
    found = {}
    for place, sample in enumerate(samples):
        try:
            ids, _ = tokenize(sample.messages(), processor, chat_template=template, max_length=1 << 30)
        except ExampleError:
            continue
        found[place] = len(ids)
    return found


def _parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def _feature_bytes(model: AlignGPTForConditionalGeneration) -> int:
    """Bytes of one image's features in float32; on a CPU that is faster in bfloat16, `cache_features` keeps half."""
    return FLOAT32 * prod((model.config.tower_tokens, model.config.vision_config.hidden_size))


def _batch_size(name: str, samples: int, on_gpu: bool) -> int:
    """A power of two, at most the number of samples."""
    if not on_gpu:
        wanted = 32 if name == "pretrain" else 8
    elif samples >= MANY:
        wanted = 256 if name == "pretrain" else 128
    else:
        wanted = 64 if name == "pretrain" else 32
    return 2 ** min(wanted, max(1, samples)).bit_length() // 2


def _largest_that_fits(room: int, per_sample: int, batch: int) -> int | None:
    """The largest power of two of samples, at most `batch` and 32, whose activations fit; None if not one does."""
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= batch and size * per_sample <= room]
    return max(sizes, default=None)
