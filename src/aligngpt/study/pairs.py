"""The image–caption pairs of a study, and what each arm makes of their scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aligngpt.alignment.levels import LevelsError, fit_levels
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.study.arms import Arm

PLAIN_END_SHARE = 0.1
WEIGHT_CLASSES = 8
"""Number of classes by score in which the arm `weighted` gives all pairs the same weight."""


class StudyError(AlignGPTError):
    """A study cannot be run; the message says what is missing."""


@dataclass(frozen=True)
class ScoredPair:
    """An image–caption pair and what is known about it.

    Attributes:
        id: unique among the pairs.
        image: path below the image root.
        caption: as it is trained on.
        score: from the dual encoder.
        quality: how well the caption is known to fit its picture, 0…1; None if it is not known.
        kind: name of what is wrong with the caption, for generated data; empty if it is not known.
    """

    id: str
    image: str
    caption: str
    score: float
    quality: float | None = None
    kind: str = ""


def levels_of(arm: Arm, pairs: Sequence[ScoredPair], levels: int, seed: int) -> NDArray[np.int64] | None:
    """The level 1…N of each pair in this arm, `(pairs,)`; None if the arm has none.

    Args:
        arm: says where levels come from.
        pairs: all pairs of the pre-training.
        levels: N.
        seed: for levels dealt out at random, and for pairs of equal quality.

    Raises:
        StudyError: the scores, or the qualities, cannot be divided into N levels.
    """
    if arm.levels == "constant":
        return np.full(len(pairs), levels)
    if not arm.has_levels:
        return None
    rng = np.random.default_rng(seed)
    values = np.array([pair.score for pair in pairs], dtype=np.float64)
    if arm.levels == "quality":
        qualities = [pair.quality for pair in pairs]
        if None in qualities:
            raise StudyError(
                f"arm {arm.name} needs the quality of every caption; pair {pairs[qualities.index(None)].id} has none"
            )
        # Ranks, with pairs of equal quality in random order, so that every level gets as many pairs as with scores.
        order = np.lexsort((rng.permutation(len(pairs)), np.array(qualities, dtype=np.float64)))
        values[order] = np.arange(len(pairs))
    try:
        found = fit_levels(values, levels).assign(values)
    except LevelsError as error:
        raise StudyError(f"arm {arm.name}, {levels} levels: {error}") from error
    return rng.permutation(found) if arm.levels == "random" else found


@dataclass(frozen=True)
class PretrainingData:
    """The data of the pre-training of one arm.

    Attributes:
        data: as `pretrain.data` of a recipe.
        epochs: factor of the recipe's epochs that gives as many pairs read as in the other arms.
        end: data of the last part of pre-training, without levels; None if there is none.
    """

    data: str | list[dict[str, Any]]
    epochs: float = 1.0
    end: str | None = None


def write_pretraining(arm: Arm, pairs: Sequence[ScoredPair], levels: int, seed: int, folder: Path) -> PretrainingData:
    """Write the caption files that an arm pre-trains on.

    The order of the pairs in the files is theirs in `pairs`, unless the arm orders them: with the same seed, all arms
    then read the same pictures in the same order.

    Args:
        arm: what is done with the scores.
        pairs: all pairs, of which the arm may leave some out.
        levels: N.
        seed: for levels dealt out at random and for the pairs of a last part without levels.
        folder: for the files; they are replaced.

    Raises:
        StudyError: see `levels_of`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    assigned = levels_of(arm, pairs, levels, seed)
    scores = np.array([pair.score for pair in pairs])
    if arm.better_half:
        kept = np.sort(np.argsort(-scores, kind="stable")[: (len(pairs) + 1) // 2])
        path = _write(folder / "better_half.json", [_record(pairs[place]) for place in kept])
        return PretrainingData(path, epochs=len(pairs) / len(kept))
    if arm.weighted:
        return PretrainingData(_write_weighted(pairs, scores, folder))
    if arm.ordered:
        order = np.argsort(scores, kind="stable")
        return PretrainingData(_write(folder / "ordered.json", [_record(pairs[place]) for place in order]))
    if assigned is None:
        return PretrainingData(_write(folder / "captions.json", [_record(pair) for pair in pairs]))
    if arm.appended:
        told = [_record(pair, f"{pair.caption}, level {level}") for pair, level in zip(pairs, assigned, strict=True)]
        return PretrainingData(_write(folder / "appended.json", told))
    records = [{**_record(pair), "similarity": int(level) - 1} for pair, level in zip(pairs, assigned, strict=True)]
    if not arm.plain_end:
        return PretrainingData(_write(folder / "levels.json", records))
    last = set(np.random.default_rng(seed).permutation(len(pairs))[: round(PLAIN_END_SHARE * len(pairs))].tolist())
    beginning = [record for place, record in enumerate(records) if place not in last]
    end = [_record(pair) for place, pair in enumerate(pairs) if place in last]
    return PretrainingData(_write(folder / "beginning.json", beginning), end=_write(folder / "end.json", end))


def _write_weighted(pairs: Sequence[ScoredPair], scores: NDArray[np.float64], folder: Path) -> list[dict[str, Any]]:
    """One source per class of scores, with weights in proportion to its rank and a mean of 1."""
    classes = np.empty(len(pairs), dtype=np.int64)
    classes[np.argsort(scores, kind="stable")] = np.arange(len(pairs)) * WEIGHT_CLASSES // len(pairs)
    sources = []
    for number in range(WEIGHT_CLASSES):
        members = [_record(pair) for pair, own in zip(pairs, classes, strict=True) if own == number]
        if members:
            path = _write(folder / f"weighted-{number + 1}.json", members)
            sources.append({"data": path, "weight": 2 * (number + 1) / (WEIGHT_CLASSES + 1)})
    return sources


def _record(pair: ScoredPair, caption: str | None = None) -> dict[str, Any]:
    return {
        "id": pair.id,
        "image": pair.image,
        "conversations": [
            {"from": "human", "value": "<image>"},
            {"from": "gpt", "value": pair.caption if caption is None else caption},
        ],
    }


def _write(path: Path, records: Sequence[dict[str, Any]]) -> str:
    with atomic_write(path) as file:
        json.dump(records, file, ensure_ascii=False)
    return str(path)
