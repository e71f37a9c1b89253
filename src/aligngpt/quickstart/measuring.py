"""Measurements of a quickstart run that need no model: how well scores separate captions, and text-only baselines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.data.sources.json import read_records
from aligngpt.evaluation.question_only_baseline import AnswerPrior
from aligngpt.evaluation.results import Tally
from aligngpt.levels.scored_pairs import ScoredPairs
from aligngpt.quickstart.outcome import PRIOR
from aligngpt.reports.separation import auc_interval, separation

CLEAN = "clean"


def measure_separation(pairs: Path, scores_folder: Path) -> dict[str, Any]:
    """How well the scores of test captions separate right captions from others; the content of `separation.json`.

    Vague captions are true, so the measures of right against wrong captions leave them out; those of each kind of bad
    caption, in `by_kind`, compare all right captions with the captions of that kind. `by_kind` is empty if the records
    name no kinds.

    Args:
        pairs: JSON of captions with `caption_quality` and perhaps `noise`.
        scores_folder: their scores.

    Raises:
        LevelsError: no caption is right, or none is wrong.
    """
    # Record numbers count everything in the file, so nothing may be left out here.
    records = [record if isinstance(record, dict) else {} for _, record in read_records(pairs)]
    batches = list(ScoredPairs(scores_folder).batches())
    scored = [records[number] for number in np.concatenate([batch.numbers for batch in batches])]
    scores = np.concatenate([batch.scores for batch in batches])
    quality = np.array([record["caption_quality"] for record in scored])
    kinds = np.array([record.get("noise", CLEAN) for record in scored])
    pictures = np.array([record["image"] for record in scored])
    clear = quality != "vague"
    found = separation(scores[clear].tolist(), (quality[clear] == "right").tolist(), pictures[clear].tolist())
    by_kind = {}
    for kind in sorted(set(kinds.tolist()) - {CLEAN}):
        chosen = (quality == "right") | (kinds == kind)
        auc = auc_interval(scores[chosen], quality[chosen] == "right", pictures[chosen].tolist())
        by_kind[kind] = {
            "roc_auc": auc.value,
            "low": auc.low,
            "high": auc.high,
            "captions": int((kinds == kind).sum()),
        }
    return {**found.facts(), "pairs": len(scored), "by_kind": by_kind}


def text_only_baselines(train_questions: Path, tests: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """The accuracy of the most frequent training answer on each test split, by the name of the baseline.

    Args:
        train_questions: the questions trained on.
        tests: questions by test split.
    """
    prior = AnswerPrior.fit(_samples(train_questions))
    baselines = {}
    for split, path in tests.items():
        asked = _samples(path)
        right = prior.right_records(asked)
        known = frozenset(right)
        correct = [sample.record in known for sample in asked]
        tally = Tally.of_answers(correct, [next(iter(sample.images), sample.record) for sample in asked])
        facts: dict[str, Any] = tally.facts() | {"note": "most frequent training answer to the same question"}
        if split == "test":
            # Only the main split is compared question by question.
            baselines[PRIOR] = facts | {"right": right}
        else:
            baselines[f"{PRIOR}, {split}"] = facts
    return baselines


def _samples(path: Path) -> list[Sample]:
    with Rejects(None) as rejects:
        return list(load_samples(path, rejects=rejects, check_images=False))
