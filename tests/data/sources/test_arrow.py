"""Data sets saved by `save_to_disk` are read from their Arrow files, in place; damage is named."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from PIL import Image

from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.preparing import prepare_samples
from aligngpt.data.samples.sequence import picture_of
from aligngpt.data.sources.arrow import ArrowFile
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.finding import archive_at
from aligngpt.data.sources.saved import saved_files

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "gray")


def encoded(colour: str) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(written, "PNG")
    return written.getvalue()


def rows() -> list[dict[str, Any]]:
    turns = [[{"from": "human", "value": "which?"}, {"from": "gpt", "value": colour}] for colour in COLOURS]
    images = [{"bytes": encoded(colour), "path": None} for colour in COLOURS]
    return [{"image": one, "conversations": said} for one, said in zip(images, turns, strict=True)]


def answers(path: Path) -> list[str]:
    samples = prepare_samples(path, rejects=Rejects(None, max_share=0.0))
    for number, sample in enumerate(samples):
        shown = picture_of(samples, number, 0, path).open()
        assert shown.tobytes() == Image.new("RGB", (8, 8), sample.turns[1].text).tobytes()
    return [sample.turns[1].text for sample in samples]


@pytest.mark.parametrize("shards", [1, 3])
def test_conversations_and_images_are_read_in_order(tmp_path: Path, shards: int) -> None:
    saved = datasets.Dataset.from_list(rows()).cast_column("image", datasets.Image())
    saved.save_to_disk(tmp_path / "saved", num_shards=shards)
    assert answers(tmp_path / "saved") == list(COLOURS)


def test_rows_chosen_before_saving_are_those_read(tmp_path: Path) -> None:
    datasets.Dataset.from_list(rows()).select([5, 0, 2]).save_to_disk(tmp_path / "saved")
    assert answers(tmp_path / "saved") == ["yellow", "red", "blue"]


def test_many_record_batches_are_many_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    datasets.Dataset.from_list(rows()).save_to_disk(path)
    (file,) = saved_files(path)
    table = ArrowFile(file)
    (whole,) = table.iter_batches(batch_size=100, row_groups=[0], columns=table.schema_arrow.names)
    with pyarrow.OSFile(str(path / "new"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema_arrow) as writer:
        for start in range(0, len(COLOURS), 2):
            writer.write_batch(whole.slice(start, 2))
    (path / "new").rename(file)
    assert [ArrowFile(file).metadata.row_group(group).num_rows for group in range(4)] == [2, 2, 2, 1]
    assert answers(path) == list(COLOURS)


def test_images_may_be_files_in_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    datasets.Dataset.from_list([{"image": "red.png", "caption": "red"}]).save_to_disk(path)
    (path / "red.png").write_bytes(encoded("red"))
    assert [sample.images for sample in prepare_samples(path, rejects=Rejects(None))] == [("red.png",)]


def test_of_several_splits_train_is_read_or_the_only_one(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(rows())
    datasets.DatasetDict({"test": made, "train": made.select([3])}).save_to_disk(tmp_path / "both")
    assert answers(tmp_path / "both") == ["black"]
    datasets.DatasetDict({"test": made.select([4])}).save_to_disk(tmp_path / "one")
    assert answers(tmp_path / "one") == ["white"]
    datasets.DatasetDict({"a": made, "b": made}).save_to_disk(tmp_path / "two")
    with pytest.raises(SourceError, match="found a, b; use the folder of one split"):
        archive_at(tmp_path / "two")


def test_another_content_has_another_fingerprint(tmp_path: Path) -> None:
    for name, chosen in (("a", [0, 1]), ("b", [1, 0])):
        datasets.Dataset.from_list(rows()).select(chosen).save_to_disk(tmp_path / name)
    found = [archive.fingerprint() for name in "ab" if (archive := archive_at(tmp_path / name)) is not None]
    assert len(set(found)) == 2


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    datasets.Dataset.from_list(rows()).save_to_disk(path)
    (file,) = saved_files(path)
    file.write_bytes(b"no arrow file")
    with pytest.raises(SourceError, match=f"{file.name} is not a readable Arrow file"):
        prepare_samples(path, rejects=Rejects(None))
    file.unlink()
    with pytest.raises(SourceError, match=f"incomplete: {file.name} is missing; save the data set again"):
        archive_at(path)


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ("{", "cannot be read"),
        ("{}", "does not list the files"),
        (json.dumps({"_data_files": []}), "has no records"),
        (json.dumps({"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}), "apart from them"),
    ],
)
def test_a_wrong_list_of_files_is_refused(tmp_path: Path, state: str, found: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(SourceError, match=found):
        archive_at(tmp_path)
