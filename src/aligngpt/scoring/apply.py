"""From scores to levels in a data file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aligngpt.alignment.levels import AlignmentLevels, LevelMethod, fit_levels, level_counts
from aligngpt.data.rejects import Rejects
from aligngpt.data.sources import read_samples, write_records
from aligngpt.scoring.score import SCORES, ScoresError, file_fingerprint, parse_line, read_manifest

LEVELS = "levels.json"


def make_levels(
    scores: Path,
    source: Path,
    out: Path,
    *,
    num_levels: int = 8,
    method: LevelMethod = "quantile",
    borders: Path | None = None,
) -> tuple[AlignmentLevels, NDArray[np.int64]]:
    """Find the levels of a folder of scores, keep them there as `levels.json`, and write them into the data.

    Args:
        scores: folder that `score_file` wrote.
        source: the file that was scored.
        out: see `apply_levels`.
        num_levels: N, at least 2.
        method: see `fit_levels`.
        borders: `levels.json` of other scores: use its levels, and neither `num_levels` nor `method`.

    Returns:
        The levels, and how many pairs each has, `(num_levels,)`.

    Raises:
        LevelsError: there are too few different scores, or `borders` is not such a file.
        ScoresError: see `apply_levels`.
    """
    found = read_scores(scores)
    if borders is not None:
        levels = AlignmentLevels.load(borders)
    else:
        levels = fit_levels(list(found.values()), num_levels, method)
    counts = apply_levels(source, scores, out, levels)
    levels.save(scores / LEVELS)
    return levels, counts


def apply_levels(source: Path, scores: Path, out: Path, levels: AlignmentLevels) -> NDArray[np.int64]:
    """Write the scored records of a file with two more fields: `score`, and `similarity`, the level less one (0…N-1).

    That is how the authors' files have it. All other fields stay as they are; records without a score are left out.

    Args:
        source: the file that was scored.
        scores: folder that `score_file` wrote.
        out: a JSON array when the name ends in `.json`, else JSON lines; written atomically.
        levels: where one level ends and the next begins.

    Returns:
        How many pairs each level has, `(num_levels,)`.

    Raises:
        ScoresError: the scores are of another file or not all there, or `out` is `source`.
    """
    if out.resolve() == source.resolve():
        raise ScoresError(f"{out} is the file that was scored; give the records with levels another name")
    if read_manifest(scores).source != file_fingerprint(source):
        raise ScoresError(f"{scores} holds scores of another file than {source}, or it has changed; score it again")
    found = read_scores(scores)
    level_of = dict(zip(found, levels.assign(list(found.values())).tolist(), strict=True))
    records = [
        record | {"similarity": level_of[sample.record] - 1, "score": found[sample.record]}
        for sample, record in read_samples(source, Rejects(None))
        if sample.record in level_of
    ]
    write_records(out, records)
    return level_counts(list(level_of.values()), levels.num_levels)


def read_scores(scores: Path) -> Mapping[int, float]:
    """The score of each record that has one, by the record's number in its file, in the order of the file.

    Raises:
        ScoresError: the folder holds no scores, the job was not finished, or what is there is damaged.
    """
    finished = read_manifest(scores).finished
    if finished is None:
        raise ScoresError(f"{scores} is not finished; run the same `aligngpt score` again and it goes on")
    path = scores / SCORES
    try:
        with path.open("rb") as file:
            lines = [parse_line(line) for line in file]
    except OSError as error:
        raise ScoresError(f"{path} cannot be read: {error.strerror or error}") from error
    whole = [line for line in lines if line is not None]
    if len(whole) != len(lines) or len(whole) != finished.scored:
        raise ScoresError(
            f"{path} has {len(whole)} whole lines, expected {finished.scored}; run the same `aligngpt score` again"
        )
    return dict(whole)
