"""One run of a study: pre-training, instruction tuning and measurements, with the project's own training."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from aligngpt.data.sources.json import read_records
from aligngpt.device import resolve_device
from aligngpt.files import atomic_write
from aligngpt.model.assembling import assemble
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.study.arms import ARMS
from aligngpt.study.data import StudyData
from aligngpt.study.measuring import Measure, mean_weights
from aligngpt.study.pairs import PLAIN_END_SHARE, write_pretraining
from aligngpt.study.plan import Plan, Run
from aligngpt.study.results import FAILED, read_rows, write_row
from aligngpt.study.warming import write_warm_start, write_warmed
from aligngpt.training.loop.trainer import TrainingStopped
from aligngpt.training.recipe import make_recipe
from aligngpt.training.run import train
from aligngpt.training.setup.pretrained_parts import PRETRAINED_FILE, load_pretrained_parts
from aligngpt.training.stage import StageResult

TABLE = "model.alignment.levels"
STOPPED = "stopped.txt"
"""In the folder of a pre-training that came to nothing: why."""
TRAINED = "trained.json"
"""In the folder of a pre-training that is done: its loss and steps, and the time it took."""
KEPT_ANSWERS_SEED = 20_240_524
"""Draws the questions of runs with fewer answers: the same for all arms and seeds, smaller sets within larger ones."""


@dataclass(frozen=True)
class Runner:
    """Runs one after another in a folder.

    Args:
        plan: the study.
        data: what all runs need.
        folder: `results/` in it has a small file per pre-training and run; `work/` is for files on the way.
        code: names the code that runs, written into every result.
    """

    plan: Plan
    data: StudyData
    folder: Path
    code: str

    def result_path(self, name: str) -> Path:
        """The result file of a pre-training or a run."""
        return self.folder / "results" / f"{name}.parquet"

    def is_done(self, run: Run) -> bool:
        return self.result_path(run.id).is_file()

    def do(self, run: Run) -> None:
        """Do a run, and its pre-training if no earlier run did it; nothing if its result exists.

        The result of a run whose loss is no longer a number says so: it would be the same the next time.
        """
        if self.is_done(run):
            return
        try:
            self._do(run)
        except TrainingStopped as error:
            print(f"{run.id} is left out: {error.reason}")
            write_row(self.result_path(run.id), self._facts(run) | {FAILED: error.reason})
            rmtree(self.folder / "work" / run.id, ignore_errors=True)
            self._fresh_table_path(run).unlink(missing_ok=True)

    def _do(self, run: Run) -> None:
        pretrained = self._pretrain(run)
        started = time.monotonic(), time.process_time()
        folder = self.folder / "work" / run.id
        recipe = {
            "model": self._model(run, run.arm.alignment),
            "instruct": self.plan.instruct
            | {
                "data": str(self._answers(run)),
                "image_root": str(self.data.image_root),
                "train": ["language_model", "projector", "gate"],
                "pretrained": str(self._starting_point(run, pretrained)),
                "cache_features": True,
            },
            "output": str(folder),
            "seed": run.seed,
        }
        trained = _trained(recipe, "instruct")
        seconds = time.process_time() - started[1]
        model = AutoModelForImageTextToText.from_pretrained(folder / "model").eval().to(resolve_device())
        measure = Measure(model, AutoProcessor.from_pretrained(folder / "model"), self.data.image_root)
        row = self._facts(run) | {
            "loss": trained.loss,
            "steps": trained.steps,
            "training_cpu_seconds": seconds,
            **self._tests(measure),
            "cpu_seconds": time.process_time() - started[1],
            "wall_seconds": time.monotonic() - started[0],
        }
        write_row(self.result_path(run.id), row)
        rmtree(folder)
        self._fresh_table_path(run).unlink(missing_ok=True)

    def forget(self, run: Run) -> None:
        """Remove the pre-training of runs that are all done."""
        rmtree(self.folder / "work" / run.pretraining_id, ignore_errors=True)

    def _pretrain(self, run: Run) -> Path:
        """The `aligned.safetensors` of a run's pre-training."""
        folder = self.folder / "work" / run.pretraining_id
        path, done = folder / PRETRAINED_FILE, self.result_path(run.pretraining_id)
        if path.is_file() and done.is_file():
            return path
        stopped = folder / STOPPED
        if stopped.is_file():
            raise TrainingStopped(stopped.read_text(encoding="utf-8"), "other runs share this pre-training")
        if not (path.is_file() and (folder / TRAINED).is_file()):
            try:
                self._train_pretraining(run, folder, path)
            except TrainingStopped as error:
                # The other runs that share it need not find out again.
                with atomic_write(stopped) as file:
                    file.write(f"in pre-training {error.reason}")
                raise TrainingStopped(f"in pre-training {error.reason}", "lower its learning rate") from error
        trained = json.loads((folder / TRAINED).read_text(encoding="utf-8"))
        if done.is_file():
            # Another processor may not give the same bits. What is published of it stays as it was.
            [before] = read_rows(done)
            print(f"{run.pretraining_id} is trained again: loss {trained['loss']:.4f}, {before['loss']:.4f} before")
            return path
        started = time.monotonic(), time.process_time()
        row = self._facts(run) | {
            "run": run.pretraining_id,
            "arm": run.arm.pretraining,
            "answers": None,
            "loss": trained["loss"],
            "steps": trained["steps"],
            "training_cpu_seconds": trained["cpu_seconds"],
            **self._probes(run, path),
            "cpu_seconds": trained["cpu_seconds"] + time.process_time() - started[1],
            "wall_seconds": trained["wall_seconds"] + time.monotonic() - started[0],
        }
        write_row(done, row)
        return path

    def _train_pretraining(self, run: Run, folder: Path, path: Path) -> None:
        """Write the `aligned.safetensors` of a run's pre-training to `path`, and what it took beside it."""
        if path.is_file():
            # What remains of the runs says that they are finished, but their result was moved to `path`.
            _remove(folder / "run", folder / "end")
        started = time.monotonic(), time.process_time()
        pairs = self.data.pairs(run.noise)
        written = write_pretraining(run.arm, pairs, run.levels, run.seed, folder / "data")
        with_levels = run.arm.levels != "none"
        settings = self.plan.pretrain | {
            "data": written.data,
            "image_root": str(self.data.image_root),
            "train": ["projector", *(["level_table"] if with_levels else [])],
            "epochs": self.plan.pretrain.get("epochs", 1) * written.epochs,
            "chat_template": "plain",
            "cache_features": True,
            **({"shuffle": False} if run.arm.ordered else {}),
        }
        # The alignment mode plays no part while levels are given.
        recipe = {
            "model": self._model(run, "adaptive" if with_levels else "none"),
            "pretrain": settings,
            "output": str(folder / "run"),
            "seed": run.seed,
        }
        if settings.pop("warm_start", None) is not None:
            write_warmed(recipe, self._warm_start(run), folder / "warmed.safetensors")
            settings["pretrained"] = str(folder / "warmed.safetensors")
        trained = _trained(recipe, "pretrain")
        left = folder / "run" / "pretrain" / PRETRAINED_FILE
        if written.end is not None:
            left = self._plain_end(run, settings, written.end, left, folder)
        figures = {
            "loss": trained.loss,
            "steps": trained.steps,
            "cpu_seconds": time.process_time() - started[1],
            "wall_seconds": time.monotonic() - started[0],
        }
        with atomic_write(folder / TRAINED) as file:
            json.dump(figures, file)
        left.replace(path)
        _remove(folder / "run", folder / "end", folder / "data")

    def _warm_start(self, run: Run) -> Path:
        """The projector after the warm start, which reads all pairs whatever the arm does with them.

        Two workers may make it at the same time; they make the same.
        """
        path = self.folder / "work" / f"warm-noise{round(100 * run.noise)}-seed{run.seed}.safetensors"
        if not path.is_file():
            captions = write_pretraining(
                ARMS["none"], self.data.pairs(run.noise), run.levels, run.seed, path.with_suffix("")
            )
            settings = self.plan.pretrain | {
                "data": captions.data,
                "image_root": str(self.data.image_root),
                "train": ["projector"],
                "chat_template": "plain",
                "cache_features": True,
            }
            recipe = {
                "model": self._model(run, "none"),
                "pretrain": settings,
                "output": str(path.with_suffix("")),
                "seed": run.seed,
            }
            write_warm_start(recipe, path)
        return path

    def _plain_end(self, run: Run, settings: Mapping[str, Any], data: str, left: Path, folder: Path) -> Path:
        """Continue a pre-training with levels on pairs without levels, with a linear schedule of its own."""
        _write_without(left, TABLE, folder / "beginning.safetensors")
        end = dict(settings) | {
            "data": data,
            "train": ["projector"],
            "pretrained": str(folder / "beginning.safetensors"),
            "warmup_ratio": 0.0,
            # Where one linear schedule over both parts would be.
            "learning_rate": PLAIN_END_SHARE * settings["learning_rate"],
            "schedule": "linear",
        }
        recipe = {
            "model": self._model(run, "none"),
            "pretrain": end,
            "output": str(folder / "end"),
            "seed": run.seed,
        }
        _trained(recipe, "pretrain")
        return folder / "end" / "pretrain" / PRETRAINED_FILE

    def _starting_point(self, run: Run, pretrained: Path) -> Path:
        """The file that instruction tuning begins with: that of pre-training, or one with a table drawn anew."""
        if not run.arm.fresh_table:
            return pretrained
        tensors = load_file(pretrained)
        generator = torch.Generator().manual_seed(run.seed + 1)
        torch.nn.init.xavier_uniform_(tensors[TABLE], generator=generator)
        path = self._fresh_table_path(run)
        save_file(tensors, path)
        return path

    def _fresh_table_path(self, run: Run) -> Path:
        return self.folder / "work" / f"{run.id}.safetensors"

    def _model(self, run: Run, alignment: str) -> dict[str, Any]:
        return self.data.model | {"alignment": alignment, "num_levels": run.levels}

    def _answers(self, run: Run) -> Path:
        """The file of questions to train on: all of them, or a part drawn at random."""
        if run.answers is None:
            return self.data.questions
        path = self.folder / "work" / f"questions-{run.answers}.json"
        if not path.is_file():
            records = [record for _, record in read_records(self.data.questions)]
            order = np.random.default_rng(KEPT_ANSWERS_SEED).permutation(len(records))[: run.answers]
            with atomic_write(path) as file:
                json.dump([records[place] for place in sorted(order)], file, ensure_ascii=False)
        return path

    def _facts(self, run: Run) -> dict[str, Any]:
        return {
            "run": run.id,
            "arm": run.arm_name,
            "noise": run.noise,
            "levels": run.levels,
            "answers": run.answers,
            "seed": run.seed,
            "code": self.code,
        }

    def _tests(self, measure: Measure) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for name, path in self.data.tests.items():
            found = measure.answers(path)
            row |= {
                f"{name}_log_probability": found.log_probability,
                f"{name}_right": found.right,
                f"{name}_confidence": found.confidence,
                f"{name}_first_right": found.first_right,
            }
            if found.weights is not None and name == next(iter(self.data.tests)):
                row["gate_by_kind"] = json.dumps(mean_weights(found.weights, self._kinds[name]))
        return row

    @cached_property
    def _kinds(self) -> dict[str, list[str]]:
        return {
            name: [str(record.get("question_type", "")) for _, record in read_records(path) if isinstance(record, dict)]
            for name, path in self.data.tests.items()
        }

    def _probes(self, run: Run, pretrained: Path) -> dict[str, Any]:
        """The likelihood of right and wrong captions after pre-training, at every level and, without levels, blank."""
        probe = self.data.probe
        if probe is None or run.arm.appended:
            return {}
        with_levels = run.arm.levels != "none" and not run.arm.plain_end
        model, processor = self._pretrained_model(run, pretrained, "adaptive" if with_levels else "none")
        measure = Measure(model, processor, self.data.image_root)
        files = {"right": probe.right, "wrong": probe.wrong}
        if with_levels:
            levels = [run.levels] if run.arm.levels == "constant" else range(1, run.levels + 1)
            return {
                f"captions_{name}": np.stack([measure.captions(path, level) for level in levels]).astype(np.float32)
                for name, path in files.items()
            }
        row: dict[str, Any] = {}
        for name, path in files.items():
            row[f"captions_{name}"] = measure.captions(path)[None].astype(np.float32)
            row[f"captions_{name}_blank"] = measure.captions(path, blank=True)[None].astype(np.float32)
        return row

    def _pretrained_model(
        self, run: Run, pretrained: Path, alignment: str
    ) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
        settings = dict(self._model(run, alignment))
        settings.pop("attention", None)
        tower, language = settings.pop("vision_tower"), settings.pop("language_model")
        model, processor = assemble(tower, language, **settings, seed=run.seed)
        load_pretrained_parts(model, pretrained)
        return model.to(resolve_device()), processor


def _trained(recipe: Mapping[str, Any], stage: str) -> StageResult:
    return train(make_recipe(dict(recipe), "the study's recipe"), [stage])[0]  # type: ignore[list-item]


def _remove(*folders: Path) -> None:
    for folder in folders:
        rmtree(folder, ignore_errors=True)


def _write_without(path: Path, name: str, out: Path) -> None:
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, out)
