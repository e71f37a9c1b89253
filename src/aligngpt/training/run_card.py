"""The model card of a training run: backbones, data, recipe and results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from aligngpt.data.records.sample import Sample
from aligngpt.data.samples.columns import columns_of
from aligngpt.data.sources.finding import content_of
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.model.card import CARD_FILE, PAPER, card_text, escaped, is_hub_name, licence_of, table
from aligngpt.training.recipe import Recipe, StageName
from aligngpt.training.stage import stage_folder

if TYPE_CHECKING:
    from aligngpt.reports.sections import AccuracyRow
    from aligngpt.training.stage import StageResult

DATA_FILE = "data.json"
"""File in a stage's folder with the facts about its training data."""

STAGE_WORDS: dict[StageName, str] = {"pretrain": "1: pre-training", "instruct": "2: instruction tuning"}
RESULTS_BEGIN, RESULTS_END = "<!-- results of aligngpt -->", "<!-- end of results -->"
GIBIBYTE = 2**30


@dataclass(frozen=True)
class DataFacts:
    """Facts about the training data of a stage.

    Attributes:
        files: SHA-256 of each data file, by its name without its folder; of files with the same name, the second is
            `train.json (2)`.
        samples: number of usable samples.
        levels: number of samples by level, 1…N.
        without_level: number of samples without a level.
        with_images: number of samples with at least one image; the others are text only.
    """

    files: Mapping[str, str]
    samples: int
    levels: Mapping[int, int]
    without_level: int
    with_images: int

    @classmethod
    def of(cls, paths: Sequence[Path], samples: Sequence[Sample]) -> "DataFacts":
        """Count the samples that were read from these files.

        Raises:
            SourceError: a file cannot be read.
        """
        columns = columns_of(samples)
        counts = np.bincount(columns.levels)
        return cls(
            files={name: content_of(path) for name, path in _told_apart(paths).items()},
            samples=len(samples),
            levels={level: int(count) for level, count in enumerate(counts) if level and count},
            without_level=int(counts[0]) if len(counts) else 0,
            with_images=int((columns.images > 0).sum()),
        )

    def save(self, folder: Path) -> None:
        """Write the facts into the folder of a stage."""
        with atomic_write(folder / DATA_FILE) as file:
            json.dump(asdict(self), file, indent=2)

    @classmethod
    def load(cls, folder: Path) -> "DataFacts | None":
        """Read the file that `save` wrote; None if there is none.

        Raises:
            AlignGPTError: the file is damaged.
        """
        path = folder / DATA_FILE
        if not path.is_file():
            return None
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            # JSON keys are strings.
            levels = {int(level): int(count) for level, count in facts.pop("levels").items()}
            return cls(**facts, levels=levels)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise AlignGPTError(f"{path} is damaged ({error}); remove it to get a card without these facts") from error


def run_card(recipe: Recipe, results: Sequence["StageResult"], samples: Mapping[StageName, DataFacts]) -> str:
    """The text of the model card of a run.

    Args:
        recipe: of the run.
        results: steps, time, memory and loss of each stage.
        samples: facts about the training data of each stage, if they are known.
    """
    backbones = dict.fromkeys((recipe.model.language_model, recipe.model.vision_tower))
    licences = {name: licence_of(name) for name in backbones}
    adapters = recipe.instruct is not None and recipe.instruct.lora is not None and not recipe.instruct.lora.merge
    return card_text(
        Path(recipe.output).resolve().name,
        _introduction(recipe),
        base_models=[name for name in licences if is_hub_name(name)],
        sections=[
            *([_adapters(recipe)] if adapters else []),
            f"## Results\n\n{RESULTS_BEGIN}\n{_results([])}\n{RESULTS_END}",
            _training(results, recipe),
            _data([result.stage for result in results], samples, recipe.model.num_levels),
            _recipe(recipe),
            _licences(licences),
        ],
    )


def write_run_card(folder: Path, recipe: Recipe, results: Sequence["StageResult"]) -> None:
    """Write the card into a model folder, unless it has one, which may hold results or have been written by hand.

    Facts about the training data are read from the stage folders under the recipe's output. Results of a stage that
    the recipe does not have are skipped; if the model folder does not exist, nothing is written.

    Raises:
        AlignGPTError: a file with facts about the data is damaged.
    """
    if not folder.is_dir() or (folder / CARD_FILE).is_file():
        return
    results = [result for result in results if recipe.stage(result.stage) is not None]
    found = {result.stage: DataFacts.load(stage_folder(recipe, result.stage)) for result in results}
    samples = {stage: facts for stage, facts in found.items() if facts is not None}
    with atomic_write(folder / CARD_FILE) as file:
        file.write(run_card(recipe, results, samples))


def with_results(card: str, evaluations: Sequence["AccuracyRow"]) -> str | None:
    """The card with its evaluations replaced by these; None if the markers of the results section are missing."""
    before, begin, rest = card.partition(RESULTS_BEGIN)
    _, end, after = rest.partition(RESULTS_END)
    if not begin or not end:
        return None
    return f"{before}{RESULTS_BEGIN}\n{_results(evaluations)}\n{RESULTS_END}{after}"


def add_results(folder: Path, evaluations: Sequence["AccuracyRow"]) -> bool:
    """Write evaluations into the card of a model folder.

    Returns:
        Whether the folder has a card with a results section; a card written by hand is not changed.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        return False
    card = path.read_text(encoding="utf-8")
    changed = with_results(card, evaluations)
    if changed is None:
        return False
    if changed != card:
        with atomic_write(path) as file:
            file.write(changed)
    return True


def _told_apart(paths: Sequence[Path]) -> dict[str, Path]:
    """The files by name, with a number if a file before them has the same name."""
    named: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        name, number = path.name, 1
        while name in named:
            number += 1
            name = f"{path.name} ({number})"
        named[name] = path
    return named


def _introduction(recipe: Recipe) -> str:
    model = recipe.model
    levels = f"{model.num_levels} alignment levels" if model.alignment != "none" else "no alignment levels"
    return (
        f"An AlignGPT ([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})): a LLaVA that models how well an image and "
        f"its text belong together. It has {levels} (alignment: `{model.alignment}`), the language model "
        f"`{_shown(model.language_model)}` and the vision tower `{_shown(model.vision_tower)}`."
    )


def _adapters(recipe: Recipe) -> str:
    assert recipe.instruct is not None and recipe.instruct.lora is not None
    lora = recipe.instruct.lora
    base = (Path(recipe.output) / "base").absolute()
    return (
        f"## Adapters\n\nThis folder holds low-rank adapters (rank {lora.rank}, alpha {lora.alpha}, dropout "
        f"{lora.dropout:g}), with projector and alignment module in full. They belong to the base model "
        f"`{_code(str(base))}`, which `adapter_config.json` names and which is needed to use them. "
        "`aligngpt merge . OUT` merges both into one model."
    )


def _training(results: Sequence["StageResult"], recipe: Recipe) -> str:
    rows = [
        [
            STAGE_WORDS[result.stage],
            f"{result.steps:,}",
            f"{result.samples:,}",
            f"{result.seconds:,.0f}",
            f"{result.loss:.3f}",
            f"{result.rejects:,}",
            "–" if result.peak_memory is None else f"{result.peak_memory / GIBIBYTE:.1f} GiB",
        ]
        for result in results
    ]
    heads = ["stage", "steps", "samples seen", "seconds", "final loss", "rejects", "peak memory"]
    if any(result.peak_device_memory is not None for result in results):
        heads.append("peak GPU memory")
        for row, result in zip(rows, results, strict=True):
            peak = result.peak_device_memory
            row.append("–" if peak is None else f"{peak / GIBIBYTE:.1f} GiB")
    return f"## Training\n\n{table(heads, rows)}{_saved_in(recipe)}"


def _saved_in(recipe: Recipe) -> str:
    """A paragraph on the precision of the saved weights; none if it is float32 because they were trained in it."""
    stage = recipe.instruct
    if stage is None or (stage.save_dtype == "trained" and stage.weight_precision == "float32"):
        return ""
    if stage.save_dtype == "trained":
        return "\n\nThe weights are saved as they were trained: the large trained ones in bfloat16, others in float32."
    held = "bfloat16 and float32" if stage.weight_precision == "bfloat16" else "float32"
    return f"\n\nThe weights were trained in {held} and are saved in {stage.save_dtype}."


def _data(stages: Sequence[StageName], samples: Mapping[StageName, DataFacts], num_levels: int) -> str:
    parts = []
    for stage in stages:
        facts = samples.get(stage)
        lines = ["- not recorded"] if facts is None else _data_lines(facts, num_levels)
        parts.append("\n".join([f"### Stage {STAGE_WORDS[stage]}\n", *lines]))
    return "\n\n".join(["## Data", *parts])


def _data_lines(facts: DataFacts, num_levels: int) -> list[str]:
    levels = "no sample has a level"
    if facts.levels:
        counts = [f"{level}: {facts.levels.get(level, 0):,}" for level in range(1, max(num_levels, *facts.levels) + 1)]
        levels = f"{', '.join(counts)}; without a level: {facts.without_level:,}"
    return [
        *(f"- file: `{_code(name)}`, SHA-256 `{digest}`" for name, digest in facts.files.items()),
        f"- samples: {facts.samples:,}; {facts.with_images:,} with images, "
        f"{facts.samples - facts.with_images:,} text only",
        f"- samples per level: {levels}",
    ]


def _recipe(recipe: Recipe) -> str:
    content = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return (
        "## Recipe\n\nSave this as `recipe.yaml`; `aligngpt train recipe.yaml` trains the model again.\n\n"
        f"<details>\n<summary>recipe.yaml</summary>\n\n```yaml\n{content}```\n\n</details>"
    )


def _licences(licences: Mapping[str, str | None]) -> str:
    lines = [
        f"- `{_shown(name)}`: {escaped(licence)}"
        if licence
        else f"- not stated by `{_shown(name)}`: check before you publish"
        for name, licence in licences.items()
    ]
    return "\n".join(["## Licences\n\nOf the backbones; the licences of the training data apply as well.\n", *lines])


def _results(evaluations: Sequence["AccuracyRow"]) -> str:
    if not evaluations:
        return "\nNot evaluated yet.\n"
    rows = [
        [
            row.name + (f" ({row.note})" if row.note else ""),
            f"{row.accuracy:.1%}",
            f"{row.low:.1%}–{row.high:.1%}" + (", by picture" if row.by_picture else ""),
            f"{row.correct:,} of {row.total:,}",
        ]
        for row in evaluations
    ]
    return f"\n{table(['', 'right answers', '95 % interval', 'count'], rows)}\n"


def _code(text: str) -> str:
    """A text made safe to put between backticks."""
    return " ".join(text.split()).replace("`", "'")


def _shown(backbone: str) -> str:
    """A hub name in full, or the last component of a folder."""
    return _code(backbone if is_hub_name(backbone) else Path(backbone).name)
