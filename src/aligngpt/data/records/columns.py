"""The columns of Parquet files that are read into samples, and the columns that are not read."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow

from aligngpt.data.records.conversation import SYSTEM_FIELDS, TURN_FIELDS
from aligngpt.data.records.fields import CONTENT_FIELDS
from aligngpt.data.records.instructions import INSTRUCTION_FIELDS, INSTRUCTION_LAYOUTS
from aligngpt.data.records.pair import ANSWER_FIELDS, question_field
from aligngpt.data.records.ratings import RATINGS_SUFFIX
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.fields import CAPTION_COLUMNS, ID_COLUMNS, PICTURE_COLUMNS, ColumnNames, first_of
from aligngpt.data.sources.parquet_rows import open_parquet

RECORD_IDS = (*ID_COLUMNS, "question_id")

# The presence of these columns matters even if they are empty; see `question_field`.
ASKING = ("question", *ANSWER_FIELDS, "question_id")
READ_COLUMNS = (
    *dict.fromkeys((*TURN_FIELDS, *ASKING, *SYSTEM_FIELDS, *INSTRUCTION_FIELDS, *CONTENT_FIELDS)),
    *("level", "similarity", "score", "question_type", "accepted_answers"),
)


def columns_not_read(files: Iterable[Path]) -> dict[str, int]:
    """Map each column of Parquet files that is not read to the number of records in the files that have it.

    Ratings are among them: they are read only where a recipe asks for them.

    Raises:
        SourceError: a file cannot be opened, or lacks the columns of a sample.
    """
    found: Counter[str] = Counter()
    for path in files:
        with open_parquet(path) as file:
            read = columns_read(file.schema_arrow, str(path))
            unread = [name for name in file.schema_arrow.names if name not in read or name.endswith(RATINGS_SUFFIX)]
            found.update(dict.fromkeys(unread, file.metadata.num_rows))
    return dict(found)


def columns_read(schema: pyarrow.Schema, where: str) -> list[str]:
    """The columns of a file that are read.

    Raises:
        SourceError: they do not form a sample, or the images are in a column that is not read.
    """
    there: list[str] = schema.names
    asks = question_field(dict.fromkeys(there, "x")) is not None and any(name in there for name in ANSWER_FIELDS)
    instructs = any(one.asked in there and one.answered in there for one in INSTRUCTION_LAYOUTS)
    if not any(name in there for name in TURN_FIELDS) and not asks and not instructs:
        if not any(name in there for name in CAPTION_COLUMNS):
            raise SourceError(
                f"{where} has no column to train on: expected conversations, messages, texts, question and answer, "
                "instruction and output, query and response, prompt and completion, or one of "
                f"{', '.join(CAPTION_COLUMNS)}; found {', '.join(there) or 'none'}"
            )
        # A caption needs an image.
        if "images" not in there:
            ColumnNames().found_in(there, where)
    picture = first_of(PICTURE_COLUMNS, there)
    known = [*READ_COLUMNS, *RECORD_IDS, *CAPTION_COLUMNS, "images"]
    read = [name for name in there if name in known or name == picture or name.endswith(RATINGS_SUFFIX)]
    if picture is None:
        for name in there:
            if name not in read and _holds_pictures(schema.field(name).type):
                raise SourceError(
                    f"{where} has binary data in the column {name}, but images are read from "
                    f"{', '.join(PICTURE_COLUMNS)}; rename the column, or remove it if the records are text only"
                )
    return read


def _holds_pictures(kind: pyarrow.DataType) -> bool:
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return _holds_pictures(kind.value_type)
    if pyarrow.types.is_struct(kind):
        return any(_holds_pictures(kind.field(place).type) for place in range(kind.num_fields))
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))
