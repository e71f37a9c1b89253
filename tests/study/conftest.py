"""The data of a tiny study: twelve pictures with right and wrong captions and questions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import simulated_study as simulated

from aligngpt.study.analysis.analysing import Analysis, analyse_results
from aligngpt.study.analysis.loading import Results, check_rows
from aligngpt.study.data import Probe, StudyData
from aligngpt.study.files_data import FixedPairs
from aligngpt.study.pairs import ScoredPair
from aligngpt.study.plan import Plan

WORDS = ("red", "green", "blue")


def caption_record(place: int, caption: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption}]
    return {"id": f"c{place}", "image": f"{place}.png", "conversations": turns}


@pytest.fixture
def study_data(data: Path, language_folder: Callable, tower_folder: Callable) -> StudyData:
    """Pairs of which every third has a wrong caption and a low score; questions of two kinds."""
    questions = []
    for place in range(12):
        word = WORDS[place % 3]
        for kind, question, answer in (
            ("colour", "what colour is it ?", word),
            ("presence", "is it red ?", "yes" if word == "red" else "no"),
        ):
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            record = {"id": f"q{place}-{kind}", "image": f"{place}.png", "conversations": turns}
            questions.append(record | {"question_type": kind, "scope": "part"})
    (data / "asked.json").write_text(json.dumps(questions))
    right = [caption_record(place, f"a {WORDS[place % 3]} circle") for place in range(6)]
    wrong = [caption_record(place, f"a {WORDS[(place + 1) % 3]} circle") for place in range(6)]
    (data / "right.json").write_text(json.dumps(right))
    (data / "wrong.json").write_text(json.dumps(wrong))
    pairs = [
        ScoredPair(
            f"c{place}",
            f"{place}.png",
            f"a {WORDS[place % 3]} circle" if place % 3 else "a big triangle",
            score=(0.5 if place % 3 else 0.1) + place / 1000,
            quality=float(place % 3 > 0),
        )
        for place in range(12)
    ]
    return StudyData(
        model={
            "vision_tower": str(tower_folder("clip")),
            "language_model": str(language_folder("qwen2")),
            "chat_template": "bare",
        },
        image_root=data,
        pairs=FixedPairs(pairs),
        questions=data / "asked.json",
        tests={"test": data / "asked.json"},
        probe=Probe(data / "right.json", data / "wrong.json", ("exchanged",) * 6),
    )


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Plan]:
    """A plan of four steps per stage for the given cells."""

    def make(*cells: dict[str, Any], **changes: Any) -> Plan:
        stage = {"batch_size": 4, "learning_rate": 0.01, "precision": "float32", "max_length": 64}
        content: dict[str, Any] = {
            "output": str(tmp_path / "study"),
            "scenes": {},
            "pretrain": stage | {"epochs": 1, "schedule": "linear"},
            "instruct": stage | {"max_steps": 4},
            "cells": list(cells),
        }
        return Plan.model_validate(content | changes)

    return make


@pytest.fixture(scope="session")
def steep() -> Results:
    """Levels that mean something, and an effect of the right ones."""
    return simulated.results(
        simulated.Truth({("adaptive", 0.6): 0.1}, slope=1.0), arms=("none", "adaptive", "placebo", "constant")
    )


@pytest.fixture(scope="session")
def flat() -> Analysis:
    """Levels that mean nothing, where a model without levels tells captions apart well."""
    truth = simulated.Truth({("adaptive", 0.6): -0.1}, slope=0.0, picture_gain=2.0)
    about = simulated.questions(captions=240)
    return analyse_results(check_rows(simulated.rows(about, truth, noises=(0.6,), random=3), about))
