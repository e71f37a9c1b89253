"""The data sets of the quickstart: what the pipeline needs to know of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from aligngpt.quickstart.backbones import LANGUAGE_MODEL, TEXT_TOWER, VISION_TOWER, prepare_language_model
from aligngpt.quickstart.easy_vqa import EASY_VQA, prepare_easy_vqa
from aligngpt.quickstart.packages import Package
from aligngpt.quickstart.photographs import SCIKIT_IMAGE
from aligngpt.quickstart.run_folder import QuickstartError
from aligngpt.quickstart.scenes.language_model import scenes_language_model
from aligngpt.quickstart.scenes.openmoji import NAMES, OPENMOJI, SUBGROUPS
from aligngpt.quickstart.scenes.preparing import Source
from aligngpt.quickstart.scenes_files import QUICKSTART_SIZES, prepare_scenes_for_quickstart
from aligngpt.training.recipe import recipe_path

DataName = Literal["easy-vqa", "scenes"]

BACKBONE_PACKAGES = (LANGUAGE_MODEL, VISION_TOWER, TEXT_TOWER)
LIBRARIES = {"gguf": "gguf>=0.17", "onnx": "onnx>=1.18"}
"""The libraries that read the packages, as in the extra `quickstart`."""

RASTERISER = {"resvg_py": "resvg-py>=0.5"}
"""What draws the emoji sets of npm, as in the extra `scenes`."""


@dataclass(frozen=True)
class QuickstartFiles:
    """The prepared files of a data set; image paths in them are relative to `folder`.

    Caption files have `caption_quality` (right, vague or wrong) in each record, and may have `noise`, the kind of a bad
    caption (`clean` for a right one).

    Attributes:
        folder: contains everything.
        captions: captions to score and to pre-train on.
        encoder_captions: captions to train the dual encoder on.
        test_pairs: a right caption and another one of each test image, to measure the scores on.
        train_questions, validation_questions: questions to train on, and to monitor training with.
        tests: questions by test split, the main one, `test`, first.
    """

    folder: Path
    captions: Path
    encoder_captions: Path
    test_pairs: Path
    train_questions: Path
    validation_questions: Path
    tests: Mapping[str, Path]

    @property
    def shifts(self) -> dict[str, Path]:
        """The test splits other than `test`."""
        return {split: path for split, path in self.tests.items() if split != "test"}


@dataclass(frozen=True)
class QuickstartData:
    """A data set of the quickstart.

    Attributes:
        name: as in `--data`.
        title: as in the printed table.
        prepare: writes the files into a folder, with a random seed, or reuses those there.
        recipe: its recipe, in which the run's folders and minutes are entered.
        image_size: side in pixels that images are resized to, a multiple of the vision tower's patches of 14 px.
        minutes: default time budget of the whole run.
        dual_encoder_seconds: seconds of training the dual encoder on two idle cores, to judge a machine's speed by.
        seconds_after_training: seconds of the steps after training, with `test_questions` questions.
        seconds_per_question: seconds for each question of `test`, of which a long run answers all.
        test_questions: number of questions of `test` that a short run answers.
        question: a question that fits every picture, to try the model with.
        material: where its pictures come from, see `Settings`.
        seconds_of_warm_start: seconds that pre-training takes beside its own minutes.
        pretrain_share: share of the training time that pre-training gets, 0…1.
        language_model: the folder of its language model, given the cache of backbones.
        packages: installed packages whose files are the models and data.
        libraries: pip requirement of each module that reads them, by its name.
    """

    name: DataName
    title: str
    prepare: Callable[[Path, int], QuickstartFiles]
    recipe: Path
    image_size: int
    minutes: float
    dual_encoder_seconds: float
    seconds_after_training: float
    seconds_per_question: float
    test_questions: int
    question: str
    material: str = ""
    seconds_of_warm_start: float = 45
    pretrain_share: float = 0.2
    language_model: Callable[[Path], Path] = prepare_language_model
    packages: tuple[Package, ...] = BACKBONE_PACKAGES
    libraries: Mapping[str, str] = field(default_factory=lambda: LIBRARIES)

    @property
    def run_name(self) -> str:
        """The default folder of a run, in `runs`."""
        return "quickstart" if self.name == "easy-vqa" else f"quickstart-{self.name}"


def data_set(name: str, material: str | None = None) -> QuickstartData:
    """The data set of that name.

    Args:
        name: one of `DataName`.
        material: for scenes, where the emoji sets come from: `npm` (when None) or `pypi`.

    Raises:
        QuickstartError: there is no such data set, or the material is not one of its materials.
    """
    if name not in get_args(DataName):
        raise QuickstartError(
            f"there is no data set {name!r} for the quickstart; use {' or '.join(get_args(DataName))}"
        )
    if name == "scenes":
        if material not in (None, *get_args(Source)):
            raise QuickstartError(f"there is no material {material!r} for scenes; use {' or '.join(get_args(Source))}")
        return _scenes("pypi" if material == "pypi" else "npm")
    if material is not None:
        raise QuickstartError(f"--material {material} is for --data scenes only; leave it out with --data {name}")
    return _easy_vqa()


def _easy_vqa() -> QuickstartData:
    def prepare(folder: Path, seed: int) -> QuickstartFiles:
        files = prepare_easy_vqa(folder, seed=seed)
        return QuickstartFiles(
            folder=files.folder,
            captions=files.captions,
            encoder_captions=files.captions,
            test_pairs=files.test_pairs,
            train_questions=files.train_questions,
            validation_questions=files.validation_questions,
            tests={"test": files.test_questions},
        )

    return QuickstartData(
        name="easy-vqa",
        title="easy-VQA",
        prepare=prepare,
        recipe=recipe_path("quickstart"),
        image_size=56,  # 16 patches; the images are 64 x 64 px and contain one shape each
        minutes=12,
        dual_encoder_seconds=16,
        seconds_after_training=130,
        seconds_per_question=0.06,
        test_questions=2000,
        question="what shape is in the image?",
        packages=(*BACKBONE_PACKAGES, EASY_VQA, SCIKIT_IMAGE),
    )


def _scenes(material: Source) -> QuickstartData:
    def prepare(folder: Path, seed: int) -> QuickstartFiles:
        # The run's seed changes neither pictures nor texts, so that runs with different seeds have the same test.
        files, captions, pairs = prepare_scenes_for_quickstart(folder, source=material, sizes=QUICKSTART_SIZES)
        return QuickstartFiles(
            folder=files.folder,
            captions=captions,
            encoder_captions=files.encoder_captions,
            test_pairs=pairs,
            train_questions=files.train_questions,
            validation_questions=files.validation_questions,
            tests={split: files.questions(split) for split in files.test_splits},
        )

    emoji = (OPENMOJI, NAMES, SUBGROUPS) if material == "pypi" else ()
    return QuickstartData(
        name="scenes",
        title="Scenes",
        prepare=prepare,
        recipe=recipe_path("quickstart-scenes"),
        image_size=84,  # 36 patches, merged into 9 image tokens
        minutes=15,
        dual_encoder_seconds=50,
        seconds_after_training=85,
        seconds_per_question=0.01,
        test_questions=2000,
        question="how many things are in the picture?",
        material=material,
        seconds_of_warm_start=200,  # it computes the features of all captions' pictures, which are kept
        pretrain_share=0.3,
        language_model=lambda _: scenes_language_model(),
        packages=(VISION_TOWER, TEXT_TOWER, *emoji, SCIKIT_IMAGE),
        libraries=LIBRARIES if material == "pypi" else LIBRARIES | RASTERISER,
    )
