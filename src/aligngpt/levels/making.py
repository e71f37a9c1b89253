"""From scores to levels in data files."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aligngpt.alignment.levels import AlignmentLevels, LevelMethod, level_counts
from aligngpt.alignment.sketch import ScoreCollector
from aligngpt.files import sha256_of
from aligngpt.levels.json_scores import JsonScores, starts_as
from aligngpt.levels.score_tables import DEFAULT_COLUMN, CsvScores, ParquetScores, ScoreBatch, ScoreTable
from aligngpt.levels.scored_pairs import ScoredPairs
from aligngpt.levels.writing import (
    JSON_SUFFIXES,
    TABLE_SUFFIX,
    UIDS_SUFFIXES,
    LevelWriter,
    parse_levels,
    records_writer,
    table_writer,
    uids_writer,
)
from aligngpt.progress import Meter
from aligngpt.scoring.manifest import MANIFEST
from aligngpt.scoring.places import check_apart, same_place, taken
from aligngpt.scoring.score_files import ScoresError

LEVELS = "levels.json"
DEFAULT_LEVELS = 8
"""N, as in the paper."""


@dataclass(frozen=True)
class LevelsSummary:
    """What became of scores.

    Attributes:
        levels: where one level ends and the next begins.
        counts: how many pairs each level has, `(num_levels,)`.
        without: rows that have no score, and so no level.
        borders: the file that keeps `levels`.
        taken_from: the file of other scores' levels that `levels` are; None when they were fitted to these scores.
    """

    levels: AlignmentLevels
    counts: NDArray[np.int64]
    without: int
    borders: Path
    taken_from: Path | None = None


def make_levels(
    scores: Path,
    *,
    source: Path | None = None,
    out: Path | None = None,
    num_levels: int | None = None,
    method: LevelMethod | None = None,
    borders: Path | None = None,
    score_column: str | None = None,
    keep: str | None = None,
    uids: Path | None = None,
) -> LevelsSummary:
    """Find the levels of scores, and write them into the data, a batch at a time and atomically.

    The levels are kept as `levels.json` in a folder that `score` wrote; those of another table are kept beside what is
    written, by the same name with the ending `.borders.json`.

    Args:
        scores: see `open_scores`.
        source: JSON file that was scored; for an `out` with its records.
        out: `.json` or `.jsonl` for the records that have a score, with two more fields: `score`, and `similarity`, the
            level less one (0…N-1), as the authors' files have it. `.parquet` for a table of `LEVEL_FIELDS`, and of all
            columns of `scores` where that is a table.
        num_levels: N, at least 2; `DEFAULT_LEVELS` when None.
        method: see `fit_levels`; `quantile` when None.
        borders: `levels.json` of other scores: use its levels, without `num_levels` and `method`.
        score_column: see `open_scores`.
        keep: levels whose ids go to `uids`, such as `5-8`.
        uids: see `uids_writer`.

    Raises:
        LevelsError: there are too few different scores, or `borders` is not such a file.
        ScoresError: the scores cannot be read, the files asked for cannot be made of them, or the arguments do not go
            together.
        SourceError: `source` cannot be read.
    """
    if borders is not None and (num_levels is not None or method is not None):
        raise ScoresError(
            f"the levels of {borders} are taken as they are, their number and method too; leave --levels and --method "
            "out, or leave --borders out to fit new ones"
        )
    table = open_scores(scores, score_column)
    if out is None and uids is None and not isinstance(table, ScoredPairs):
        raise ScoresError(f"{scores} stays as it is; say with --out or --uids where its levels are to go")
    own = borders_path(scores, table, out, uids)
    _check_places(table, own, source, borders, out, uids)
    before = _stamps(table)
    records = _source_of_records(table, source, out)
    given = AlignmentLevels.load(borders) if borders is not None else None
    wanted = DEFAULT_LEVELS if num_levels is None else num_levels
    kept = _kept_levels(keep, uids, wanted if given is None else given.num_levels)
    levels = given or _fit(table, wanted, method or "quantile")
    counts, without = np.zeros(levels.num_levels, dtype=np.int64), 0
    with ExitStack() as stack:
        writers: list[LevelWriter] = []
        if uids is not None:
            writers.append(stack.enter_context(uids_writer(uids, kept)))
        if out is not None and records is not None:
            writers.append(stack.enter_context(records_writer(out, records)))
        elif out is not None:
            writers.append(stack.enter_context(table_writer(out, table.schema)))
        for batch in _metered("writing levels", table, with_columns=out is not None and records is None):
            assigned = levels.assign(batch.scores)
            counts += level_counts(assigned, levels.num_levels)
            without += batch.without
            for writer in writers:
                writer.write(batch, assigned)
        # What is written replaces nothing before this is known.
        if _stamps(table) != before:
            raise ScoresError(f"{scores} has changed while its levels were made, nothing was written; start again")
        if records is not None and isinstance(table, ScoredPairs):
            _check_scored(table, records)
    levels.save(own)
    return LevelsSummary(levels, counts, without, own, borders)


def borders_path(scores: Path, table: ScoreTable, out: Path | None, uids: Path | None) -> Path:
    """Where the levels of scores are kept; see `make_levels`."""
    if isinstance(table, ScoredPairs):
        return scores / LEVELS
    return (out or uids or scores).with_suffix(".borders.json")


def open_scores(path: Path, column: str | None = None) -> ScoreTable:
    """The scores at a path.

    Args:
        path: folder that `aligngpt score` wrote; or a Parquet, CSV, JSON or JSON lines file, or a folder of Parquet
            files.
        column: name of the column of scores, for what `aligngpt score` did not write; `score` when None.

    Raises:
        ScoresError: there are none, the job was not finished, or there is no such column.
    """
    if column is not None and (path / MANIFEST).exists():
        raise ScoresError(
            f"{path} was written by `aligngpt score`, which knows its column of scores; leave --score-column out"
        )
    name = column or DEFAULT_COLUMN
    if path.is_dir():
        if (path / MANIFEST).exists():
            return ScoredPairs(path)
        if files := sorted(path.rglob("*.parquet")):
            return ParquetScores(path, files, name)
        raise ScoresError(f"{path} holds no scores: neither a {MANIFEST} of `aligngpt score` nor Parquet files")
    start = starts_as(path)
    if path.suffix == ".csv":
        return CsvScores(path, name)
    if path.suffix == TABLE_SUFFIX:
        return ParquetScores(path, [path], name)
    if start and start in "[{":
        return JsonScores(path, name)
    raise ScoresError(
        f"{path} holds no scores: expected a folder that `aligngpt score` wrote, a Parquet, CSV, JSON or JSON lines "
        "file, or a folder of Parquet files"
    )


def _check_places(
    table: ScoreTable, own: Path, source: Path | None, borders: Path | None, out: Path | None, uids: Path | None
) -> None:
    """Refuse to write over what is read, or over the levels that are kept."""
    written = [path for path in (out, uids) if path is not None]
    check_apart(written, [path for path in (source, borders, own) if path is not None])
    # `own` may be `borders`: the same levels are written there again.
    if source is not None and same_place(own, source):
        raise taken(own)
    for path in (*written, own):
        if table.reads(path):
            raise taken(path)


def _kept_levels(keep: str | None, uids: Path | None, num_levels: int) -> frozenset[int]:
    """The levels whose ids are written; none when no ids are."""
    if (keep is None) != (uids is None):
        raise ScoresError("--keep says which levels, --uids where their ids are to go; give both or neither")
    if keep is None or uids is None:
        return frozenset()
    if uids.suffix not in UIDS_SUFFIXES:
        raise ScoresError(f"the ids can be written as {' or '.join(UIDS_SUFFIXES)}, not as {uids.name}")
    return parse_levels(keep, num_levels)


def _fit(table: ScoreTable, num_levels: int, method: LevelMethod) -> AlignmentLevels:
    collector = ScoreCollector()
    for batch in _metered("reading scores", table):
        collector.add(batch.scores)
    return collector.fit(num_levels, method)


def _metered(what: str, table: ScoreTable, *, with_columns: bool = False) -> Iterator[ScoreBatch]:
    with Meter(what, table.rows, unit="rows") as meter:
        for batch in table.batches(with_columns=with_columns):
            meter.advance(len(batch.scores) + batch.without)
            yield batch


def _source_of_records(table: ScoreTable, source: Path | None, out: Path | None) -> Path | None:
    """The JSON file whose records are written; None when none are.

    Raises:
        ScoresError: `out` and `source` do not go together, or the scores are of another file than `source`.
    """
    if out is None or out.suffix == TABLE_SUFFIX:
        if source is not None:
            raise ScoresError("--source is read for an --out that ends in .json or .jsonl; leave it out")
        return None
    if out.suffix not in JSON_SUFFIXES:
        raise ScoresError(f"{out} must end in {', '.join(JSON_SUFFIXES)} or {TABLE_SUFFIX}: that says what is written")
    if isinstance(table, JsonScores):
        if source is not None and source.resolve() != table.path.resolve():
            raise ScoresError(f"the scores of {table.path} are written into its own records; leave --source out")
        return table.path
    if not isinstance(table, ScoredPairs):
        raise ScoresError(f"{out} would hold JSON records, which a table has none of; write {out.stem}.parquet")
    if source is None:
        raise ScoresError(f"give with --source the JSON file that was scored, or write {out.stem}.parquet")
    if starts_as(source) not in ("[", "{"):
        raise ScoresError(f"{source} is no JSON, so there are no records to write; write {out.stem}.parquet instead")
    _check_scored(table, source)
    return source


def _check_scored(table: ScoredPairs, source: Path) -> None:
    """Compare a JSON file, by its content, with the one that was scored.

    Raises:
        ScoresError: it is another one.
    """
    with source.open("rb") as file:
        if table.manifest.source["fingerprint"] != sha256_of(file):
            raise ScoresError(
                f"{table.folder} holds scores of another file than {source}, or it has changed; score it again"
            )


def _stamps(table: ScoreTable) -> list[tuple[int, int, int]]:
    """What tells that a table's files are still those that were read before."""
    found = [file.stat() for file in table.files]
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]
