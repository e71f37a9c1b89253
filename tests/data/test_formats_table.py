"""The table of formats in docs/formats.md is what the commands do."""

import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from aligngpt.checking.files import check_files
from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.preparing import prepare_samples
from aligngpt.data.samples.sequence import picture_of
from aligngpt.evaluation.questions import read_questions
from aligngpt.levels.making import make_levels
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.scoring.score_files import ScoresError
from aligngpt.training.run import train

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
COUNT = 6

Rows = list[dict[str, Any]]
Build = Callable[[Path, Rows], Path]


def table() -> dict[str, dict[str, str]]:
    """The cells of the page's table, by format and command."""
    lines = re.findall(r"^\|(.+)\|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    header, _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def json_array(folder: Path, rows: Rows) -> Path:
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"


def json_lines(folder: Path, rows: Rows, name: str = "data.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def separated(folder: Path, rows: Rows, name: str = "data.csv", between: str = ",") -> Path:
    lines = [between.join(rows[0]), *(between.join(map(str, row.values())) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def packed(path: Path) -> Path:
    target = path.with_name(f"{path.name}.gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return target


def coco(folder: Path, rows: Rows) -> Path:
    images = [{"id": number, "file_name": row["image"]} for number, row in enumerate(rows)]
    captions = [{"id": number, "image_id": number, "caption": row["caption"]} for number, row in enumerate(rows)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return folder / "captions.json"


def with_table(folder: Path, rows: Rows) -> Path:
    separated(folder, rows, "captions.csv")
    return folder


def with_texts(folder: Path, rows: Rows) -> Path:
    for row in rows:
        (folder / row["image"]).with_suffix(".txt").write_text(row["caption"])
    return folder


def with_bytes(folder: Path, rows: Rows) -> Rows:
    return [row | {"image": {"bytes": (folder / row["image"]).read_bytes(), "path": row["image"]}} for row in rows]


def parquet(folder: Path, rows: Rows) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(with_bytes(folder, rows)), folder / "data.parquet")
    return folder / "data.parquet"


def parquet_folder(folder: Path, rows: Rows) -> Path:
    target = folder / "shards"
    target.mkdir()
    for number, part in enumerate((rows[:4], rows[4:])):
        table = pyarrow.Table.from_pylist(with_bytes(folder, part))
        pyarrow.parquet.write_table(table, target / f"{number:05}.parquet", row_group_size=3)
    return target


def tar(folder: Path, rows: Rows) -> Path:
    with tarfile.open(folder / "data.tar", "w") as file:
        for number, row in enumerate(rows):
            fields = json.dumps({name: value for name, value in row.items() if name != "image"}).encode()
            for suffix, content in (("png", (folder / row["image"]).read_bytes()), ("json", fields)):
                member = tarfile.TarInfo(f"{number:03}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return folder / "data.tar"


def saved(folder: Path, rows: Rows) -> Path:
    datasets.Dataset.from_list(with_bytes(folder, rows)).save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


FORMATS: dict[str, Build] = {
    "JSON array": json_array,
    "JSON lines": json_lines,
    "CSV": separated,
    "TSV": lambda folder, rows: separated(folder, rows, "data.tsv", "\t"),
    "compressed JSON lines": lambda folder, rows: packed(json_lines(folder, rows)),
    "compressed CSV": lambda folder, rows: packed(separated(folder, rows)),
    "COCO captions": coco,
    "folder with a table": with_table,
    "folder with texts": with_texts,
    "Parquet": parquet,
    "folder of Parquet files": parquet_folder,
    "tar": tar,
    "saved data set": saved,
}


@pytest.fixture
def pairs(tmp_path: Path) -> Rows:
    colours = ("red", "green", "blue", "yellow", "black", "white")
    for number, colour in enumerate(colours):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{number}.png")
    return [{"image": f"{number}.png", "caption": f"a {colour} square"} for number, colour in enumerate(colours)]


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(ScoresError) as caught:
        read()
    return str(caught.value)


def test_the_page_has_a_row_for_each_format_and_each_cell_is_known() -> None:
    found = table()
    assert set(found) == set(FORMATS)
    for cells in found.values():
        assert list(cells) == ["score", "levels", "check", "train", "evaluate"]
        assert cells["score"] == "yes" and cells["levels"] in ("records", "table")
        assert cells["check"] == cells["train"] == "yes"
        assert cells["evaluate"] in ("yes", "captions")


@pytest.mark.parametrize("name", FORMATS)
def test_score_and_levels(name: str, pairs: Rows, tmp_path: Path, clip_scorer: PairScorer) -> None:
    source = FORMATS[name](tmp_path, pairs)
    out = tmp_path / "scores"
    assert score_source(open_pairs(source, shard_size=4), clip_scorer, out, workers=0).scored == COUNT
    table_of_levels = tmp_path / "levels.parquet"
    make_levels(out, out=table_of_levels, num_levels=2)
    assert pyarrow.parquet.read_table(table_of_levels).num_rows == COUNT
    records = tmp_path / "levels.jsonl"
    if table()[name]["levels"] == "table":
        assert "parquet" in refusal(lambda: make_levels(out, source=source, out=records, num_levels=2))
        return
    make_levels(out, source=source, out=records, num_levels=2)
    samples = prepare_samples(records, image_root=tmp_path, require_level=True, rejects=Rejects(None, max_share=0.0))
    assert [sample.caption for sample in samples] == [row["caption"] for row in pairs]
    assert {sample.level for sample in samples} == {1, 2}


@pytest.mark.parametrize("name", FORMATS)
def test_check(name: str, pairs: Rows, tmp_path: Path) -> None:
    (check,) = check_files([FORMATS[name](tmp_path, pairs)], full=True)
    assert check.good and (check.samples, check.images) == (COUNT, COUNT)


@pytest.mark.parametrize("name", FORMATS)
def test_train(name: str, pairs: Rows, tmp_path: Path) -> None:
    source = FORMATS[name](tmp_path, pairs)
    samples = prepare_samples(source, rejects=Rejects(None, max_share=0.0))
    root = source if source.is_dir() else source.parent
    assert [sample.caption for sample in samples] == [row["caption"] for row in pairs]
    for number, row in enumerate(pairs):
        shown = picture_of(samples, number, 0, root).open()
        assert shown.tobytes() == Image.open(tmp_path / row["image"]).tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_evaluate(name: str, pairs: Rows, tmp_path: Path) -> None:
    cell = table()[name]["evaluate"]
    questions = [{"image": row["image"], "question": "which colour?", "answer": row["caption"]} for row in pairs]
    source = FORMATS[name](tmp_path, questions if cell == "yes" else pairs)
    rejects = Rejects(None, max_share=0.0)
    found = read_questions(source, image_root=None, rejects=rejects)
    assert [sample.turns[-1].text for sample in found.samples] == [row["caption"] for row in pairs]
    assert {sample.turns[0].text for sample in found.samples} == {"which colour?" if cell == "yes" else ""}
    for sample in found.samples:
        assert found.open_image(sample.images[0]).size == (16, 16)


@pytest.mark.medium
def test_a_run_trains_on_a_table_with_levels_and_on_a_compressed_file(data: Path, tiny_recipe: Callable) -> None:
    captions, questions = (json.loads((data / name).read_text()) for name in ("captions.json", "questions.json"))
    rows = [{"image": one["image"], "caption": one["caption"], "level": one["similarity"] + 1} for one in captions]
    files = separated(data, rows), packed(json_lines(data, questions))
    changes = {"pretrain__max_steps": 1, "instruct__max_steps": 1}
    results = train(tiny_recipe(pretrain__data=str(files[0]), instruct__data=str(files[1]), **changes))
    assert [result.steps for result in results] == [1, 1]


@pytest.mark.medium
def test_a_run_trains_on_a_saved_data_set_and_on_a_folder_of_parquet_files(data: Path, tiny_recipe: Callable) -> None:
    captions, questions = (json.loads((data / name).read_text()) for name in ("captions.json", "questions.json"))
    files = saved(data, captions), parquet_folder(data, [row for row in questions if "image" in row])
    changes = {"pretrain__max_steps": 1, "instruct__max_steps": 1}
    results = train(tiny_recipe(pretrain__data=str(files[0]), instruct__data=str(files[1]), **changes))
    assert [result.steps for result in results] == [1, 1]
