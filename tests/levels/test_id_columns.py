"""The id column of a score table: the one that is named, or the default one."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligngpt.levels.making import open_scores
from aligngpt.scoring.score_files import ScoresError

ROWS = [{"id": f"default-{index}", "name": f"own-{index}", "score": index / 8} for index in range(3)]
SUFFIXES = [".csv", ".parquet", ".json", ".jsonl"]


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    """A table with two columns of ids."""

    def make(suffix: str) -> Path:
        path = tmp_path / f"table{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path)
        elif suffix == ".csv":
            path.write_text("id,name,score\n" + "".join(",".join(map(str, row.values())) + "\n" for row in ROWS))
        else:
            path.write_text(json.dumps(ROWS) if suffix == ".json" else "\n".join(map(json.dumps, ROWS)))
        return path

    return make


@pytest.mark.parametrize("with_columns", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_named_column_gives_the_ids(suffix: str, with_columns: bool, table: Callable[[str], Path]) -> None:
    for column, kind in ((None, "default"), ("name", "own")):
        batches = open_scores(table(suffix), id_column=column).batches(with_columns=with_columns)
        assert [id for batch in batches for id in batch.ids.to_pylist()] == [f"{kind}-{index}" for index in range(3)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_column_that_is_not_there_is_refused(suffix: str, table: Callable[[str], Path]) -> None:
    with pytest.raises(ScoresError, match=r"table.* id (column|field) uuid.*--id-column"):
        list(open_scores(table(suffix), id_column="uuid").batches())


def test_a_record_without_the_named_field_is_called_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text('{"name": "a", "score": 0.5}\n{"id": "other", "score": 0.25}\n')
    assert [batch.ids.to_pylist() for batch in open_scores(path, id_column="name").batches()] == [["a", "1"]]


def test_the_output_of_score_has_its_ids(write_scores: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text("[]")
    folder = write_scores(tmp_path / "pairs.json", {0: 0.5}, 1)
    with pytest.raises(ScoresError, match="omit --id-column"):
        open_scores(folder, id_column="id")
