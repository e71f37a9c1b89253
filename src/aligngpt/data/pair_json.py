"""Pairs in a JSON array or in JSON lines: LLaVA's records, or a table of the names of pictures."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from aligngpt.data.images import ImageError, resolve_image
from aligngpt.data.pair_columns import Columns, checked_caption, pair_of_row
from aligngpt.data.pair_json_array import read_array, read_array_range
from aligngpt.data.pair_ranges import BrokenLine, cut, json_of, read_lines, text_start
from aligngpt.data.pairs import Pair, PairSource, Shard, Unusable, read_with
from aligngpt.data.pictures import Picture
from aligngpt.data.samples import RecordError, parse_record
from aligngpt.data.text_files import check_lines
from aligngpt.files import sha256_of

RECORDS_LOOKED_AT = 100
"""First records, by which `LlavaPairs.remark` judges what a file holds."""


class JsonPairs(PairSource):
    """A file of JSON records, cut into ranges of bytes.

    Args:
        path: the file.
        root: folder that paths of pictures start from.
        shard_size: records a shard.
        is_array: whether it is one array, rather than one record a line.
    """

    def __init__(self, path: Path, root: Path, shard_size: int, is_array: bool) -> None:
        self.path = path
        self.root = root
        self.shard_size = shard_size
        self.is_array = is_array
        self._shards: tuple[Shard, ...] = ()

    def shards(self) -> Sequence[Shard]:
        if not self._shards:
            self._shards = cut(self.path, self._spans(), self.shard_size)
        return self._shards

    def read(self, shard: Shard) -> Iterator[Pair | Unusable]:
        for record, value in enumerate(self._values(shard)):
            number = shard.first + record
            if isinstance(value, BrokenLine):
                yield Unusable(record, None, value.kind, f"record {number} of {self.path}: {value.reason}")
                continue
            yield self._pair(value, record, number)

    def fingerprint(self) -> str:
        with self.path.open("rb") as file:
            return sha256_of(file)

    def settings(self) -> dict[str, str | None]:
        # LLaVA's records have their fields by definition.
        return read_with(caption=None, id=None, root=self.root, base=self.path.parent)

    @abstractmethod
    def _pair(self, value: object, record: int, number: int) -> Pair | Unusable:
        """What a record holds, given its number in the shard and in the file."""

    def _spans(self) -> Iterator[tuple[int, int]]:
        if self.is_array:
            for element in read_array(self.path):
                yield element.start, element.stop
            return
        check_lines(self.path)
        for line in read_lines(self.path, text_start(self.path)):
            if line.content.strip():
                yield line.start, line.stop

    def _values(self, shard: Shard) -> Iterator[object]:
        if self.is_array:
            for element in read_array_range(self.path, shard.start, shard.stop):
                yield element.value
            return
        for line in read_lines(self.path, shard.start, shard.stop):
            if line.content.strip():
                yield json_of(line)


class LlavaPairs(JsonPairs):
    """LLaVA's records, as `parse_record` reads them; one with exactly one image is a pair."""

    kind = "llava"

    def remark(self) -> str | None:
        read = asked = 0
        for value in islice(self._values(self.shards()[0]), RECORDS_LOOKED_AT):
            try:
                turns = parse_record(value, read).turns
            except RecordError:
                continue
            read += 1
            asked += len(turns) > 2 or turns[0].text.rstrip().endswith("?")
        if asked * 2 <= read:
            return None
        return (
            f"{asked} of the first {read} records of {self.path} are questions with answers, not captions: of each, "
            "only the first answer is scored. Scores and levels are meant for captions"
        )

    def _pair(self, value: object, record: int, number: int) -> Pair | Unusable:
        try:
            sample = parse_record(value, number)
            if len(sample.images) != 1:
                raise RecordError("image_count", f"a pair has one image, the record has {len(sample.images)}")
            name = sample.images[0]
            caption = checked_caption(sample.caption)
            return Pair(record, sample.id, caption, Picture(name, path=resolve_image(name, self.root)))
        except (RecordError, ImageError) as error:
            return Unusable(record, _own_id(value), error.reason, str(error))


class JsonTablePairs(JsonPairs):
    """Records that name a picture and its caption in fields of their own, such as `file_name` and `text`."""

    kind = "csv"

    def __init__(self, path: Path, root: Path, shard_size: int, is_array: bool, columns: Columns) -> None:
        super().__init__(path, root, shard_size, is_array)
        self.columns = columns

    def settings(self) -> dict[str, str | None]:
        found = self.columns
        return read_with(caption=found.caption, image=found.image, id=found.id, root=self.root, base=self.path.parent)

    def _pair(self, value: object, record: int, number: int) -> Pair | Unusable:
        if not isinstance(value, dict):
            found = f"expected a JSON object, found {type(value).__name__}"
            return Unusable(record, None, "not_an_object", found)
        place = f"record {number} of {self.path.name}"
        return pair_of_row(value, self.columns, record=record, number=number, root=self.root, place=place)


def _own_id(value: object) -> str | None:
    return str(value["id"]) if isinstance(value, dict) and value.get("id") is not None else None
