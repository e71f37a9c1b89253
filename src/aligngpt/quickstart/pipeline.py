"""The quickstart: every step of the method in sequence, using the same functions as the other commands."""

import json
from pathlib import Path
from typing import Any

import yaml

from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.sources.json import read_records
from aligngpt.evaluation.accuracy import evaluate_file
from aligngpt.evaluation.run_report import write_report
from aligngpt.files import atomic_write
from aligngpt.levels.making import make_levels
from aligngpt.locks import owned_folder
from aligngpt.progress import say
from aligngpt.quickstart.backbones import prepare_text_tower, prepare_vision_tower
from aligngpt.quickstart.data_sets import QuickstartData, QuickstartFiles, data_set
from aligngpt.quickstart.measuring import measure_separation, text_only_baselines
from aligngpt.quickstart.outcome import PRIOR, SHIFT_BASELINES, check_learnt, key_figures, print_outcome
from aligngpt.quickstart.packages import check_installed
from aligngpt.quickstart.photographs import prepare_photographs
from aligngpt.quickstart.run_folder import RUN_FILE, Run, Settings
from aligngpt.scoring.dual_encoder.fit import train_dual_encoder
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.training.recipe import Recipe, StageName, load_recipe, make_recipe
from aligngpt.training.run import train

ALL_QUESTIONS_FROM_MINUTES = 30
SHUFFLED_QUESTIONS = 500

VISION_LAYERS = 8
"""Number of layers, of 12, that the dual encoder keeps: this tower's last layers were fine-tuned for saliency."""

SLOW = 1.5
"""A machine that takes more than this many times as long is reported as slow."""


def run_quickstart(
    out: Path | None = None,
    *,
    minutes: float | None = None,
    seed: int = 0,
    data: str = "easy-vqa",
    material: str | None = None,
) -> Path:
    """Run every unfinished step and print the results.

    Args:
        out: folder of the run; when None, `runs/quickstart`, with the name of the data if it is not easy-vqa, and with
            the minutes if they are not the data's default.
        minutes: total time, on two cores like those it was measured on; training gets the time the other steps leave.
            When None, 12 for easy-vqa and 15 for scenes.
        seed: random seed of all steps.
        data: `easy-vqa` or `scenes`.
        material: for scenes, where the emoji sets come from: `npm` (when None) or `pypi`.

    Returns:
        The folder of the run.

    Raises:
        QuickstartError: the data or the material is unknown, or the folder contains a run with other settings.
        NotLearntError: the model is no better than its baselines; all results are written and printed all the same.
        AlignGPTError: a package is missing, or the folder contains something else.
    """
    chosen = data_set(data, material)
    settings = Settings(chosen.minutes if minutes is None else minutes, seed, chosen.name, chosen.material)
    if out is None:
        usual = settings.minutes == chosen.minutes
        out = Path("runs") / (chosen.run_name if usual else f"{chosen.run_name}-{settings.minutes:g}-minutes")
    # Later all of it lies in prepared folders.
    if not (out / RUN_FILE).is_file():
        check_installed(chosen.packages, chosen.libraries)
    with owned_folder(out, "quickstart"):
        run_steps(Run.open(out, settings), chosen)
    return out


def run_steps(run: Run, data: QuickstartData) -> None:
    """Run every unfinished step of a run on a data set, whose folder this process owns, and print the results.

    Raises:
        NotLearntError: the model is no better than its baselines.
        AlignGPTError: a step fails.
    """
    if run.done("Report"):
        say(f"{run.folder} is already finished; to run again, remove it or give another folder with --out")
        _conclude(run, data)
        return
    files, backbones = _prepare(run, data)
    _score(run, data, files, backbones)
    _train(run, data, files, backbones)
    _evaluate(run, data, files)
    with run.step("Report"):
        write_report(run.folder)
    _conclude(run, data)


def _conclude(run: Run, data: QuickstartData) -> None:
    figures = key_figures(run.folder, run.steps)
    with atomic_write(run.folder / "results.json") as file:
        json.dump(figures, file, indent=2)
    print_outcome(run.folder, figures, title=data.title, question=data.question)
    check_learnt(run.folder, run.settings.minutes)


def _prepare(run: Run, data: QuickstartData) -> tuple[QuickstartFiles, dict[str, Path]]:
    """Convert the packaged weights and data to ordinary folders, reusing those that already exist."""
    cache = run.folder.parent / "backbones"
    with run.step("Models and data"):
        # First, because only this may need a network.
        files = data.prepare(run.folder / "data", run.settings.seed)
        prepare_photographs(run.folder / "photographs")
        backbones = {
            "language_model": data.language_model(cache),
            "vision_tower": prepare_vision_tower(cache, image_size=data.image_size),
            "text_tower": prepare_text_tower(cache),
        }
    return files, backbones


def _score(run: Run, data: QuickstartData, files: QuickstartFiles, backbones: dict[str, Path]) -> None:
    """Compute scores and levels of the captions, and how well scores separate right and bad captions of test images."""
    encoder = run.folder / "dual-encoder"
    if not run.done("Dual encoder"):
        with run.step("Dual encoder"):
            train_dual_encoder(
                files.encoder_captions,
                backbones["vision_tower"],
                backbones["text_tower"],
                encoder,
                vision_layers=VISION_LAYERS,
                image_pooling="mean",
                seed=run.settings.seed,
            )
        say_when_slow(run, data)
    if not run.done("Scores"):
        with run.step("Scores") as facts:
            scorer = PairScorer.load(encoder)
            # The images are small: a thread opens them all before a worker process would have started.
            summary = score_source(open_pairs(files.captions), scorer, run.folder / "scores", workers=0)
            held_out = score_source(open_pairs(files.test_pairs), scorer, run.folder / "scores-test", workers=0)
            facts["samples"] = summary.scored + held_out.scored
            with atomic_write(run.folder / "separation.json") as file:
                json.dump(measure_separation(files.test_pairs, run.folder / "scores-test"), file)
    if not run.done("Levels"):
        with run.step("Levels"):
            make_levels(run.folder / "scores", source=files.captions, out=run.folder / "captions.json")


def say_when_slow(run: Run, data: QuickstartData) -> None:
    """Print how much longer the run will take if training the dual encoder took much longer than on idle cores."""
    slower = run.steps["Dual encoder"]["seconds"] / data.dual_encoder_seconds
    if slower > SLOW:
        say(
            f"this machine is slow or busy: it takes {slower:.1f} times as long as the two idle cores that the "
            f"{data.minutes:g} minutes were measured on. Training takes longer, so that the model still learns enough: "
            f"about {slower * max(run.settings.minutes, data.minutes):.0f} minutes in total"
        )


def _train(run: Run, data: QuickstartData, files: QuickstartFiles, backbones: dict[str, Path]) -> None:
    if run.training_minutes is None:
        left = 60 * run.settings.minutes - run.seconds - data.seconds_of_warm_start - data.seconds_after_training
        if run.settings.minutes >= ALL_QUESTIONS_FROM_MINUTES:
            left -= data.seconds_per_question * len(list(read_records(files.tests["test"])))
        run.training_minutes = max(0.2 * run.settings.minutes, left / 60)
        run.save()
    recipe = _recipe(run, data, files, backbones)
    stages: dict[StageName, str] = {"pretrain": "Stage 1: pre-training", "instruct": "Stage 2: instruction tuning"}
    for stage, name in stages.items():
        if run.done(name):
            continue
        with run.step(name) as facts:
            result = train(recipe, [stage])[0]
            facts.update(samples=result.samples, training_seconds=result.seconds, peak_memory=result.peak_memory)


def _recipe(run: Run, data: QuickstartData, files: QuickstartFiles, backbones: dict[str, Path]) -> Recipe:
    """The data set's recipe with this run's folders and minutes, also written to `recipe.yaml` in the run folder."""
    assert run.training_minutes is not None
    content = load_recipe(data.recipe).model_dump(mode="json")
    content["model"]["vision_tower"] = str(backbones["vision_tower"])
    content["model"]["language_model"] = str(backbones["language_model"])
    content["pretrain"]["data"] = str(run.folder / "captions.json")
    content["pretrain"]["image_root"] = str(files.folder)
    content["instruct"]["data"] = str(files.train_questions)
    content["instruct"]["image_root"] = str(files.folder)
    content["instruct"]["validation"]["data"] = str(files.validation_questions)
    content["pretrain"]["minutes"] = round(data.pretrain_share * run.training_minutes, 2)
    content["instruct"]["minutes"] = round((1 - data.pretrain_share) * run.training_minutes, 2)
    content["output"] = str(run.folder)
    content["seed"] = run.settings.seed
    with atomic_write(run.folder / "recipe.yaml") as file:
        yaml.safe_dump(content, file, sort_keys=False)
    return make_recipe(content)


def _evaluate(run: Run, data: QuickstartData, files: QuickstartFiles) -> None:
    model = run.folder / "model"
    test = files.tests["test"]
    limit = None if run.settings.minutes >= ALL_QUESTIONS_FROM_MINUTES else data.test_questions
    evaluations: dict[str, tuple[str, Path, dict[str, Any]]] = {
        "Test": ("test", test, {"limit": limit}),
        "Test, images shuffled": ("shuffled", test, {"limit": SHUFFLED_QUESTIONS, "shuffle_images": True}),
        **{f"Test, {split}": (split, path, {}) for split, path in files.shifts.items()},
        "Photographs": ("photographs", run.folder / "photographs" / "questions.json", {}),
    }
    for name, (folder, questions, options) in evaluations.items():
        if run.done(name):
            continue
        with run.step(name) as facts:
            result = evaluate_file(
                model, questions, out=run.folder / "evaluation" / folder, seed=run.settings.seed, **options
            )
            facts["samples"] = result.overall.total
    if not run.done("Baselines"):
        with run.step("Baselines"):
            found = text_only_baselines(files.train_questions, files.tests)
            of_test = {name: facts for name, facts in found.items() if name == PRIOR}
            of_shifts = {name: facts for name, facts in found.items() if name != PRIOR}
            # The report compares the accuracy on `test` with everything in the first file.
            for name, baselines in (("baselines.json", of_test), (SHIFT_BASELINES, of_shifts)):
                with atomic_write(run.folder / name) as file:
                    json.dump(baselines, file)
