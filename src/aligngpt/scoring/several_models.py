"""Several models that score the same pairs in one pass: the columns of their scores, and what the manifest records."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligngpt.scoring.score_files import MODEL_PREFIX, ScoresError

if TYPE_CHECKING:
    from aligngpt.scoring.encoders import PairScorer


@dataclass(frozen=True)
class FurtherModel:
    """A model after the first one, as the manifest records it.

    Attributes:
        column: column of its scores in the parts.
        model: its name or folder; not compared, since the same model may have several.
        model_fingerprint: see `PairScorer.fingerprint`.
        preprocessing: the settings of its image processor.
        dtype: the precision in which it computes.
    """

    column: str
    model: str
    model_fingerprint: str
    preprocessing: Mapping[str, Any]
    dtype: str


def further_models(first: "PairScorer", others: "Sequence[PairScorer]") -> tuple[FurtherModel, ...]:
    """What the manifest records of the models after the first.

    Raises:
        ScoresError: two of the models are the same.
    """
    seen = {first.fingerprint: str(first.model.name_or_path)}
    for other in others:
        name = str(other.model.name_or_path)
        if other.fingerprint in seen:
            raise ScoresError(
                f"the models {seen[other.fingerprint]} and {name} are the same, so their scores would be too; name "
                "each model once"
            )
        seen[other.fingerprint] = name
    columns = score_columns([str(other.model.name_or_path) for other in others])
    return tuple(
        FurtherModel(
            column=column,
            model=str(other.model.name_or_path),
            model_fingerprint=other.fingerprint,
            preprocessing=json.loads(other.image_processor.to_json_string()),
            dtype=str(other.dtype).removeprefix("torch."),
        )
        for column, other in zip(columns, others, strict=True)
    )


def score_columns(models: Sequence[str]) -> list[str]:
    """A column name for the scores of each model, from the last part of its name; all are different.

    Args:
        models: names or folders of the models after the first.

    Returns:
        For example `score_siglip2_base` for `google/siglip2-base`; a second one of this name gets `_2`, and so on.
    """
    found: list[str] = []
    for model in models:
        # A folder such as `.` has its name only when written in full.
        name = Path(model).name or Path(model).absolute().name
        base = MODEL_PREFIX + (re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_") or "model")
        column, number = base, 1
        while column in found:
            number += 1
            column = f"{base}_{number}"
        found.append(column)
    return found


def by_column(models: Sequence[FurtherModel], others: "Sequence[PairScorer]") -> "dict[str, PairScorer]":
    """The models after the first by the columns that the manifest of a folder gives them."""
    return {one.column: other for one, other in zip(models, others, strict=True)}
