"""Results of studies that were never run, with a known truth, as `aligngpt.study.running` would write them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aligngpt.study.analysis.loading import Results, check_rows
from aligngpt.study.analysis.questions import ProbeCaptions, Questions, Split
from aligngpt.study.arms import ARMS
from aligngpt.study.results import write_row

KINDS = ("colour", "count", "where")
WRONG = ("exchanged", "one word")
LEVELS = 4


@dataclass(frozen=True)
class Truth:
    """What is true in a simulated study.

    Attributes:
        effects: nats that an arm adds to the log-probability of every right answer, by arm and share of bad captions.
        slope: nats per level that a higher level adds to right captions; wrong ones lose half as much.
        picture_gain: nats that the picture adds to a right caption, in pre-trainings without levels.
        run_noise: standard deviation of a run's mean.
    """

    effects: Mapping[tuple[str, float], float] = field(default_factory=dict)
    slope: float = 1.0
    picture_gain: float = 0.5
    run_noise: float = 0.01


def questions(number: int = 60, captions: int = 24) -> Questions:
    """Two questions a picture, in three kinds, and a second test of six questions."""
    places = range(number)
    first = Split(
        tuple(KINDS[place % 3] for place in places),
        tuple("part" if place % 3 else "whole" for place in places),
        tuple(place // 2 for place in places),
    )
    scores = np.random.default_rng(5).normal(size=(2, captions))
    probe = ProbeCaptions(
        tuple(WRONG[place % 2] for place in range(captions)), tuple((scores[0] + 1).tolist()), tuple(scores[1].tolist())
    )
    return Questions({"test": first, "shift": Split(("colour",) * 6, ("",) * 6, tuple(range(6)))}, probe)


def rows(
    about: Questions,
    truth: Truth,
    *,
    arms: Sequence[str] = ("none", "adaptive", "placebo"),
    noises: Sequence[float] = (0.0, 0.6),
    seeds: int = 6,
    random: int = 0,
) -> list[dict[str, Any]]:
    """One row per run and per pre-training."""
    rng = np.random.default_rng(random)
    found: dict[str, dict[str, Any]] = {}
    # How hard a question is, and what a seed makes of it, are the same for all arms.
    hard = {name: rng.normal(-1.0, 0.4, len(split.kind)) for name, split in about.splits.items()}
    for noise in noises:
        for seed in range(seeds):
            of_seed = rng.normal(0, 0.2)
            for name in arms:
                arm = ARMS[name]
                levels = LEVELS if arm.has_levels else 2
                facts = {"noise": noise, "levels": levels, "seed": seed, "code": "abc", "cpu_seconds": 60.0}
                end = f"noise{round(100 * noise)}-levels{levels}"
                row = facts | {"run": f"{name}-{end}-answersall-seed{seed}", "arm": name, "answers": None}
                shift = truth.effects.get((name, noise), 0.0) + of_seed + rng.normal(0, truth.run_noise)
                for split, base in hard.items():
                    row |= _answers(split, base + shift + rng.normal(0, 0.05, len(base)))
                if arm.alignment == "adaptive":
                    row["gate_by_kind"] = json.dumps(
                        {kind: [0.2 + 0.1 * place, 0.5, 0.3 - 0.1 * place] for place, kind in enumerate(KINDS)}
                    )
                found[str(row["run"])] = row
                before = f"{arm.pretraining}-{end}-seed{seed}"
                if before not in found:
                    tables = _captions(
                        about, truth, rng, 1 if arm.levels in ("none", "constant") else levels, arm.levels
                    )
                    found[before] = facts | {"run": row["run"], "arm": arm.pretraining, "answers": None} | tables
    return list(found.values())


def write(folder: Path, about: Questions, many: Sequence[Mapping[str, Any]]) -> Path:
    """The folder of results of these rows, with the questions' file."""
    for place, row in enumerate(many):
        write_row(folder / f"{place:04}.parquet", row)
    about.save(folder)
    return folder


def _answers(split: str, log_probability: np.ndarray) -> dict[str, Any]:
    log_probability = np.minimum(log_probability, -0.001)
    probability = np.exp(log_probability)
    return {
        f"{split}_log_probability": log_probability.astype(np.float16),
        f"{split}_right": probability > 0.37,
        f"{split}_confidence": np.maximum(probability, 0.3).astype(np.float16),
        f"{split}_first_right": probability > 0.35,
    }


def _captions(
    about: Questions, truth: Truth, rng: np.random.Generator, levels: int, source: str
) -> dict[str, np.ndarray]:
    assert about.probe is not None
    number = len(about.probe.kind)
    # Levels dealt out at random mean nothing.
    slope = truth.slope if source == "scores" else 0.0
    steps = slope * np.arange(levels)[:, None]
    tables = {
        "right": -40 + steps + rng.normal(0, 0.3, (levels, number)),
        "wrong": -42 - steps / 2 + rng.normal(0, 0.3, (levels, number)),
    }
    row = {f"captions_{name}": table.astype(np.float16) for name, table in tables.items()}
    if source == "none":
        blank = {"right": tables["right"][0] - truth.picture_gain, "wrong": tables["wrong"][0]}
        noise = rng.normal(0, 0.5, (2, number))
        row |= {
            f"captions_{name}_blank": (table + noise[place])[None].astype(np.float16)
            for place, (name, table) in enumerate(blank.items())
        }
    return row


def results(truth: Truth, seeds: int = 6, arms: Sequence[str] = ("none", "adaptive", "placebo")) -> Results:
    """The results at 60 % of bad captions, with the questions of `questions()`."""
    about = questions()
    return check_rows(rows(about, truth, arms=arms, noises=(0.6,), seeds=seeds, random=3), about)
