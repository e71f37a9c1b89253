"""Captions in COCO's format: one JSON object with the tables `images` and `annotations`."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TypeGuard

from aligngpt.data.sources.base import BrokenRecord, Record, Shard, SourceError
from aligngpt.data.sources.converted import ConvertedSource
from aligngpt.data.sources.fields import ColumnNames
from aligngpt.data.sources.json import JsonSource
from aligngpt.data.sources.json_keys import RepeatedKeys, decoded
from aligngpt.data.sources.text_files import one_object_keys

FIELDS = ("id", "image_id", "caption", "file_name")


class CocoSource(ConvertedSource):
    """The annotations of a COCO file, each a row with the caption, the file name of its image and its own id.

    The file is read into memory once, when it is converted into JSON lines in the cache.

    Args:
        path: the file, such as `captions_train2017.json`.
        shard_size: annotations per shard.
        names: which of `FIELDS` to read.

    Raises:
        SourceError: it cannot be read, its annotations are not captions, or a field that is named does not exist.
    """

    def __init__(self, path: Path, shard_size: int, names: ColumnNames) -> None:
        columns = names.found_in(FIELDS, str(path))
        opened = partial(JsonSource, shard_size=shard_size, is_array=False, columns=columns)
        super().__init__(path, path.with_suffix(".jsonl").name, coco_to_lines, opened)

    def read(self, shard: Shard) -> Iterator[Record | BrokenRecord]:
        for record in super().read(shard):
            if isinstance(record, Record) and record.value["file_name"] is None:
                id, image = record.value["id"], record.value["image_id"]
                detail = f"annotation {id} of {self.path.name} is about the image {image}, which is not in `images`"
                yield BrokenRecord(record.number, "no_picture", detail)
            else:
                yield record


def is_coco(path: Path) -> bool:
    """Whether a file is one JSON object with COCO's tables; only its beginning is read if it is large."""
    return not {"images", "annotations"}.isdisjoint(one_object_keys(path))


def coco_to_lines(path: Path, out: Path) -> None:
    """Write a line with `id`, `image_id`, `file_name` and `caption` for each annotation of a COCO file.

    Raises:
        SourceError: see `CocoSource`.
    """
    try:
        whole = decoded(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} is one JSON object that cannot be read: {error}") from error
    if not isinstance(whole, dict) or isinstance(whole, RepeatedKeys):
        raise SourceError(f"{path} must be one JSON object, with each key once; keep one of the values")
    images, annotations = whole.get("images"), whole.get("annotations")
    if not _is_table(images, "file_name") or not _is_table(annotations, "image_id"):
        raise SourceError(
            f"{path} is one JSON object with the keys {', '.join(whole)}; expected an array, or one record per line, "
            "or COCO's tables `images` with `file_name` and `annotations` with `image_id`"
        )
    if annotations and not any("caption" in one for one in annotations):
        raise SourceError(
            f"{path} is a COCO file without captions: its annotations have the fields {', '.join(annotations[0])}; "
            "use its captions file (captions_….json)"
        )
    _check_each(path, "images", images, "id")
    _check_each(path, "annotations", annotations, "image_id")
    names: dict[object, object] = {}
    for one in images:
        name = names.setdefault(one.get("id"), one["file_name"])
        if name != one["file_name"]:
            raise SourceError(
                f"{path} has the id {one.get('id')} twice in `images`, as {name} and {one['file_name']}; give each "
                "image an id of its own"
            )
    with out.open("w", encoding="utf-8") as file:
        for number, one in enumerate(annotations):
            row = {"id": one.get("id", number), "image_id": one.get("image_id"), "caption": one.get("caption")}
            row["file_name"] = names.get(row["image_id"])
            file.write(json.dumps(row) + "\n")


def _check_each(path: Path, table: str, rows: list[dict[str, object]], id: str) -> None:
    """Check that each row of a table has each key once, and a number or a text as the id of its image.

    Raises:
        SourceError: a row does not.
    """
    for number, row in enumerate(rows):
        if isinstance(row, RepeatedKeys):
            raise SourceError(f"{path}: row {number} of `{table}` has a duplicate key; keep one of its values")
        if isinstance(row.get(id), list | dict):
            raise SourceError(
                f"{path}: `{id}` of row {number} of `{table}` must be a number or a text, found {row[id]!r:.80}"
            )


def _is_table(found: object, field: str) -> TypeGuard[list[dict[str, object]]]:
    return isinstance(found, list) and all(isinstance(one, dict) and field in one for one in found)
