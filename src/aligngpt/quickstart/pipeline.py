"""The quickstart: every step of the method in sequence, using the same functions as the other commands."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from rich.console import Console
from rich.table import Table

import aligngpt
from aligngpt.alignment.levels import roc_auc
from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.data.sources.json import read_records
from aligngpt.device import peak_memory, reset_peak_memory
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.accuracy import evaluate_file
from aligngpt.evaluation.question_only_baseline import AnswerPrior
from aligngpt.evaluation.results import EvaluationResult
from aligngpt.evaluation.run_report import write_report
from aligngpt.files import atomic_write
from aligngpt.levels.making import make_levels
from aligngpt.levels.scored_pairs import ScoredPairs
from aligngpt.locks import owned_folder
from aligngpt.progress import console
from aligngpt.quickstart.backbones import prepare_language_model, prepare_text_tower, prepare_vision_tower
from aligngpt.quickstart.easy_vqa import EasyVQAFiles, prepare_easy_vqa
from aligngpt.quickstart.photographs import prepare_photographs
from aligngpt.reports.statistics import wilson_interval
from aligngpt.scoring.dual_encoder.fit import train_dual_encoder
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.training.recipe import Recipe, StageName, load_recipe, make_recipe, recipe_path
from aligngpt.training.run import train

DEFAULT_MINUTES = 12
TEST_QUESTIONS = 2000
ALL_QUESTIONS_FROM_MINUTES = 30
SHUFFLED_QUESTIONS = 500
IMAGE_SIZE = 56
"""Side in pixels: 16 patches. The images are 64 x 64 px and contain one shape each."""

VISION_LAYERS = 8
"""Number of layers, of 12, that the dual encoder keeps: this tower's last layers were fine-tuned for saliency."""

PRETRAIN_SHARE = 0.2
"""Share of the training time for pre-training; the rest is for instruction tuning."""

SECONDS_OF_WARM_START = 45
SECONDS_AFTER_TRAINING = 130
SECONDS_PER_QUESTION = 0.06


SECONDS_OF_DUAL_ENCODER = 16
"""Seconds on two idle cores. Used to judge a machine's speed, since the work is the same everywhere."""

SLOW = 1.5
"""A machine that takes more than this many times as long is reported as slow."""


class QuickstartError(AlignGPTError):
    """The quickstart cannot be run with the given arguments."""


class NotLearntError(AlignGPTError):
    """The trained model answers no better than without looking at the images."""


@dataclass
class Run:
    """The folder of one quickstart run, and the measurements of its finished steps.

    Attributes:
        folder: contains all files of the run.
        minutes: time budget of the whole run.
        seed: random seed of all steps.
        steps: seconds, samples and peak memory (bytes) by step name.
        training_minutes: set once when training begins, and kept by a resumed run.
    """

    folder: Path
    minutes: float
    seed: int
    steps: dict[str, dict[str, Any]]
    training_minutes: float | None = None

    @classmethod
    def open(cls, folder: Path, minutes: float, seed: int) -> "Run":
        """Start a run, or resume the one in the folder.

        Raises:
            QuickstartError: the folder contains a run with other settings.
        """
        path = folder / "run.json"
        if not path.is_file():
            return cls(folder, minutes, seed, {})
        found = json.loads(path.read_text(encoding="utf-8"))
        if (found["minutes"], found["seed"]) != (minutes, seed):
            raise QuickstartError(
                f"{folder} contains a run of {found['minutes']:g} minutes with seed {found['seed']}; use the same "
                "settings, or another folder with --out"
            )
        return cls(folder, minutes, seed, found["steps"], found["training_minutes"])

    def save(self) -> None:
        """Write run.json."""
        facts = {
            "aligngpt": aligngpt.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": str(torch.get_num_threads()),
            "minutes": f"{self.minutes:g}",
            "seed": str(self.seed),
        }
        content = {
            "minutes": self.minutes,
            "seed": self.seed,
            "training_minutes": self.training_minutes,
            "steps": self.steps,
            "facts": facts,
        }
        with atomic_write(self.folder / "run.json") as file:
            json.dump(content, file, indent=2)

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Measure one step and save the measurements if it succeeds. Yields a dict of facts to add to them."""
        console.print(f"[bold]{name}[/]")
        reset_peak_memory()
        started = time.monotonic()
        facts: dict[str, Any] = {}
        yield facts
        before = self.steps.get(name, {}).get("seconds", 0.0)
        measured = {"seconds": round(before + time.monotonic() - started, 1), "peak_memory": peak_memory()}
        self.steps[name] = measured | facts
        self.save()

    def done(self, name: str) -> bool:
        """Whether a step was finished by this process or an earlier one."""
        return name in self.steps

    @property
    def seconds(self) -> float:
        """Total seconds of all finished steps."""
        return sum(step["seconds"] for step in self.steps.values())


def run_quickstart(out: Path | None = None, *, minutes: float = DEFAULT_MINUTES, seed: int = 0) -> Path:
    """Run every unfinished step and print the results.

    Args:
        out: folder of the run; when None, `runs/quickstart`, with the minutes in its name if they are not 12.
        minutes: total time, on two cores like those it was measured on; training gets the time the other steps leave.
        seed: random seed of all steps.

    Returns:
        The folder of the run.

    Raises:
        NotLearntError: the model is no better than its baselines; all results are written and printed all the same.
        AlignGPTError: a package is missing, or the folder contains something else.
    """
    if out is None:
        out = Path("runs") / ("quickstart" if minutes == DEFAULT_MINUTES else f"quickstart-{minutes:g}-minutes")
    with owned_folder(out, "quickstart"):
        return _run_quickstart(out, minutes, seed)


def _run_quickstart(out: Path, minutes: float, seed: int) -> Path:
    run = Run.open(out, minutes, seed)
    if run.done("Report"):
        console.print(f"{out} is already finished; to run again, remove it or give another folder with --out")
        _print_results(run)
        _check_learnt(run)
        return out
    files, backbones = _prepare(run)
    _score(run, files, backbones)
    _train(run, files, backbones)
    _evaluate(run, files)
    with run.step("Report"):
        write_report(run.folder)
    with atomic_write(run.folder / "results.json") as file:
        json.dump(_results(run), file, indent=2)
    _print_results(run)
    _check_learnt(run)
    return out


def _prepare(run: Run) -> tuple[EasyVQAFiles, dict[str, Path]]:
    """Convert the packaged weights and data to ordinary folders, reusing those that already exist."""
    cache = run.folder.parent / "backbones"
    with run.step("Models and data"):
        backbones = {
            "language_model": prepare_language_model(cache),
            "vision_tower": prepare_vision_tower(cache, image_size=IMAGE_SIZE),
            "text_tower": prepare_text_tower(cache),
        }
        files = prepare_easy_vqa(run.folder / "data", seed=run.seed)
        prepare_photographs(run.folder / "photographs")
    return files, backbones


def _score(run: Run, files: EasyVQAFiles, backbones: dict[str, Path]) -> None:
    """Compute scores and levels of the captions, and the ROC AUC of right against wrong captions of test images."""
    encoder = run.folder / "dual-encoder"
    if not run.done("Dual encoder"):
        with run.step("Dual encoder"):
            train_dual_encoder(
                files.captions,
                backbones["vision_tower"],
                backbones["text_tower"],
                encoder,
                vision_layers=VISION_LAYERS,
                image_pooling="mean",
                seed=run.seed,
            )
        _say_when_slow(run)
    if not run.done("Scores"):
        with run.step("Scores") as facts:
            scorer = PairScorer.load(encoder)
            # The images are small: a thread opens them all before a worker process would have started.
            summary = score_source(open_pairs(files.captions), scorer, run.folder / "scores", workers=0)
            held_out = score_source(open_pairs(files.test_pairs), scorer, run.folder / "scores-test", workers=0)
            facts["samples"] = summary.scored + held_out.scored
            auc = _separation(files.test_pairs, run.folder / "scores-test")
            with atomic_write(run.folder / "separation.json") as file:
                json.dump({"roc_auc": auc, "pairs": held_out.scored}, file)
    if not run.done("Levels"):
        with run.step("Levels"):
            make_levels(run.folder / "scores", source=files.captions, out=run.folder / "captions.json")


def _say_when_slow(run: Run) -> None:
    slower = run.steps["Dual encoder"]["seconds"] / SECONDS_OF_DUAL_ENCODER
    if slower > SLOW:
        console.print(
            f"this machine is slow or busy: it takes {slower:.1f} times as long as the two idle cores that the "
            f"{DEFAULT_MINUTES} minutes were measured on. Training continues until the model has learnt enough: about "
            f"{slower * max(run.minutes, DEFAULT_MINUTES):.0f} minutes in total",
            highlight=False,
            soft_wrap=True,
        )


def _separation(pairs: Path, scores_folder: Path) -> float:
    """How well the scores separate right captions from wrong ones: the area under the ROC curve."""
    is_right = [isinstance(record, dict) and record["caption_quality"] == "right" for _, record in read_records(pairs)]
    batches = list(ScoredPairs(scores_folder).batches())
    scores = np.concatenate([batch.scores for batch in batches])
    return roc_auc(scores, np.array(is_right)[np.concatenate([batch.numbers for batch in batches])])


def _train(run: Run, files: EasyVQAFiles, backbones: dict[str, Path]) -> None:
    if run.training_minutes is None:
        left = 60 * run.minutes - run.seconds - SECONDS_OF_WARM_START - SECONDS_AFTER_TRAINING
        if run.minutes >= ALL_QUESTIONS_FROM_MINUTES:
            left -= SECONDS_PER_QUESTION * len(list(read_records(files.test_questions)))
        run.training_minutes = max(0.2 * run.minutes, left / 60)
        run.save()
    recipe = _recipe(run, files, backbones)
    stages: dict[StageName, str] = {"pretrain": "Stage 1: pre-training", "instruct": "Stage 2: instruction tuning"}
    for stage, name in stages.items():
        if run.done(name):
            continue
        with run.step(name) as facts:
            result = train(recipe, [stage])[0]
            facts.update(samples=result.samples, training_seconds=result.seconds, peak_memory=result.peak_memory)


def _recipe(run: Run, files: EasyVQAFiles, backbones: dict[str, Path]) -> Recipe:
    """The quickstart's recipe with this run's folders and minutes, also written to `recipe.yaml` in the run folder."""
    assert run.training_minutes is not None
    content = load_recipe(recipe_path("quickstart")).model_dump(mode="json")
    content["model"]["vision_tower"] = str(backbones["vision_tower"])
    content["model"]["language_model"] = str(backbones["language_model"])
    content["pretrain"]["data"] = str(run.folder / "captions.json")
    content["pretrain"]["image_root"] = str(files.folder)
    content["instruct"]["data"] = str(files.train_questions)
    content["instruct"]["image_root"] = str(files.folder)
    content["instruct"]["validation"]["data"] = str(files.validation_questions)
    content["pretrain"]["minutes"] = round(PRETRAIN_SHARE * run.training_minutes, 2)
    content["instruct"]["minutes"] = round((1 - PRETRAIN_SHARE) * run.training_minutes, 2)
    content["output"] = str(run.folder)
    content["seed"] = run.seed
    with atomic_write(run.folder / "recipe.yaml") as file:
        yaml.safe_dump(content, file, sort_keys=False)
    return make_recipe(content)


def _evaluate(run: Run, files: EasyVQAFiles) -> None:
    model = run.folder / "model"
    limit = None if run.minutes >= ALL_QUESTIONS_FROM_MINUTES else TEST_QUESTIONS
    evaluations: dict[str, tuple[str, Path, dict[str, Any]]] = {
        "Test": ("test", files.test_questions, {"limit": limit}),
        "Test, images shuffled": (
            "shuffled",
            files.test_questions,
            {"limit": SHUFFLED_QUESTIONS, "shuffle_images": True},
        ),
        "Photographs": ("photographs", run.folder / "photographs" / "questions.json", {}),
    }
    for name, (folder, questions, options) in evaluations.items():
        if run.done(name):
            continue
        with run.step(name) as facts:
            result = evaluate_file(model, questions, out=run.folder / "evaluation" / folder, seed=run.seed, **options)
            facts["samples"] = result.overall.total
    if not run.done("Baselines"):
        with run.step("Baselines"), Rejects(None) as rejects:
            training = load_samples(files.train_questions, rejects=rejects, check_images=False)
            test = load_samples(files.test_questions, rejects=rejects, check_images=False)
            tally = {
                "correct": AnswerPrior.fit(training).count_correct(test),
                "total": len(test),
                "note": "most frequent training answer to the same question",
            }
            with atomic_write(run.folder / "baselines.json") as file:
                json.dump({"Text only": tally}, file)


def _print_results(run: Run) -> None:
    out = Console()
    table = Table(title="easy-VQA, test split", title_justify="left")
    for heading, side in (("", "left"), ("accuracy", "right"), ("right/asked", "right"), ("95 % interval", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    rows = {
        "AlignGPT": _tally(run, "test"),
        "AlignGPT, images shuffled": _tally(run, "shuffled"),
        **{name: (facts["correct"], facts["total"]) for name, facts in _json(run, "baselines.json").items()},
    }
    for name, (correct, total) in rows.items():
        low, high = wilson_interval(correct, total)
        table.add_row(name, f"{correct / total:.1%}", f"{correct}/{total}", f"{low:.1%}–{high:.1%}")
    out.print(table)
    results = _results(run)
    out.print(f"scores, right against wrong captions of test images: ROC AUC {results['auc']:.3f}", highlight=False)
    shares = ", ".join(f"{share:.0%}" for share in _wrong_shares(run))
    out.print(f"wrong captions among those of level 1 to N: {shares}", highlight=False)
    out.print(f"report: {run.folder / 'report.html'}", highlight=False, soft_wrap=True)
    image = run.folder / "data" / "images" / "test" / "0.png"
    out.print(
        f'try: aligngpt ask {run.folder / "model"} {image} "what shape is in the image?" --show-alignment',
        highlight=False,
        soft_wrap=True,
    )
    digits = {"minutes": 1, "peak_gb": 1}
    figures = " ".join(f"{name}={value:.{digits.get(name, 3)}f}" for name, value in results.items())
    out.print(f"quickstart {figures}", highlight=False, soft_wrap=True)


def _check_learnt(run: Run) -> None:
    """Check that the model is significantly better than its baselines.

    Raises:
        NotLearntError: it is not.
    """
    correct, total = _tally(run, "test")
    low, _ = wilson_interval(correct, total)
    results = _results(run)
    best = max(results["prior"], results["shuffled"])
    if low <= best:
        raise NotLearntError(
            f"the model learnt too little: {correct / total:.1%} of its answers are correct (95 % interval from "
            f"{low:.1%}), compared with {best:.1%} without looking at the images. Allow more time, such as --minutes "
            f"{2 * run.minutes:g}, or use a machine that is less busy"
        )


def _results(run: Run) -> dict[str, float]:
    """The key figures of the run."""
    tallies = {"accuracy": _tally(run, "test"), "shuffled": _tally(run, "shuffled")}
    prior = _json(run, "baselines.json")["Text only"]
    return {
        "accuracy": tallies["accuracy"][0] / tallies["accuracy"][1],
        "prior": prior["correct"] / prior["total"],
        "shuffled": tallies["shuffled"][0] / tallies["shuffled"][1],
        "auc": _json(run, "separation.json")["roc_auc"],
        "minutes": run.seconds / 60,
        "peak_gb": max(step["peak_memory"] for step in run.steps.values()) / 1e9,
    }


def _wrong_shares(run: Run) -> list[float]:
    """The share of wrong captions in each level, level 1 first."""
    wrong: defaultdict[int, list[bool]] = defaultdict(list)
    for _, record in read_records(run.folder / "captions.json"):
        assert isinstance(record, dict)
        wrong[record["similarity"]].append(record["caption_quality"] == "wrong")
    return [sum(found) / len(found) for _, found in sorted(wrong.items())]


def _tally(run: Run, name: str) -> tuple[int, int]:
    result = EvaluationResult.load(run.folder / "evaluation" / name / "results.json")
    return result.overall.correct, result.overall.total


def _json(run: Run, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.folder / name).read_text(encoding="utf-8"))
    return content
