"""Scores of captions by a dual encoder that the study trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aligngpt.data.records.pairs import open_pairs
from aligngpt.files import atomic_write
from aligngpt.levels.scored_pairs import ScoredPairs
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source


def score_captions(
    records: Sequence[dict[str, Any]], encoder: Path, folder: Path, image_root: Path
) -> NDArray[np.float64]:
    """The score of each record, `(records,)`; resumes, and records scored before are not scored again.

    Args:
        records: LLaVA records of one picture and its caption.
        encoder: folder of the dual encoder.
        folder: for the file of the captions and for the scores.
        image_root: folder that image paths are relative to.

    Raises:
        AlignGPTError: a record cannot be scored.
    """
    source = folder / "captions.json"
    text = json.dumps(list(records), ensure_ascii=False)
    if not source.is_file() or source.read_text(encoding="utf-8") != text:
        with atomic_write(source) as file:
            file.write(text)
    score_source(
        open_pairs(source, image_root=image_root), PairScorer.load(encoder), folder / "scores", max_reject_share=0.0
    )
    batches = list(ScoredPairs(folder / "scores").batches())
    scores = np.empty(len(records))
    scores[np.concatenate([batch.numbers for batch in batches])] = np.concatenate([batch.scores for batch in batches])
    return scores
