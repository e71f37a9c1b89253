"""Finds the levels of scores and writes them into data files."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aligngpt.alignment.levels import AlignmentLevels, LevelMethod, level_counts
from aligngpt.alignment.sketch import ScoreCollector
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.companions import is_hidden
from aligngpt.data.sources.fields import ColumnNames
from aligngpt.data.sources.finding import TABLE_SUFFIXES, find_records
from aligngpt.data.sources.remote import content_hash, located
from aligngpt.data.sources.values import is_plain_json
from aligngpt.levels.columns import ScoreColumns
from aligngpt.levels.combined_scores import CombinedScores
from aligngpt.levels.json_scores import JsonScores, starts_as
from aligngpt.levels.remarks import remarks_on
from aligngpt.levels.score_tables import DEFAULT_COLUMN, CsvScores, ParquetScores, ScoreBatch, ScoreTable
from aligngpt.levels.scored_pairs import ScoredPairs, scored_base
from aligngpt.levels.scored_source import scored_columns
from aligngpt.levels.writing import (
    JSON_SUFFIXES,
    LEVEL_FIELDS,
    RECORD_FIELDS,
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
    """The result of `make_levels`.

    Attributes:
        levels: the borders between the levels.
        counts: number of pairs in each level, `(num_levels,)`.
        without: number of rows without a score, and so without a level.
        borders: the file that `levels` were saved to.
        taken_from: the file that `levels` were loaded from; None if they were fitted to these scores.
        notes: sentences about the scores that users should read.
        warnings: sentences about what may make the levels useless.
    """

    levels: AlignmentLevels
    counts: NDArray[np.int64]
    without: int
    borders: Path
    taken_from: Path | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def make_levels(
    scores: Path,
    *,
    source: Path | None = None,
    out: Path | None = None,
    num_levels: int | None = None,
    method: LevelMethod | None = None,
    borders: Path | None = None,
    score_column: ScoreColumns = None,
    id_column: str | None = None,
    keep: str | None = None,
    uids: Path | None = None,
) -> LevelsSummary:
    """Find the levels of scores and write them into the data, in batches and atomically.

    The borders are saved as `levels.json` in a folder written by `aligngpt score`, or `levels-COLUMN.json` for another
    column than `score`; those of other tables beside the output, under its name with the suffix `.borders.json`.

    Args:
        scores: see `open_scores`.
        source: the source that was scored, if `out` is to contain its records: see `read_values`.
        out: `.json` or `.jsonl` for the records that have a score, with two more fields: `score`, and `similarity`, the
            level minus one (0…N-1), as in the authors' files. `.parquet` for a table of `LEVEL_FIELDS`, and of all
            columns of `scores` if that is a table.
        num_levels: N, at least 2; `DEFAULT_LEVELS` if None.
        method: see `fit_levels`; `quantile` if None.
        borders: `levels.json` of other scores, to be used instead of fitting; excludes `num_levels` and `method`, and
            several score columns, whose ranks are relative to the table.
        score_column: see `open_scores`.
        id_column: see `open_scores`.
        keep: levels whose ids are written to `uids`, such as `5-8`.
        uids: see `uids_writer`.

    Raises:
        LevelsError: there are too few distinct scores, or `borders` is not a levels file.
        ScoresError: the scores cannot be read, the requested files cannot be written from them, or the arguments
            conflict.
        SourceError: `source` cannot be read.
    """
    if borders is not None and (num_levels is not None or method is not None):
        raise ScoresError(
            f"{borders} also determines the number of levels and the method; omit --levels and --method, or omit "
            "--borders to fit new ones"
        )
    source = None if source is None else located(source)
    table = open_scores(scores, score_column, id_column)
    if borders is not None and isinstance(table, CombinedScores):
        raise ScoresError(
            f"the scores of several columns are ranks within {scores}, so borders of other scores do not fit them; "
            "omit --borders, or give one --score-column"
        )
    if out is None and uids is None and not isinstance(table, ScoredPairs):
        raise ScoresError(f"{scores} itself is never changed; give an output file for its levels with --out or --uids")
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
            scored = scored_base(table)
            names = None if scored is None else scored_columns(scored)
            writers.append(stack.enter_context(records_writer(out, records, names)))
        elif out is not None:
            writers.append(stack.enter_context(table_writer(out, table.schema)))
        for batch in _metered("writing levels", table, with_columns=out is not None and records is None):
            assigned = levels.assign(batch.scores)
            counts += level_counts(assigned, levels.num_levels)
            without += batch.without
            for writer in writers:
                writer.write(batch, assigned)
        # Check before the outputs replace any file.
        for writer in writers:
            writer.check((batch, levels.assign(batch.scores)) for batch in _metered("checking ids", table))
        if _stamps(table) != before:
            raise ScoresError(f"{scores} changed while its levels were made; nothing was written, start again")
        if records is not None and (scored := scored_base(table)) is not None:
            _check_scored(scored, records)
    levels.save(own)
    notes, warnings = remarks_on(table, None if given else levels.statistics.standard_deviation)
    notes = (*table.remarks, *_replaced(table, out), *notes)
    return LevelsSummary(levels, counts, without, own, borders, notes, warnings)


def borders_path(scores: Path, table: ScoreTable, out: Path | None, uids: Path | None) -> Path:
    """The file that the borders are saved to; see `make_levels`."""
    if isinstance(table, ScoredPairs):
        return scores / (LEVELS if table.column == DEFAULT_COLUMN else f"levels-{table.column}.json")
    return (out or uids or scores).with_suffix(".borders.json")


def open_scores(path: Path, column: ScoreColumns = None, id_column: str | None = None) -> ScoreTable:
    """Open the scores at a path.

    Args:
        path: folder of `aligngpt score` or `judge`; a Parquet, CSV or JSON (lines) file, or a folder of Parquet files.
        column: name of the score column of a table, `score` if None; or weights by column, see `CombinedScores`.
        id_column: name of the id column of a table; the first of `ID_COLUMNS` that exists if None, else row numbers.

    Raises:
        ScoresError: there are no scores, the scoring job is not finished, a column does not exist, or the weights are
            invalid.
    """
    if id_column is not None and (path / MANIFEST).exists():
        raise ScoresError(f"{path} was written by `aligngpt score`, which has stored the ids; omit --id-column")
    if isinstance(column, Mapping):
        return CombinedScores({name: _open_table(path, name, id_column) for name in column}, column)
    return _open_table(path, column or DEFAULT_COLUMN, id_column)


def _open_table(path: Path, name: str, id_column: str | None) -> ScoreTable:
    if path.is_dir():
        if (path / MANIFEST).exists():
            return ScoredPairs(path, name)
        if files := sorted(one for one in path.rglob("*.parquet") if not is_hidden(one.name)):
            return ParquetScores(path, files, name, id_column)
        raise ScoresError(f"{path} has no scores: neither a {MANIFEST} of `aligngpt score` nor Parquet files")
    start = starts_as(path)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return CsvScores(path, name, id_column)
    if path.suffix == TABLE_SUFFIX:
        return ParquetScores(path, [path], name, id_column)
    if start and start in "[{":
        return JsonScores(path, name, id_column)
    raise ScoresError(
        f"{path} has no scores: expected a folder written by `aligngpt score`, a Parquet, CSV, JSON or JSON lines "
        "file, or a folder of Parquet files"
    )


def _check_places(
    table: ScoreTable, own: Path, source: Path | None, borders: Path | None, out: Path | None, uids: Path | None
) -> None:
    """Refuse to overwrite the inputs or the saved borders."""
    written = [path for path in (out, uids) if path is not None]
    check_apart(written, [path for path in (source, borders, own) if path is not None])
    # `own` may equal `borders`: the same levels are then written there again.
    if source is not None and same_place(own, source):
        raise taken(own)
    for path in (*written, own):
        if table.reads(path):
            raise taken(path)


def _kept_levels(keep: str | None, uids: Path | None, num_levels: int) -> frozenset[int]:
    """The levels whose ids are written; empty if no ids are written."""
    if (keep is None) != (uids is None):
        raise ScoresError("--keep selects the levels and --uids the file for their ids; give both or neither")
    if keep is None or uids is None:
        return frozenset()
    if uids.suffix not in UIDS_SUFFIXES:
        raise ScoresError(f"the file of ids must end in {' or '.join(UIDS_SUFFIXES)}, got {uids.name}")
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
    """The source whose records are written; None if no records are written.

    Raises:
        ScoresError: `out` and `source` conflict, or the scores are not those of `source`.
    """
    if out is None or out.suffix == TABLE_SUFFIX:
        if source is not None:
            raise ScoresError("--source is only used with an --out that ends in .json or .jsonl; omit it")
        return None
    if out.suffix not in JSON_SUFFIXES:
        raise ScoresError(f"{out} must end in {', '.join(JSON_SUFFIXES)} or {TABLE_SUFFIX}, which selects the format")
    if table.records is not None:
        if source is not None and source.resolve() != table.records.resolve():
            raise ScoresError(f"the levels of {table.records} are written into its own records; omit --source")
        return table.records
    if (scored := scored_base(table)) is None:
        raise ScoresError(f"the scores are a table without JSON records for {out}; write {out.stem}.parquet instead")
    if source is None:
        raise ScoresError(f"give the file or folder that was scored with --source, or write {out.stem}.parquet")
    names = scored_columns(scored)
    if not _has_records(source, names):
        raise ScoresError(
            f"{source} is not a JSON file, and not a table with the columns that were scored, so there are no records "
            f"to write; write {out.stem}.parquet"
        )
    _check_scored(scored, source)
    return source


def _replaced(table: ScoreTable, out: Path | None) -> tuple[str, ...]:
    """A note about the table's own columns that are not in the output, which has others of the same names."""
    if out is None:
        return ()
    added = [field.name for field in LEVEL_FIELDS] if out.suffix == TABLE_SUFFIX else RECORD_FIELDS
    lost = [name for name in added if name in table.names and name not in table.copied]
    if not lost:
        return ()
    return (f"{out} has new values of {', '.join(lost)}; rename these in the input to keep their own values too",)


def _has_records(source: Path, names: ColumnNames) -> bool:
    """Whether a source has records that can be written as JSON."""
    if is_plain_json(source) and not names.given:
        return starts_as(source) in ("[", "{")
    try:
        return find_records(source, shard_size=1, names=names).kind in ("json", "csv", "files")
    except SourceError:
        return False


def _check_scored(table: ScoredPairs, source: Path) -> None:
    """Check by its content that a source of records is the one that was scored.

    Raises:
        ScoresError: it is a different file, or has changed.
    """
    if is_plain_json(source):
        found = content_hash(source)
    else:
        found = find_records(source, shard_size=1, names=scored_columns(table)).fingerprint()
    if table.manifest.source["fingerprint"] != found:
        raise ScoresError(
            f"{table.folder} has the scores of a different file than {source}, or the file has changed; score it again"
        )


def _stamps(table: ScoreTable) -> list[tuple[int, int, int]]:
    """Inode, size and modification time of the table's files, to detect changes while they are read."""
    found = [file.stat() for file in table.files]
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]
