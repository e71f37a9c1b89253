"""The alignment levels of a run's captions, for its report."""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from aligngpt.alignment.levels import AlignmentLevels, level_counts
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import read_samples
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.finding import archive_at, root_of_data
from aligngpt.errors import AlignGPTError
from aligngpt.reports.sections import LevelExample, LevelsSection
from aligngpt.reports.statistics import Interval, share_interval
from aligngpt.training.recipe import Recipe, make_recipe

EXAMPLES_PER_LEVEL = 4
CAPTIONS, BORDERS, SEPARATION = "captions.json", "scores/levels.json", "separation.json"
QUALITY = "caption_quality"


class ReportingError(AlignGPTError):
    """A folder contains nothing to report on, or a file in it is damaged."""


def levels_section(run: Path) -> tuple[LevelsSection | None, list[str]]:
    """The scores and levels of the captions that a run was trained on.

    They are read from `captions.json` and `scores/levels.json` in the run, else from `pretrain.data` of its recipe.

    Returns:
        The section, or None; and a sentence on everything that is not shown.

    Raises:
        AlignGPTError: a file in the run is damaged.
    """
    captions, borders = run / CAPTIONS, run / BORDERS
    if captions.is_file() and borders.is_file():
        levels = AlignmentLevels.load(borders)
        read = _Captions(levels.num_levels, levels)
        try:
            read.add(captions, run / "data")
        except SourceError as error:
            raise ReportingError(f"{captions} is damaged: {error}") from error
        if not read.levels:
            raise ReportingError(f"{captions} is damaged: no caption in it has a score")
        return read.section(list(levels.borders), run), _passed_over(read)
    try:
        recipe = recipe_of_run(run)
        if recipe is None or recipe.pretrain is None:
            return None, [] if recipe is None else ["Levels are not shown: the recipe has no stage 1."]
        read = _Captions(recipe.model.num_levels)
        for source in recipe.pretrain.sources:
            root = None if source.image_root is None else Path(source.image_root)
            read.add(_readable(Path(source.data)), root_of_data(Path(source.data), root))
        if not read.levels:
            raise ReportingError(f"no caption of `pretrain.data` has a level and a score: {read.told() or 'no images'}")
        found = borders_between(read.scores, read.levels, recipe.model.num_levels)
    except AlignGPTError as error:
        return None, [f"Levels are not shown: {error}."]
    said = "The borders of the levels lie halfway between the scores of neighbouring levels in `pretrain.data`."
    return read.section(found, run), [said, *_passed_over(read)]


def _readable(data: Path) -> Path:
    """The same path.

    Raises:
        ReportingError: nothing is there, or it is not JSON.
    """
    if data.is_dir() or archive_at(data) is not None:
        raise ReportingError(
            f"{data} is Parquet or tar, and only JSON is read here; `aligngpt levels --report` draws it"
        )
    if not data.is_file():
        raise ReportingError(
            f"there is no {data}, which the recipe names; run `aligngpt report` in the folder that the training was "
            "started in"
        )
    return data


def _passed_over(read: "_Captions") -> list[str]:
    return [f"Captions left out of the levels: {told}."] if (told := read.told()) else []


def recipe_of_run(run: Path) -> Recipe | None:
    """The recipe in a run's folder (`recipe.yaml`), or the one in its model card; None if there is neither.

    Raises:
        RecipeError: it is not valid.
    """
    content = None
    if (run / "recipe.yaml").is_file():
        content = (run / "recipe.yaml").read_text(encoding="utf-8")
    elif (run / "model" / "README.md").is_file():
        card = (run / "model" / "README.md").read_text(encoding="utf-8")
        found = re.search(r"<summary>recipe\.yaml</summary>\s*```yaml\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
        content = None if found is None else found[1]
    if content is None:
        return None
    try:
        plain = yaml.safe_load(content)
    except yaml.YAMLError:
        plain = None
    return make_recipe(plain if isinstance(plain, dict) else {}, f"the recipe of {run}")


def borders_between(scores: Sequence[float], levels: Sequence[int], num_levels: int) -> list[float]:
    """The N-1 borders halfway between the scores of neighbouring levels.

    Raises:
        ReportingError: a pair has a lower level than one with a lower score.
    """
    values, found = np.asarray(scores, dtype=np.float64), np.asarray(levels)
    borders = []
    for cut in range(1, num_levels):
        below, above = values[found <= cut], values[found > cut]
        if len(below) and len(above) and below.max() > above.min():
            raise ReportingError(
                f"the levels do not follow the scores: a score of {below.max():.4g} is in level {cut} or below, "
                f"and one of {above.min():.4g} above it"
            )
        ends = [*([below.max()] if len(below) else []), *([above.min()] if len(above) else [])]
        borders.append(float(np.mean(ends)))
    return borders


def wrong_share_by_level(
    levels: Sequence[int], wrong: Sequence[bool], pictures: Sequence[Hashable], num_levels: int
) -> list[Interval]:
    """The share of wrong captions in level 1…N with its interval by picture; NaN in 0…1 for a level without captions.

    Args:
        levels: level 1…N of each caption, `(captions,)`.
        wrong: whether each caption is known to be wrong, `(captions,)`.
        pictures: the picture of each caption, `(captions,)`.
        num_levels: N.
    """
    members: dict[int, tuple[list[float], list[Hashable]]] = {level: ([], []) for level in _all(num_levels)}
    for level, is_wrong, picture in zip(levels, wrong, pictures, strict=True):
        members[level][0].append(float(is_wrong))
        members[level][1].append(picture)
    return [share_interval(*members[level]) for level in _all(num_levels)]


class _Captions:
    """What the section needs of the captions; examples are drawn while reading, so that large data fit in memory."""

    def __init__(self, num_levels: int, borders: AlignmentLevels | None = None) -> None:
        self.num_levels = num_levels
        self.scores: list[float] = []
        self.levels: list[int] = []
        self.pictures: list[str] = []
        # None as soon as the quality of one caption is not known.
        self.wrong: list[bool] | None = []
        self.examples: dict[int, list[LevelExample]] = {level: [] for level in _all(num_levels)}
        self.passed_over: Counter[str] = Counter()
        self._borders = borders
        self._seen: Counter[int] = Counter()
        self._rng = random.Random(0)

    def add(self, path: Path, root: Path) -> None:
        """Read the captions of a file whose image paths are relative to `root`."""
        rejects = Rejects(None)
        for sample, record in read_samples(path, rejects):
            if not sample.images:
                continue
            if sample.score is None or not math.isfinite(sample.score):
                self.passed_over["without a score"] += 1
                continue
            level = sample.level if self._borders is None else int(self._borders.assign([sample.score])[0])
            if level is None:
                self.passed_over["without a level"] += 1
            elif level > self.num_levels:
                self.passed_over[f"with a level above {self.num_levels}"] += 1
            else:
                self._take(sample, record, level, sample.score, root)
        if rejects.count:
            self.passed_over["that cannot be used"] += rejects.count

    def _take(self, sample: Sample, record: dict[str, Any], level: int, score: float, root: Path) -> None:
        self.scores.append(score)
        self.levels.append(level)
        self.pictures.append(str(root / sample.images[0]))
        if self.wrong is not None:
            if QUALITY in record:
                self.wrong.append(record[QUALITY] == "wrong")
            else:
                self.wrong = None
        self._draw(
            LevelExample(level, sample.images[0], sample.caption, score, str(record.get(QUALITY, "")), str(root))
        )

    def _draw(self, example: LevelExample) -> None:
        """Reservoir sampling: every caption of a level is equally likely to be shown."""
        shown = self.examples[example.level]
        self._seen[example.level] += 1
        place = self._rng.randrange(self._seen[example.level])
        if len(shown) < EXAMPLES_PER_LEVEL:
            shown.append(example)
        elif place < EXAMPLES_PER_LEVEL:
            shown[place] = example

    def told(self) -> str:
        """The captions passed over, by reason."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.passed_over.most_common())

    def section(self, borders: list[float], run: Path) -> LevelsSection:
        shares = None
        if self.wrong is not None:
            shares = wrong_share_by_level(self.levels, self.wrong, self.pictures, self.num_levels)
        measured = read_json(run / SEPARATION) or {}
        paired = measured.get("paired")
        return LevelsSection(
            scores=self.scores,
            borders=borders,
            counts_per_level=level_counts(self.levels, self.num_levels).tolist(),
            examples=[example for level in _all(self.num_levels) for example in self.examples[level]],
            wrong_share=None if shares is None else [one.value for one in shares],
            wrong_intervals=None if shares is None else [(one.low, one.high) for one in shares],
            auc=measured.get("roc_auc"),
            auc_interval=(measured["low"], measured["high"]) if "low" in measured else None,
            paired=None if paired is None else (paired["share"], paired["low"], paired["high"]),
            paired_pictures=measured.get("pictures") if paired is not None else None,
        )


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run; None if there is no file.

    Raises:
        ReportingError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportingError(f"{path} is damaged: {error}") from error


def _all(num_levels: int) -> range:
    return range(1, num_levels + 1)
