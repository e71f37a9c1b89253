"""Prepares and writes the HTML page about scores and their levels; its inputs are checked before anything else is done.

One pass over the scores collects counts, some pairs drawn at random, the lowest scores and the hashes of the images, in
bounded memory. Then captions are compared, and the few pairs to be shown are read from the source with their images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aligngpt.data.records.pairs import PairSource
from aligngpt.levels.columns import ScoreColumns
from aligngpt.levels.making import LevelsSummary, borders_path, open_scores
from aligngpt.levels.page_content import page_of_pairs, page_of_table
from aligngpt.levels.score_tables import ScoreTable
from aligngpt.levels.scored_pairs import ScoredPairs, scored_base
from aligngpt.levels.scored_source import scored_source
from aligngpt.levels.writing import JSON_SUFFIXES
from aligngpt.reports.levels_page import build_levels_page
from aligngpt.scoring.places import check_apart, is_inside, same_place, taken
from aligngpt.scoring.score_files import ScoresError

PAGE_SUFFIXES = (".html", ".htm")
ARCHIVE_SUFFIXES = (".parquet", ".tar")


@dataclass(frozen=True)
class Look:
    """The inputs of a page, as returned by `prepare_look`.

    Attributes:
        table: the scores.
        title: heading of the page.
        out: the HTML file.
        source: the pairs that were scored, if their captions and images are to be shown.
        seed: random seed for the examples.
    """

    table: ScoreTable
    title: str
    out: Path
    source: PairSource | None = None
    seed: int = 0

    def write(self, made: LevelsSummary) -> None:
        """Write the page for these levels of the scores.

        Raises:
            ScoresError: the scores can no longer be read.
            SourceError: the source can no longer be read.
            OSError: the page cannot be written.
        """
        if isinstance(self.table, ScoredPairs):
            page = page_of_pairs(self.table, made, self.source, self.seed, self.title)
        else:
            page = page_of_table(self.table, made, self.title)
        build_levels_page(page, self.out)


def prepare_look(
    scores: Path,
    out: Path,
    *,
    source: str | Path | None = None,
    image_root: Path | None = None,
    score_column: ScoreColumns = None,
    id_column: str | None = None,
    caption_column: str | None = None,
    image_column: str | None = None,
    written: Sequence[Path | None] = (),
    borders: Path | None = None,
    seed: int = 0,
) -> Look:
    """Check that a page can be made, before anything else is done with the scores.

    Args:
        scores: see `open_scores`; for a table, or several score columns, the page shows only scores and levels.
        out: the HTML file.
        source: the source that was scored; None for a page without captions and images.
        image_root: folder that image paths are relative to; if None, the one used when `source` was scored if it still
            exists, else the folder of `source`.
        score_column: see `open_scores`.
        id_column: see `open_scores`.
        caption_column: see `open_pairs`.
        image_column: see `open_pairs`.
        written: the other output files: the data and the ids, either may be None.
        borders: the file that the levels are loaded from.
        seed: random seed for the examples.

    Raises:
        ScoresError: the scores cannot be read or belong to another source, the arguments conflict, or the page would
            overwrite another file.
        SourceError: the source cannot be read.
    """
    if out.suffix.lower() not in PAGE_SUFFIXES:
        raise ScoresError(f"the page must end in {PAGE_SUFFIXES[0]}, got {out.name}")
    names = {"caption_column": caption_column, "image_column": image_column}
    if source is None and (image_root is not None or any(names.values())):
        raise ScoresError(
            "--image-root, --caption-column and --image-column determine how --source is read; give it, or omit them"
        )
    table = open_scores(scores, score_column, id_column)
    _check_page_place(table, scores, out, written, borders, source)
    title = f"Levels of {'/'.join(scores.resolve().parts[-2:])}"
    if isinstance(table, ScoredPairs):
        pairs = None
        if source is not None:
            pairs = scored_source(table, source, image_root, names)
        return Look(table, title, out, pairs, seed)
    if scored_base(table) is not None:
        _check_no_pairs(source, [image_root, *names.values()], written)
        return Look(table, title, out, seed=seed)
    if source is not None and (table.records is None or not same_place(Path(source), table.records)):
        raise ScoresError(
            f"the scores of {scores} cannot be matched to the pairs of {source}; images are only shown for a folder "
            "written by `aligngpt score`; omit --source"
        )
    if image_root is not None or any(names.values()):
        raise ScoresError(
            f"{scores} is a table, so no images or captions are shown; omit --image-root, --caption-column and "
            "--image-column"
        )
    return Look(table, title, out, seed=seed)


def _check_no_pairs(source: str | Path | None, reading: Sequence[object], written: Sequence[Path | None]) -> None:
    """Check that a source given with several score columns, whose page has no images, is for a JSON output only."""
    for_records = any(path is not None and path.suffix in JSON_SUFFIXES for path in written)
    if any(reading) or (source is not None and not for_records):
        raise ScoresError(
            "the page of several score columns shows no images or captions; omit --image-root, --caption-column and "
            "--image-column, and --source unless the output is .json or .jsonl"
        )


def _check_page_place(
    table: ScoreTable,
    scores: Path,
    out: Path,
    written: Sequence[Path | None],
    borders: Path | None,
    source: str | Path | None,
) -> None:
    """Refuse a page or another output that would overwrite an input or another output."""
    others = [path for path in written if path is not None]
    read = [path for path in (None if source is None else Path(source), borders) if path is not None]
    check_apart([*others, out], read)
    check_apart([out], [borders_path(scores, table, *[*others, None, None][:2])])
    for path in (*others, out):
        # Writing a Parquet or tar file into a source folder would change the source.
        into_source = source is not None and path.suffix in ARCHIVE_SUFFIXES and is_inside(path, Path(source))
        if into_source or table.reads(path):
            raise taken(path)
