"""The model `aligngpt` in lmms-eval's own command, offline; its scores are those of our `lmms` rules.

lmms-eval pins packages that this project does not fit, so it needs an environment of its own. docs/harnesses.md says
how to make one; in it, run `python -m pytest -m "slow or not slow" tests/evaluation/test_lmms_plugin.py`.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import benchmark_layouts as layouts
import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from aligngpt.evaluation.benchmarks.folder import DataFolder
from aligngpt.evaluation.benchmarks.frame import LMMS, SHORT, Item
from aligngpt.evaluation.benchmarks.registry import all_benchmarks
from aligngpt.inference.engine import Engine, Request, Sampling

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed; see docs/harnesses.md"
)

CHOICES = ("red circle", "blue square", "green")


class Ran(NamedTuple):
    """A finished run: its output, the results per task, and the logged samples per task in order."""

    output: str
    results: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def model(assembled: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose first token is always `yes`, `no`, `.` or `circle`, depending on what it is shown and asked."""
    folder = tmp_path_factory.mktemp("lmms") / "model"
    model, processor = assembled()
    weights = model.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(27)
    pairs = [("yes", "no", 1.0), (".", "circle", 0.6)]
    with torch.no_grad():
        weights.zero_()
        for one, other, scale in pairs:
            direction = scale * torch.randn(weights.shape[1], generator=generator)
            for word, sign in ((one, 1), (other, -1)):
                weights[processor.tokenizer.convert_tokens_to_ids(word)] = sign * direction
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Item]]:
    """POPE and MME in our layout, with pictures that differ and words that the model knows."""
    root = tmp_path_factory.mktemp("eval")
    layouts.pope(root)
    layouts.mme(root)
    generator = np.random.default_rng(0)
    for path in sorted(root.rglob("*.*")):
        if path.suffix in (".jpg", ".png"):
            Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
        elif path.is_file():
            text = path.read_text(encoding="utf-8")
            for old, new in (("dog", "circle"), ("cat ", "square "), ("Is it 1", "red"), ("Is it 2", "blue")):
                text = text.replace(old, new)
            path.write_text(text, encoding="utf-8")
    benchmarks = all_benchmarks()
    return {name: benchmarks[name].read(DataFolder(root, "here")) for name in ("pope", "mme")}


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    with Engine.load(model, device="cpu", dtype="float32") as engine:
        yield engine


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], yaml: str) -> None:
    parquet = folder / f"{name}-data" / "data" / "test-00000-of-00001.parquet"
    parquet.parent.mkdir(parents=True)
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(parquet)
    written = f"task: {name}\ndataset_path: {folder / f'{name}-data'}\ndataset_kwargs: {{}}\n{yaml}"
    (folder / f"{name}.yaml").write_text(written, encoding="utf-8")


def built_in(path: str) -> str:
    spec = importlib.util.find_spec("lmms_eval")
    assert spec is not None and spec.origin is not None
    return f"include: {Path(spec.origin).parent / 'tasks' / path}\n"


def picture_of(item: Item) -> dict[str, Any]:
    assert item.picture is not None and item.picture.path is not None
    return {"bytes": item.picture.path.read_bytes(), "path": None}


@pytest.fixture(scope="module")
def tasks(items: dict[str, list[Item]], engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local tasks: POPE, MME and a multiple choice whose gold is what the engine finds likeliest."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, suffix in (("pope", ""), ("mme", " Please answer yes or no.")):
        rows = [
            {
                "question_id": str(item.question_id),
                "question": item.prompt.removesuffix("\n" + SHORT) + suffix,
                "answer": item.truth,
                "category": item.category,
                "image_source": "here",
                "image": picture_of(item),
            }
            for item in items[name]
        ]
        write_task(folder, f"{name}_local", rows, built_in(f"{name}/{name}.yaml"))
    rows = []
    for item in items["mme"]:
        assert item.picture is not None
        (rated,) = engine.likelihood(Request.ask(item.prompt, item.picture.open()), CHOICES)
        best = max(range(len(CHOICES)), key=lambda place: rated[place].log_probability)
        rows.append({"question": item.prompt, "choices": list(CHOICES), "gold": best, "image": picture_of(item)})
    (folder / "local.py").write_text("def visuals(doc):\n    return [doc['image'].convert('RGB')]\n", encoding="utf-8")
    yaml = (
        "test_split: test\noutput_type: multiple_choice\ndoc_to_visual: !function local.visuals\n"
        "doc_to_text: question\ndoc_to_target: gold\ndoc_to_choice: choices\nmetric_list:\n  - metric: acc\n"
    )
    write_task(folder, "choice_local", rows, yaml)
    return folder


def run(model: Path, tasks: Path, names: Sequence[str], out: Path, *more: str, options: str = "") -> Ran:
    """Run lmms-eval's command."""
    given = f"pretrained={model},precision=float32{options}"
    command = [sys.executable, "-m", "lmms_eval", "--model", "aligngpt", "--model_args", given, "--device", "cpu"]
    command += ["--include_path", str(tasks), "--tasks", ",".join(names), "--batch_size", "3"]
    command += ["--log_samples", "--output_path", str(out), *more]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "cache")}
    ran = subprocess.run(
        command, env=os.environ | offline, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    results: dict[str, dict[str, Any]] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    for path in out.rglob("*_results.json"):
        results |= json.loads(path.read_text(encoding="utf-8"))["results"]
    for name in names:
        for path in out.rglob(f"*_samples_{name}.jsonl"):
            read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            samples[name] = sorted(read, key=lambda one: int(one["doc_id"]))
    return Ran(ran.stdout, results, samples)


@pytest.mark.slow
def test_scores_agree_with_the_lmms_rules(
    model: Path, engine: Engine, items: dict[str, list[Item]], tasks: Path, tmp_path: Path
) -> None:
    ran = run(model, tasks, ["pope_local", "mme_local"], tmp_path, "--gen_kwargs", "max_new_tokens=1")
    assert set(ran.samples) == {"pope_local", "mme_local"}, ran.output
    kinds = set[str]()
    for name, metric, scale in (("pope", "pope_f1_score", 100), ("mme", "mme_perception_score", 1)):
        texts = [sample["filtered_resps"] for sample in ran.samples[f"{name}_local"]]
        asked = [Request.ask(item.prompt, item.picture.open()) for item in items[name] if item.picture is not None]
        assert texts == [answer.text for answer in engine.answer(asked, Sampling(max_new_tokens=1))]
        score = all_benchmarks()[name].score(items[name], texts, LMMS, tmp_path)
        assert scale * ran.results[f"{name}_local"][f"{metric},none"] == pytest.approx(score.figure, rel=1e-12)
        assert score.figure is not None and score.figure > 0
        kinds |= set(texts)
    assert len(kinds) > 2, "the comparison needs answers that are neither yes nor no"


@pytest.mark.slow
def test_multiple_choice_takes_the_likeliest_answer(model: Path, tasks: Path, tmp_path: Path) -> None:
    ran = run(model, tasks, ["choice_local"], tmp_path, "--force_simple")
    assert ran.results.get("choice_local", {}).get("acc,none") == 1, ran.output


@pytest.mark.slow
def test_an_error_ends_the_run_and_names_task_and_document(model: Path, tasks: Path, tmp_path: Path) -> None:
    ran = run(model, tasks, ["pope_local"], tmp_path, "--gen_kwargs", "max_new_tokens=9999")
    assert "task pope_local, document" in ran.output and "context" in ran.output
    assert not ran.results


class Asked(NamedTuple):
    """The parts of lmms-eval's `Instance` that a model reads."""

    args: tuple[Any, ...]
    task_name: str = "local"


@pytest.fixture(scope="module")
def plugin(model: Path) -> Iterator[Any]:
    from aligngpt.evaluation.lmms_plugin import AlignGPT

    plugin = AlignGPT(str(model), device="cpu", precision="float32", batch_size="2")
    plugin.task_dict = {
        "local": {"test": ["what ?", "what colour is the shape in the picture ?", "how many ?", "red ?"]},
        "alike": {"test": ["what ?"] * 6},
    }
    yield plugin
    plugin.clean()


def asked(document: int, task: str = "local", **settings: Any) -> Asked:
    def messages(doc: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "text", "text": doc}]}]

    return Asked(("x" * (9 - document), messages, settings, document, task, "test"))


def test_answers_come_in_the_order_of_the_requests(plugin: Any) -> None:
    requests = [asked(document, max_new_tokens=1 + document % 2) for document in (3, 0, 2, 1)]
    alone = [plugin.generate_until([one])[0] for one in requests]
    assert plugin.generate_until(requests) == alone
    assert [one.token_counts.output_tokens for one in alone] == [2, 1, 1, 2]


def test_repeats_of_a_sampled_document_are_different_draws(plugin: Any) -> None:
    sampled = [asked(1, max_new_tokens=5, temperature=3.0)] * 6
    assert len({one.text for one in plugin.generate_until(sampled)}) > 1
    greedy = [asked(1, max_new_tokens=5)] * 2
    assert len({one.text for one in plugin.generate_until(greedy)}) == 1


def test_documents_are_sampled_with_different_seeds_whatever_else_is_asked(plugin: Any) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 5, "temperature": 3.0}
    requests = [asked(document, "alike", **settings) for document in range(6)]
    drawn = plugin.generate_until(requests)
    assert len({one.text for one in drawn}) > 1
    assert [plugin.generate_until([one])[0] for one in requests] == drawn


def test_rated_answers_are_losses_for_choices_and_log_probabilities_for_targets(plugin: Any, engine: Engine) -> None:
    def nothing(_: object) -> list[Any]:
        return []

    def likeliest(_: object) -> str:
        return " red"

    rest = (nothing, 0, "local", "test")
    requests = [Asked(("what ?", target, *rest)) for target in (" red", likeliest)]
    choice, target = (one.text for one in plugin.loglikelihood(requests))
    ((expected,),) = engine.likelihood(Request.ask("what ?"), ["red"])
    assert (choice[0], target[0]) == pytest.approx((-expected.log_probability, expected.log_probability))


def test_an_lmms_eval_that_takes_the_largest_number_is_refused(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from aligngpt.evaluation import lmms_plugin

    class Largest:
        def process_results(self) -> None:
            pass

    monkeypatch.setattr(lmms_plugin, "ConfigurableTask", Largest)
    with pytest.raises(lmms_plugin.HarnessError, match="chooses among answers in another way"):
        plugin.loglikelihood([Asked(("what ?", " red", lambda _: [], 0, "local", "test"))])


def test_rating_without_a_question_and_several_rounds_are_refused(plugin: Any) -> None:
    from aligngpt.evaluation.lmms_plugin import HarnessError

    with pytest.raises(HarnessError, match="acc_mutual_info"):
        plugin.loglikelihood([Asked(("", "red"))])
    with pytest.raises(HarnessError, match="task local has several rounds"):
        plugin.generate_until_multi_round([Asked(())])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pretrained": 100000.0}, r"pretrained is 100000\.0"),
        ({"pretrained": "x", "picture_mode": "any"}, "picture_mode is 'any', expected one of pad, crop"),
        ({"pretrained": "x", "level": 1.5}, "level is 1.5"),
        ({"pretrained": "x", "batch_size": "auto"}, "--batch_size is 'auto'"),
        ({"pretrained": "x", "conv_template": "v1"}, "no option conv_template"),
        ({"level": 99}, "levels of .* are 1…8"),
    ],
)
def test_wrong_options_are_refused(model: Path, options: dict[str, Any], said: str) -> None:
    from aligngpt.evaluation.lmms_plugin import AlignGPT, HarnessError

    with pytest.raises(HarnessError, match=said):
        AlignGPT(**{"pretrained": str(model), "device": "cpu", **options})


def test_several_processes_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aligngpt.evaluation.lmms_plugin import AlignGPT, HarnessError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HarnessError, match="runs in one process, 2 were started"):
        AlignGPT(str(model))


@pytest.mark.parametrize("first", ["lmms_eval.models", "aligngpt.evaluation.lmms_plugin"])
@pytest.mark.medium
def test_lmms_eval_finds_the_model_whatever_is_imported_first(first: str) -> None:
    code = f"import {first}; from lmms_eval.models import get_model; print(get_model('aligngpt'))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "lmms_plugin.AlignGPT'" in ran.stdout, ran.stderr
