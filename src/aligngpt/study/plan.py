"""The plan of a study: which arms, at which share of noise, with how many seeds, on which data and model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from aligngpt.errors import AlignGPTError
from aligngpt.study.arms import ARMS, Arm
from aligngpt.training.recipe_data import OutputFolder
from aligngpt.training.recipe_files import UniqueKeyLoader
from aligngpt.training.recipe_problems import describe_problems

Share = Annotated[float, Field(ge=0, le=1)]

QUICK_ARMS = ("none", "adaptive", "placebo")
QUICK_SEEDS = 4
QUICK_ANSWERS = 1500
"""Answers in instruction tuning of the quick study, on scenes and clip art."""
QUICK_SCENES = {"captions": 4000, "encoder": 3000, "test": 600, "shift": 100, "probe": 100}
"""Pictures of the quick study on scenes, at most."""


class PlanError(AlignGPTError):
    """A plan cannot be read or has an invalid value; the message names the file and the field."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LanguageModelPlan(_Section):
    """The small language model of the scenes, a Llama; see `aligngpt.study.language_model`.

    Attributes:
        hidden, layers, heads: of the network.
        vocabulary: number of tokens.
        scenes: number of scenes that are described and asked about; none of them is a picture of the study.
        steps: optimiser steps.
        batch: sequences per step.
        length: tokens per sequence.
        learning_rate: peak, of AdamW for embeddings and norms, with a cosine schedule.
        matrix_learning_rate: peak, of Muon for the layers' matrices.
    """

    hidden: Annotated[int, Field(ge=8)] = 192
    layers: Annotated[int, Field(ge=1)] = 4
    heads: Annotated[int, Field(ge=1)] = 6
    vocabulary: Annotated[int, Field(ge=300)] = 2048
    scenes: Annotated[int, Field(ge=1)] = 25_000
    steps: Annotated[int, Field(ge=1)] = 6000
    batch: Annotated[int, Field(ge=1)] = 16
    length: Annotated[int, Field(ge=8)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    matrix_learning_rate: Annotated[float, Field(gt=0)] = 0.02


class ScenesPlan(_Section):
    """Generated scenes; see `aligngpt.quickstart.scenes.preparing.prepare_scenes`.

    Attributes:
        seed: of the scenes.
        source: `npm` or `pypi`, where the drawings come from.
        captions, encoder, train, test, shift: numbers of pictures of each split.
        encoder_noise: share of bad captions that the dual encoder is trained on.
        probe: number of test pictures whose right and wrong captions are compared after pre-training.
        language_model: size and training of the language model that is made if the model names none.
    """

    seed: int = 2405
    source: Literal["npm", "pypi"] = "npm"
    captions: int = Field(10_000, ge=16)
    encoder: int = Field(6_000, ge=16)
    train: int = Field(2_000, ge=1)
    test: int = Field(1_500, ge=1)
    shift: int = Field(500, ge=1)
    encoder_noise: Share = 0.3
    probe: int = Field(400, ge=2)
    language_model: LanguageModelPlan = LanguageModelPlan()


class ClipartPlan(_Section):
    """Drawings of the Open Clip Art Library; see `aligngpt.quickstart.clipart.preparing`.

    Attributes:
        seed: of the splits, the questions and what is trained.
        folder: the unpacked Debian packages openclipart-png and openclipart-svg; None fetches them with apt-get.
        encoder: what the dual encoder is trained on, of other pictures: `descriptions` (file names and keywords), or
            `titles`, from which it learns to recognise the titles of series.
        probe: number of test pictures whose right and exchanged descriptions are compared after pre-training.
        language_model: size and training of the language model that is made if the model names none.
    """

    seed: int = 2405
    folder: str | None = None
    encoder: Literal["titles", "descriptions"] = "descriptions"
    probe: int = Field(400, ge=2)
    language_model: LanguageModelPlan = LanguageModelPlan()

    @model_validator(mode="after")
    def _no_scenes(self) -> "ClipartPlan":
        if "scenes" in self.language_model.model_fields_set:
            raise ValueError("language_model.scenes: with clip art the language model reads no scenes; remove it")
        return self


class FilesPlan(_Section):
    """Data of one's own.

    Attributes:
        captions: image–caption pairs, as for `aligngpt score`: LLaVA-format JSON.
        scores: folder of `aligngpt score` for these pairs.
        questions: questions with answers for instruction tuning.
        tests: questions with answers to be tested on, by name; the first is the one that arms are compared on.
        image_root: folder that image paths are relative to; the folder of `captions` when None.
        probe: captions of other pictures, for which right and exchanged captions are compared; None skips it.
    """

    captions: str
    scores: str
    questions: str
    tests: dict[str, str] = Field(min_length=1)
    image_root: str | None = None
    probe: str | None = None


class Cell(_Section):
    """A part of the grid: every combination of what it lists.

    Attributes:
        arms: names of arms.
        noise: shares of bad captions in pre-training; only for scenes.
        levels: numbers of levels N.
        answers: numbers of answers in instruction tuning; None for all.
        seeds: number of seeds, counted from 0.
    """

    arms: tuple[str, ...] = Field(min_length=1)
    noise: tuple[Share, ...] = Field((0.0,), min_length=1)
    levels: tuple[Annotated[int, Field(ge=2)], ...] = Field((8,), min_length=1)
    answers: tuple[Annotated[int, Field(ge=1)] | None, ...] = Field((None,), min_length=1)
    seeds: int = Field(10, ge=1)

    @field_validator("noise")
    @classmethod
    def _whole_percents(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        # The names of runs have percents.
        if odd := [share for share in shares if abs(100 * share - round(100 * share)) > 1e-6]:
            raise ValueError(f"noise must be in whole percents, such as 0.05; found {odd[0]:g}")
        return shares

    @model_validator(mode="after")
    def _known_arms(self) -> "Cell":
        if unknown := [name for name in self.arms if name not in ARMS]:
            raise ValueError(f"there is no arm {', '.join(unknown)}; there are {', '.join(ARMS)}")
        return self


class Plan(_Section):
    """A study.

    Attributes:
        output: folder of everything the study makes; its results are in `results/` there.
        scenes: generated data; or
        clipart: drawings with their titles as people wrote them; or
        files: data of one's own.
        model: `vision_tower` and `language_model` of a recipe's model section, and its other settings; with scenes
            and clip art, backbones that are not named are made.
        pretrain, instruct: settings of the two stages, as in a recipe, without data, image root and levels.
        cells: the grid, in the order in which it is done.
        primary: pairs of arms whose difference the study is about.
        commit: commit of the code that the grid is run with; another one is refused. None does not check.
    """

    output: OutputFolder
    scenes: ScenesPlan | None = None
    clipart: ClipartPlan | None = None
    files: FilesPlan | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    pretrain: dict[str, Any]
    instruct: dict[str, Any]
    cells: tuple[Cell, ...] = Field(min_length=1)
    primary: tuple[tuple[str, str], ...] = ()
    commit: str | None = None

    @field_validator("pretrain")
    @classmethod
    def _whole_epochs(cls, settings: dict[str, Any]) -> dict[str, Any]:
        # Arms read the data more than once, in two parts, or at another speed.
        if set_ := [name for name in ("max_steps", "minutes", "min_steps") if settings.get(name) is not None]:
            raise ValueError(
                f"{set_[0]}: arms would read unequal amounts of data; give epochs instead, and fewer captions "
                "if that is too much"
            )
        return settings

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> "Plan":
        if [self.scenes, self.clipart, self.files].count(None) != 2:
            raise ValueError("name scenes, clipart or files, one of the three")
        if self.scenes is None and any(cell.noise != (0.0,) for cell in self.cells):
            raise ValueError("cells.noise: the share of bad captions can only be chosen for scenes")
        needing = [name for cell in self.cells for name in cell.arms if ARMS[name].needs_quality]
        if self.files is not None and needing:
            raise ValueError(
                f"cells.arms: {needing[0]} needs the true quality of the captions; only scenes and clipart have it"
            )
        return self

    def quick(self) -> "Plan":
        """A small part of the study, in an output folder of its own: enough to see it work, too little to conclude.

        With any version of the code.
        """
        noise = max(share for cell in self.cells for share in cell.noise)
        answers = QUICK_ANSWERS if self.files is None else None
        cell = Cell(arms=QUICK_ARMS, noise=(noise,), levels=(8,), answers=(answers,), seeds=QUICK_SEEDS)
        changes: dict[str, Any] = {"cells": (cell,), "output": f"{self.output}-quick", "commit": None}
        if self.scenes is not None:
            fewer = {name: min(most, getattr(self.scenes, name)) for name, most in QUICK_SCENES.items()}
            changes["scenes"] = self.scenes.model_copy(update=fewer)
        return self.model_copy(update=changes)

    def runs(self) -> list["Run"]:
        """The runs of the grid in the order in which they are done, each once.

        One cell comes after the other; in a cell the runs of the first seed come first, so that a part of it is
        balanced.
        """
        runs = (run for cell in self.cells for run in sorted(_runs_of(cell), key=lambda run: run.seed))
        return list(dict.fromkeys(runs))


@dataclass(frozen=True)
class Run:
    """One run of the grid.

    Attributes:
        arm_name: name of the arm.
        noise: share of bad captions in pre-training.
        levels: N; 2 where it makes no difference.
        answers: answers in instruction tuning; None for all.
        seed: random seed of initialisation and order, and of levels that are dealt out.
    """

    arm_name: str
    noise: float
    levels: int
    answers: int | None
    seed: int

    @property
    def arm(self) -> Arm:
        return ARMS[self.arm_name]

    @property
    def id(self) -> str:
        """A name for files."""
        answers = "all" if self.answers is None else self.answers
        return f"{self.arm_name}-noise{round(100 * self.noise)}-levels{self.levels}-answers{answers}-seed{self.seed}"

    @property
    def pretraining_id(self) -> str:
        """A name for the pre-training of this run; runs of the same name share it."""
        return f"{self.arm.pretraining}-noise{round(100 * self.noise)}-levels{self.levels}-seed{self.seed}"


def _runs_of(cell: Cell) -> Iterator[Run]:
    for name in cell.arms:
        for noise in cell.noise:
            for levels in cell.levels if ARMS[name].has_levels else (2,):
                for answers in cell.answers:
                    yield from (Run(name, noise, levels, answers, seed) for seed in range(cell.seeds))


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        PlanError: the file cannot be read, a field is unknown or missing, or a value is invalid.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f"the plan {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise PlanError(f"{path} is not a plan: expected a YAML mapping with output, cells, pretrain and instruct")
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        raise PlanError(f"{path}: {describe_problems(error, Plan)}") from error
