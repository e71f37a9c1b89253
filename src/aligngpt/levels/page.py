"""Collects the content of the HTML page about scores and their levels.

One pass over the scores collects counts, some pairs drawn at random, the lowest scores and the hashes of the images, in
bounded memory. Then captions are compared, and the few pairs to be shown are read from the source with their images.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aligngpt.alignment.levels import AlignmentLevels, thin_levels
from aligngpt.data.images.opening import ImageError
from aligngpt.data.images.reference import Picture
from aligngpt.data.records.pairs import Pair, PairSource, open_pairs
from aligngpt.data.sources.base import Shard
from aligngpt.levels.json_scores import JsonScores
from aligngpt.levels.making import LevelsSummary, borders_path, open_scores
from aligngpt.levels.score_tables import ScoreTable
from aligngpt.levels.scored_pairs import ScoredPairs
from aligngpt.levels.streaming import BinnedScores, HashCounter, Repeated, ScoreHistogram, Smallest
from aligngpt.progress import Meter
from aligngpt.reports.figures import Thumbnail, shrunk
from aligngpt.reports.levels_page import (
    CopiedGroup,
    Copies,
    LevelRow,
    LevelsPage,
    ScoreByBin,
    ScoreNumbers,
    ShownPair,
    build_levels_page,
)
from aligngpt.scoring.manifest import reading_differences
from aligngpt.scoring.places import check_apart, is_inside, same_place, taken
from aligngpt.scoring.score_files import ScoresError, read_batches, read_part, record_count

PAGE_SUFFIXES = (".html", ".htm")
ARCHIVE_SUFFIXES = (".parquet", ".tar")
LOWEST = 100
EXAMPLES_PER_LEVEL, MOST_EXAMPLES = 6, 240
LARGEST_GROUPS = 12
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BINS_DRAWN = 56

CAPTIONS_COMPARED = 1_000_000
"""Up to this number of pairs, all captions are compared; beyond it, only those in the shards that are read anyway."""

CAPTION_TOKENS = (1, 5, 9, 13, 17, 25, 33, 49, 65, 97, 129)
PICTURE_SIDES = (1, 64, 128, 224, 336, 512, 768, 1024, 1536, 2048)

_COLUMNS = ("record", "id", "score", "caption_tokens", "width", "height", "image_hash")
_RECORD_BITS = 32


class _Row(NamedTuple):
    """A scored pair: its place (see `_place`), id and score."""

    place: int
    id: str
    score: float


class _Seen(NamedTuple):
    """The content of a pair in the source."""

    caption: str | None
    picture: Thumbnail
    picture_name: str


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
            page = _page_of_pairs(self.table, made, self.source, self.seed, self.title)
        else:
            page = _page_of_table(self.table, made, self.title)
        build_levels_page(page, self.out)


def prepare_look(
    scores: Path,
    out: Path,
    *,
    source: str | Path | None = None,
    image_root: Path | None = None,
    score_column: str | None = None,
    caption_column: str | None = None,
    image_column: str | None = None,
    written: Sequence[Path | None] = (),
    borders: Path | None = None,
    seed: int = 0,
) -> Look:
    """Check that a page can be made, before anything else is done with the scores.

    Args:
        scores: see `open_scores`; for a table, the page shows only scores and levels.
        out: the HTML file.
        source: the source that was scored; None for a page without captions and images.
        image_root: folder that image paths are relative to; if None, the one used when `source` was scored if it still
            exists, else the folder of `source`.
        score_column: see `open_scores`.
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
    table = open_scores(scores, score_column)
    _check_page_place(table, scores, out, written, borders, source)
    title = f"Levels of {'/'.join(scores.resolve().parts[-2:])}"
    if isinstance(table, ScoredPairs):
        pairs = None
        if source is not None:
            pairs = _scored_source(table, source, image_root, names)
        return Look(table, title, out, pairs, seed)
    if source is not None and not (isinstance(table, JsonScores) and same_place(Path(source), table.path)):
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


def _scored_source(
    table: ScoredPairs, source: str | Path, image_root: Path | None, names: dict[str, str | None]
) -> PairSource:
    """The source, with the same shards as when it was scored.

    Raises:
        ScoresError: it is a different source, or has changed.
    """
    records = [record_count(table.folder, shard) for shard in range(table.manifest.shards)]
    reading = table.manifest.reading or {}
    root_given = image_root is not None
    if image_root is None:
        image_root = _root_then(source, reading)
    # Columns that are not given are read as when scoring; the id column, which has no option here, always is.
    then = {name: given or _column_then(reading.get(name)) for name, given in {**names, "id_column": None}.items()}
    # The largest shard gives the shard size, or a smaller one that splits the same files in the same places.
    pairs = open_pairs(source, image_root=image_root, shard_size=max(1, *records), **then)
    if pairs.kind != table.manifest.source["kind"] or pairs.fingerprint() != table.manifest.source["fingerprint"]:
        raise ScoresError(
            f"{table.folder} has the scores of a different source than {source}, or the source has changed; score it "
            "again"
        )
    if different := list(reading_differences(reading, pairs.settings())) if reading else []:
        raise ScoresError(
            f"{source} was read with a different {' and a different '.join(different)} when {table.folder} was scored; "
            "give the same values, or omit --image-root, --caption-column and --image-column to use those"
        )
    if pairs.kind == "webdataset" and (root_given or any(names.values())):
        raise ScoresError(
            f"{source} consists of tar files, which contain their images and captions; omit --image-root, "
            "--caption-column and --image-column"
        )
    shards = pairs.shards()
    same = len(shards) == len(records) and all(
        shard.records in (None, count) for shard, count in zip(shards, records, strict=True)
    )
    if not same:
        raise ScoresError(
            f"{source} has other shards than when {table.folder} was scored; give the same file or folder"
        )
    return pairs


def _column_then(name: str | None) -> str | None:
    """The column name used when scoring; None if the files of the source used different default names."""
    return None if name is None or ", " in name else name


def _root_then(source: str | Path, reading: Mapping[str, str | None]) -> Path | None:
    """The image root used when scoring, if it still exists; None for the source's own folder."""
    beside = Path(source) if Path(source).is_dir() else Path(source).parent
    places = [beside / (reading.get("image_root") or "."), Path(reading.get("image_root_absolute") or ".")]
    if "image_root" not in reading or reading["image_root"] == ".":
        return None
    return next((place for place in places if place.is_dir()), None)


def _page_of_table(table: ScoreTable, made: LevelsSummary, title: str) -> LevelsPage:
    histogram = ScoreHistogram()
    with Meter("summarising scores", table.rows, unit="rows") as meter:
        for batch in table.batches():
            histogram.add(batch.scores)
            meter.advance(len(batch.scores) + batch.without)
    facts = _levels_facts(made)
    if made.without:
        facts["Without a score"] = f"{made.without:,} rows"
    thin = thin_levels(made.counts)
    rows = [LevelRow(int(count), level in thin) for level, count in enumerate(made.counts, start=1)]
    return _page(title, histogram, made, rows, facts)


def _page(
    title: str, histogram: ScoreHistogram, made: LevelsSummary, rows: list[LevelRow], facts: dict[str, str]
) -> LevelsPage:
    counts, edges = histogram.drawn(int(np.clip(np.sqrt(histogram.count), 16, BINS_DRAWN)))
    numbers = ScoreNumbers(
        count=histogram.count,
        mean=histogram.mean,
        standard_deviation=histogram.standard_deviation,
        quantiles={share: histogram.quantile(share) for share in QUANTILES} if histogram.count else {},
    )
    return LevelsPage(
        title=title,
        numbers=numbers,
        borders=list(made.levels.borders),
        # For borders of other scores, the deviation from the quantiles of these scores is unknown.
        rank_error=made.levels.rank_error if made.taken_from is None else 0.0,
        levels=rows,
        bin_counts=counts,
        bin_edges=edges,
        facts=facts,
    )


class _Collected:
    """Statistics and examples from one pass over the scored pairs."""

    def __init__(self, levels: AlignmentLevels, seed: int) -> None:
        self.histogram = ScoreHistogram()
        self.lowest: Smallest[_Row] = Smallest(LOWEST)
        size = min(EXAMPLES_PER_LEVEL, max(1, MOST_EXAMPLES // levels.num_levels))
        self.examples: list[Smallest[_Row]] = [Smallest(size) for _ in range(levels.num_levels)]
        self.pictures = HashCounter()
        self.by_caption, self.by_picture = BinnedScores(CAPTION_TOKENS), BinnedScores(PICTURE_SIDES)
        # Per level: number of pairs, sum of caption tokens, sum of image sides.
        self.sums = np.zeros((3, levels.num_levels))
        self._levels = levels
        self._random = np.random.default_rng(seed)

    def read(self, table: ScoredPairs) -> None:
        """Read all scored pairs."""
        with Meter("summarising pairs", table.rows, unit="pairs") as meter:
            for batch in read_batches(table.folder, table.manifest.shards, _COLUMNS):
                places = (batch["shard"].to_numpy().astype(np.int64) << _RECORD_BITS) | batch["record"].to_numpy()
                scores = batch["score"].to_numpy().astype(np.float64)
                sides = np.sqrt(batch["width"].to_numpy().astype(np.float64) * batch["height"].to_numpy())
                hashes = np.array([int(name[:16], 16) for name in batch["image_hash"].to_pylist()], dtype=np.uint64)
                self._draw(places, batch["id"], scores)
                self._measure(scores, batch["caption_tokens"].to_numpy().astype(np.int64), sides)
                self.pictures.add(hashes, places)
                meter.advance(batch.num_rows)

    def rows(self) -> list[LevelRow]:
        """The table rows of the levels."""
        counts, tokens, sides = self.sums
        thin = thin_levels(counts)
        return [
            LevelRow(int(count), level in thin, tokens[level - 1] / count, sides[level - 1] / count)
            if count
            else LevelRow(0, level in thin)
            for level, count in enumerate(counts, start=1)
        ]

    def _draw(self, places: NDArray[np.int64], ids: Sequence, scores: NDArray[np.float64]) -> None:
        def row(at: int) -> _Row:
            return _Row(int(places[at]), str(ids[at]), float(scores[at]))

        self.lowest.add(scores, row)
        # One random number per row, so the result does not depend on the batch sizes.
        keys, assigned = self._random.random(len(scores)), self._levels.assign(scores)
        for level in np.unique(assigned).tolist():
            self.examples[level - 1].add(np.where(assigned == level, keys, np.inf), row)

    def _measure(self, scores: NDArray[np.float64], tokens: NDArray[np.int64], sides: NDArray[np.float64]) -> None:
        self.histogram.add(scores)
        self.by_caption.add(tokens, scores)
        self.by_picture.add(np.rint(sides).astype(np.int64), scores)
        assigned = self._levels.assign(scores) - 1
        for sums, weights in zip(self.sums, (np.ones(len(scores)), tokens, sides), strict=True):
            sums += np.bincount(assigned, weights, minlength=self._levels.num_levels)


def _page_of_pairs(
    table: ScoredPairs, made: LevelsSummary, source: PairSource | None, seed: int, title: str
) -> LevelsPage:
    levels = made.levels
    collected = _Collected(levels, seed)
    collected.read(table)
    examples = [row for level in collected.examples for row in sorted(level.rows(), key=lambda row: row.score)]
    lowest = collected.lowest.rows()
    pictures = collected.pictures.largest(LARGEST_GROUPS)
    wanted = {row.place for row in (*examples, *lowest)} | {group.place for group in pictures}
    captions, caption_groups = HashCounter(), list[Repeated]()
    if source is not None:
        everything = collected.histogram.count <= CAPTIONS_COMPARED
        read = None if everything else {place >> _RECORD_BITS for place in wanted}
        captions = _captions(table, source, read)
        caption_groups = captions.largest(LARGEST_GROUPS)
    groups = {group.place for group in (*pictures, *caption_groups)}
    wanted |= groups
    known = {row.place: row for row in (*examples, *lowest)}
    known |= _rows_at(table.folder, groups - set(known))
    seen = {} if source is None else _pick(source, wanted)

    def shown(row: _Row) -> ShownPair:
        found = seen.get(row.place)
        level = int(levels.assign(row.score))
        if found is None:
            return ShownPair(row.id, level, row.score)
        return ShownPair(row.id, level, row.score, found.caption, found.picture, found.picture_name)

    def copies(counter: HashCounter, largest: Sequence[Repeated]) -> Copies:
        groups, pairs = counter.repeats()
        shown_groups = [CopiedGroup(group.times, shown(known[group.place]), group.most) for group in largest]
        return Copies(
            groups.value,
            pairs.value,
            counter.added,
            counter.share,
            shown_groups,
            groups_interval=(groups.low, groups.high),
            pairs_interval=(pairs.low, pairs.high),
        )

    page = _page(title, collected.histogram, made, collected.rows(), _facts(table, made))
    return replace(
        page,
        examples=[shown(row) for row in examples],
        lowest=[shown(row) for row in lowest],
        same_picture=copies(collected.pictures, pictures),
        same_caption=None if source is None else copies(captions, caption_groups),
        by_caption=_by_bin(collected.by_caption),
        by_picture=_by_bin(collected.by_picture),
    )


def _levels_facts(made: LevelsSummary) -> dict[str, str]:
    if made.taken_from is None:
        return {"Method": made.levels.method}
    fitted = f"{made.taken_from}, fitted to {made.levels.statistics.count:,} other scores ({made.levels.method})"
    return {"Borders": fitted}


def _facts(table: ScoredPairs, made: LevelsSummary) -> dict[str, str]:
    manifest = table.manifest
    facts = {"Scores": str(table.folder), "Model": manifest.model} | _levels_facts(made)
    if manifest.finished is not None and manifest.finished.rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.finished.reasons.items())
        facts["Without a score"] = f"{manifest.finished.rejected:,} ({reasons})"
    return facts


def _by_bin(scores: BinnedScores) -> ScoreByBin | None:
    bins = scores.bins()
    if not bins:
        return None
    names, counts, means, deviations = (list(column) for column in zip(*bins, strict=True))
    return ScoreByBin(names, counts, means, deviations, scores.correlation())


def _captions(table: ScoredPairs, source: PairSource, shards: set[int] | None) -> HashCounter:
    """Count the captions of the scored pairs of some shards; of all shards if None."""
    counter = HashCounter()
    chosen = [shard for shard in source.shards() if shards is None or shard.index in shards]
    with Meter("comparing captions", len(chosen), unit="shards") as meter:
        for shard in chosen:
            scored = set(_part(table.folder, shard.index, "record")["record"])
            places, hashes = [], []
            for pair in source.read(shard):
                if isinstance(pair, Pair) and pair.record in scored:
                    text = pair.caption.encode("utf-8", "surrogatepass")
                    hashes.append(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big"))
                    places.append(_place(shard, pair.record))
            counter.add(np.array(hashes, dtype=np.uint64), np.array(places, dtype=np.int64))
            meter.advance()
    return counter


def _pick(source: PairSource, places: Iterable[int]) -> dict[int, _Seen]:
    """The pairs at some places; only shards that contain one of them are read."""
    found = {}
    wanted = _by_shard(places)
    with Meter("opening images", sum(map(len, wanted.values())), unit="images") as meter:
        for shard in source.shards():
            left = set(wanted.get(shard.index, ()))
            records = source.read(shard) if left else iter(())
            for pair in records:
                if pair.record in left:
                    left.discard(pair.record)
                    found[_place(shard, pair.record)] = (
                        _Seen(pair.caption, _thumbnail(pair.picture), pair.picture.name)
                        if isinstance(pair, Pair)
                        else _Seen(None, Thumbnail(problem=_words(pair.reason)), "")
                    )
                    meter.advance()
                if not left:
                    break
    return found


def _thumbnail(picture: Picture) -> Thumbnail:
    try:
        return shrunk(picture.open())
    except ImageError as error:
        return Thumbnail(problem=_words(error.reason))


def _rows_at(folder: Path, places: Iterable[int]) -> dict[int, _Row]:
    """The ids and scores of the pairs at some places."""
    found = {}
    for shard, records in _by_shard(places).items():
        part = _part(folder, shard, "record", "id", "score")
        for record, id, score in zip(part["record"], part["id"], part["score"], strict=True):
            if record in records:
                place = (shard << _RECORD_BITS) | record
                found[place] = _Row(place, id, score)
    return found


def _part(folder: Path, shard: int, *columns: str) -> dict[str, list]:
    return read_part(folder, shard, columns).to_pydict()


def _by_shard(places: Iterable[int]) -> dict[int, set[int]]:
    """Record numbers by shard number."""
    records: dict[int, set[int]] = defaultdict(set)
    for place in places:
        records[place >> _RECORD_BITS].add(place & ((1 << _RECORD_BITS) - 1))
    return records


def _place(shard: Shard, record: int) -> int:
    """Encode a shard and a record number in it as one integer."""
    return (shard.index << _RECORD_BITS) | record


def _words(reason: str) -> str:
    return reason.replace("_", " ")
