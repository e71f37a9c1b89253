"""What every run of a study needs, however it was made: scored pairs, questions, tests and backbones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligngpt.study.pairs import ScoredPair


@dataclass(frozen=True)
class Probe:
    """Right and wrong captions of the same pictures, none of which is trained on.

    Attributes:
        right, wrong: LLaVA-format files; record i of both has the same picture.
        kinds: what is wrong with each wrong caption.
        right_scores, wrong_scores: scores of the dual encoder, if they are known.
    """

    right: Path
    wrong: Path
    kinds: tuple[str, ...]
    right_scores: tuple[float, ...] = ()
    wrong_scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class StudyData:
    """The data of a study.

    Attributes:
        model: the settings `vision_tower` and `language_model` of a recipe.
        image_root: folder that all image paths are relative to.
        pairs: the pairs of the pre-training for a share of bad captions.
        questions: questions with answers for instruction tuning.
        tests: questions with answers to be tested on, by name; the first is the one that arms are compared on.
        probe: captions to be compared after pre-training; None without.
        facts: what is told about the data, as plain values.
    """

    model: dict[str, Any]
    image_root: Path
    pairs: Callable[[float], Sequence[ScoredPair]]
    questions: Path
    tests: dict[str, Path]
    probe: Probe | None = None
    facts: dict[str, Any] = field(default_factory=dict)
