"""Opens the source of scored pairs again, the way it was read when it was scored."""

from collections.abc import Mapping
from pathlib import Path

from aligngpt.data.records.pairs import PairSource, open_pairs
from aligngpt.data.sources.fields import ColumnNames
from aligngpt.data.sources.remote import located
from aligngpt.levels.scored_pairs import ScoredPairs
from aligngpt.scoring.first_pairs import FirstPairs
from aligngpt.scoring.manifest import reading_differences
from aligngpt.scoring.score_files import ScoresError, record_count


def scored_source(
    table: ScoredPairs, source: str | Path, image_root: Path | None, names: dict[str, str | None]
) -> PairSource:
    """The source, with the same shards as when it was scored.

    Args:
        table: the scores.
        source: the source that was scored.
        image_root: folder that image paths are relative to; the one used when scoring, if it still exists, if None.
        names: `caption_column` and `image_column`, see `open_pairs`; None for those used when scoring.

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
    if table.manifest.limit is not None:
        pairs = FirstPairs(pairs, table.manifest.limit)
    shards = pairs.shards()
    same = len(shards) == len(records) and all(
        shard.records in (None, count) for shard, count in zip(shards, records, strict=True)
    )
    if not same:
        raise ScoresError(
            f"{source} has other shards than when {table.folder} was scored; give the same file or folder"
        )
    return pairs


def scored_columns(table: ScoredPairs) -> ColumnNames:
    """The columns that were scored, if the source is a table; no names for LLaVA records, which have fixed fields.

    Raises:
        ScoresError: the scores do not say which columns they are of.
    """
    if table.manifest.source["kind"] not in ("csv", "files"):
        return ColumnNames()
    if (then := table.manifest.reading) is None:
        raise ScoresError(
            f"{table.folder} has scores of an earlier version of aligngpt, which did not record the columns that were "
            "scored; score the source again"
        )
    # Such a source is one table, so each of them is one name.
    caption, image, id = (then.get(name) for name in ("caption_column", "image_column", "id_column"))
    return ColumnNames(caption, image, id)


def _column_then(name: str | None) -> str | None:
    """The column name used when scoring; None if the files of the source used different default names."""
    return None if name is None or ", " in name else name


def _root_then(source: str | Path, reading: Mapping[str, str | None]) -> Path | None:
    """The image root used when scoring, if it still exists; None for the source's own folder."""
    own = located(source)
    beside = own if own.is_dir() else own.parent
    places = [beside / (reading.get("image_root") or "."), located(reading.get("image_root_absolute") or ".")]
    if "image_root" not in reading or reading["image_root"] == ".":
        return None
    return next((place for place in places if place.is_dir()), None)
