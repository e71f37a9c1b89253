"""Small folders laid out like LLaVA's `playground/data/eval`, and the answers that are all right."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def whole(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (200, 0, 0)).save(path)


def pope(root: Path) -> list[str]:
    questions, right = [], []
    for category in ("adversarial", "popular", "random"):
        labels = []
        for image in ("1.jpg", "2.jpg"):
            picture(root / "pope/val2014" / image)
            for thing, label in (("dog", "yes"), ("cat", "no")):
                text = f"Is there a {thing} in the image?"
                labels.append({"question_id": len(labels) + 1, "image": image, "text": text, "label": label})
                number = len(questions)
                questions.append({"question_id": number, "image": image, "text": text + SHORT, "category": category})
                right.append(label.capitalize())
        lines(root / f"pope/coco/coco_pope_{category}.json", labels)
    lines(root / "pope/llava_pope_test.jsonl", questions)
    return right


def repope(root: Path) -> list[str]:
    right = pope(root)
    for category in ("adversarial", "popular", "random"):
        rows = [json.loads(line) for line in (root / f"pope/coco/coco_pope_{category}.json").read_text().splitlines()]
        # The first question is removed and the labels of the cats are corrected.
        corrected = [row | {"label": "yes"} for row in rows[1:]]
        lines(root / f"pope/annotations/coco_repope_{category}.json", corrected)
    return ["Yes"] * len(right)


def mme(root: Path) -> list[str]:
    questions, right = [], []
    release = root / "MME/MME_Benchmark_release_version"
    for category, split in (("OCR", False), ("artwork", True), ("code_reasoning", False)):
        images, labels = (
            (release / category / "images", release / category / "questions_answers_YN")
            if split
            else (
                release / category,
                release / category,
            )
        )
        for number in (1, 2):
            picture(images / f"{number}.png")
            labels.mkdir(parents=True, exist_ok=True)
            texts = [f"Is it {number}?", f"Is it {number + 5}?"]
            (labels / f"{number}.txt").write_text(
                f"{texts[0]} Please answer yes or no.\tYes\n{texts[1]}  Please answer yes or no.\tNo\n",
                encoding="utf-8",
            )
            for text, answer in zip(texts, ("Yes", "No"), strict=True):
                name = f"{category}/{number}.png"
                questions.append({"question_id": name, "image": name, "text": text + SHORT, "category": category})
                right.append(answer)
    lines(root / "MME/llava_mme.jsonl", questions)
    return right


def textvqa(root: Path) -> list[str]:
    # Two questions about one picture have the same id.
    asked = [("a1", "What brand is it?", "Nike"), ("a1", "What year?", "1999"), ("b2", "What word?", "stop")]
    for image in ("a1", "b2"):
        picture(root / f"textvqa/train_images/{image}.jpg")
    gold = [{"image_id": i, "question": q, "answers": [a] * 10, "question_id": n} for n, (i, q, a) in enumerate(asked)]
    whole(root / "textvqa/TextVQA_0.5.1_val.json", {"data": gold})
    lines(
        root / "textvqa/llava_textvqa_val_v051_ocr.jsonl",
        [
            {"question_id": i, "image": f"{i}.jpg", "text": f"{q}\nReference OCR token: {a},\nx{SHORT}"}
            for i, q, a in asked
        ],
    )
    return [answer for _, _, answer in asked]


def scienceqa(root: Path) -> list[str]:
    problems = {
        "3": {"choices": ["x", "y"], "answer": 1, "subject": "language science"},
        "7": {"choices": ["x", "y", "z"], "answer": 2, "subject": "natural science"},
    }
    whole(root / "scienceqa/problems.json", problems | {"9": {"choices": ["x"], "answer": 0}})
    whole(root / "scienceqa/pid_splits.json", {"test": ["3", "7"], "train": ["9"]})
    picture(root / "scienceqa/images/test/7/image.png")
    turns = [{"from": "human", "value": "<image>\nContext: N/A\nQuestion?"}, {"from": "gpt", "value": "C"}]
    whole(
        root / "scienceqa/llava_test_CQM-A.json",
        [
            {"id": "3", "conversations": [{"from": "human", "value": "Question?"}, turns[1]]},
            {"id": "7", "image": "7/image.png", "conversations": turns},
        ],
    )
    return ["B", "C"]


def gqa(root: Path) -> list[str]:
    asked = [("20", "n1", "What is it?", "dog"), ("21", "n1", "Is it red?", "yes")]
    picture(root / "gqa/data/images/n1.jpg")
    gold = {i: {"question": q, "answer": a, "types": {"structural": "query"}} for i, _, q, a in asked}
    whole(root / "gqa/data/testdev_balanced_questions.json", gold)
    lines(
        root / "gqa/llava_gqa_testdev_balanced.jsonl",
        [{"question_id": i, "image": f"{n}.jpg", "text": q + SHORT} for i, n, q, _ in asked],
    )
    return ["Dog.", "yes"]


def seed(root: Path) -> list[str]:
    gold, questions = [], []
    for name, kind, answer in ((5, "image", "A"), (6, "image", "D"), ("v7", "video", "B")):
        gold.append(
            {
                "question_id": name,
                "data_type": kind,
                "question": f"Which {name}?",
                "answer": answer,
                "question_type_id": 1,
            }
        )
        text = f"Which {name}?\nA. a\nB. b\nC. c\nD. d{LETTER}"
        questions.append({"question_id": name, "image": f"SEED-Bench-image/{name}", "text": text})
        Image.new("RGB", (6, 4)).save(_folder(root / "seed_bench/SEED-Bench-image") / str(name), format="PNG")
    whole(root / "seed_bench/SEED-Bench.json", {"questions": gold, "question_type": {"Scene": 1}})
    lines(root / "seed_bench/llava-seed-bench.jsonl", questions)
    return ["A", "D"]


def mmbench(root: Path) -> list[str]:
    return _mmbench(root / "mmbench/mmbench_dev_20230712.tsv")


def mmbench_cn(root: Path) -> list[str]:
    return _mmbench(root / "mmbench/mmbench_dev_cn_20231003.tsv")


def vqav2(root: Path) -> list[str]:
    rows = [{"question_id": n, "image": f"{n}.jpg", "text": f"What {n}?{SHORT}"} for n in (1, 2, 3)]
    for row in rows:
        picture(root / "vqav2/test2015" / row["image"])
    lines(root / "vqav2/llava_vqav2_mscoco_test2015.jsonl", rows)
    lines(root / "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", [rows[2], rows[0]])
    return ["The Cat.", "two"]


def vqav2_val(root: Path) -> list[str]:
    picture(root / "vqav2/val2014/COCO_val2014_000000000042.jpg")
    question = {"question_id": 42000, "image_id": 42, "question": "How many?"}
    whole(root / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": [question]})
    answers = [{"answer": answer} for answer in ["2"] * 5 + ["two"] * 5]
    label = {"question_id": 42000, "image_id": 42, "answer_type": "number", "answers": answers}
    whole(root / "vqav2/v2_mscoco_val2014_annotations.json", {"annotations": [label]})
    return ["two"]


def vizwiz(root: Path) -> list[str]:
    picture(root / "vizwiz/test/VizWiz_test_0.jpg")
    name = "VizWiz_test_0.jpg"
    lines(root / "vizwiz/llava_test.jsonl", [{"question_id": name, "image": name, "text": f"What?{SHORT}"}])
    return ["a Dog?"]


def vizwiz_val(root: Path) -> list[str]:
    picture(root / "vizwiz/val/VizWiz_val_0.jpg")
    answers = [{"answer": "dog", "answer_confidence": "yes"}] * 9 + [{"answer": "cat", "answer_confidence": "no"}]
    row = {"image": "VizWiz_val_0.jpg", "question": "What?", "answers": answers, "answer_type": "other"}
    whole(root / "vizwiz/val.json", [row])
    return ["Dog"]


def llava_bench(root: Path) -> list[str]:
    folder = root / "llava-bench-in-the-wild"
    picture(folder / "images/001.jpg")
    rows = [{"question_id": n, "image": "001.jpg", "text": f"Tell {n}", "category": "conv"} for n in (0, 1)]
    lines(folder / "questions.jsonl", rows)
    return ["one", "two"]


def mm_vet(root: Path) -> list[str]:
    picture(root / "mm-vet/images/v1_0.png")
    lines(root / "mm-vet/llava-mm-vet.jsonl", [{"question_id": 0, "image": "v1_0.png", "text": "What is x?"}])
    whole(root / "mm-vet/mm-vet.json", {"v1_0": {"question": "What is x?", "capability": ["ocr", "math"]}})
    return ["-1"]


LAYOUTS: dict[str, Callable[[Path], list[str]]] = {
    "pope": pope,
    "repope": repope,
    "mme": mme,
    "textvqa": textvqa,
    "scienceqa": scienceqa,
    "gqa": gqa,
    "seed": seed,
    "mmbench": mmbench,
    "mmbench-cn": mmbench_cn,
    "vqav2": vqav2,
    "vqav2-val": vqav2_val,
    "vizwiz": vizwiz,
    "vizwiz-val": vizwiz_val,
    "llava-bench": llava_bench,
    "mm-vet": mm_vet,
}
"""Benchmark → writes its folder and returns the right answers, in the order of the questions."""


def _mmbench(path: Path) -> list[str]:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (0, 90, 0)).save(buffer, format="PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    rows = [["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]]
    for question in (1, 2):
        rows.append([str(question), "Which?", "nan", "cat", "dog", "", "", "A", "ocr", encoded])
        rows.append([str(question + 1_000_000), "Which?", "nan", "dog", "cat", "", "", "B", "ocr", str(question)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return ["A", "B", "A", "B"]


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
