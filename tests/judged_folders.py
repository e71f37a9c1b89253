"""Small LLaVA-Bench and MM-Vet folders with reference answers, and a judge's script for them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_layouts as layouts
from judge_server import said

COUNT = 40
"""Questions of each benchmark here: one without a verdict leaves 97.5 %, three leave 92.5 %."""

KINDS = ("conv", "detail", "complex")


def llava_bench(root: Path) -> Path:
    """The benchmark's folder; returns answers of a model, "model 0" … ."""
    folder = root / "llava-bench-in-the-wild"
    layouts.picture(folder / "images/001.jpg")
    asked = [
        {"question_id": n, "image": "001.jpg", "text": f"Tell {n}", "category": KINDS[n % 3]} for n in range(COUNT)
    ]
    layouts.lines(folder / "questions.jsonl", asked)
    layouts.lines(folder / "context.jsonl", [{"id": "001", "image": "001.jpg", "caption": "A green room."}])
    # In another order: the original pairs the files by line.
    rows = [{"question_id": n, "prompt": f"Tell {n}", "text": f"reference {n}"} for n in reversed(range(COUNT))]
    layouts.lines(folder / "answers_gpt4.jsonl", rows)
    return answers(root, "llava.jsonl", [f"model {n}" for n in range(COUNT)])


def mm_vet(root: Path) -> Path:
    """The benchmark's folder; returns answers of a model."""
    layouts.picture(root / "mm-vet/images/v1_0.png")
    asked = [{"question_id": n, "image": "v1_0.png", "text": f"What is x{n}?"} for n in range(COUNT)]
    layouts.lines(root / "mm-vet/llava-mm-vet.jsonl", asked)
    labels = {
        f"v1_{n}": {"question": f"What is x{n}?", "answer": f"-1<AND>{n}", "capability": ["ocr", "math"][: 1 + n % 2]}
        for n in range(COUNT)
    }
    layouts.whole(root / "mm-vet/mm-vet.json", labels)
    return answers(root, "vet.jsonl", [f"x = {n}" for n in range(COUNT)])


def answers(root: Path, name: str, texts: list[str]) -> Path:
    layouts.lines(root / name, [{"question_id": n, "text": text} for n, text in enumerate(texts)])
    return root / name


FOLDERS: dict[str, Callable[[Path], Path]] = {"llava-bench": llava_bench, "mm-vet": mm_vet}


def content(request: dict[str, Any]) -> str:
    return request["messages"][-1]["content"]


def asked_of(request: dict[str, Any]) -> tuple[int, bool]:
    """Number of the question, and whether the reference answer is judged."""
    text = content(request)
    if found := re.search(r"\[Question\]\nTell (\d+)\n", text):
        return int(found[1]), "[Assistant 2]\nreference" in text
    found = re.search(r"What is x(\d+)\? \| -1 <AND> \d+ \| (.*) \| ", text)
    assert found is not None, text
    return int(found[1]), found[2] == f"-1, {found[1]}"


def fair(request: dict[str, Any], _: int) -> object:
    """Reviews give the reference 8 and the model 6; grades are 1 for the truth and 0.5 for the model."""
    of_reference = asked_of(request)[1]
    if "[Assistant 1]" in content(request):
        return said(f"8 {8 if of_reference else 6}\nBecause.")
    return said("1.0" if of_reference else "0.5")
