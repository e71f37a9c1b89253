"""Samples read directly from Parquet and tar files equal those of a JSON file, with images read in place."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from aligngpt.checking.files import check_files
from aligngpt.data.batches.dataset import ConversationDataset
from aligngpt.data.batches.rows import rows_of
from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.data.samples import preparing as prepared
from aligngpt.data.samples.index import PreparedSamples
from aligngpt.data.samples.mixtures import Chosen, Mixture, held_out
from aligngpt.data.samples.preparing import prepare_samples
from aligngpt.data.samples.reading import write_records
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.finding import content_of

ROWS = 9


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures() -> list[bytes]:
    generator = np.random.default_rng(1)
    found = []
    for _ in range(ROWS):
        stream = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Captions with levels; every third record is a conversation."""
    found: list[dict[str, Any]] = []
    for place in range(ROWS):
        said = {"caption": f" a red circle {place} "}
        if place % 3 == 2:
            turns = (("human", "<image>\nis it red ?"), ("gpt", "yes"), ("human", "why ?"), ("gpt", "it is"))
            said = {"conversations": [{"from": who, "value": text} for who, text in turns]}
        found.append({"id": f"r{place}", "similarity": place % 8, **said})
    return found


def json_file(folder: Path, records: Sequence[Mapping[str, Any]], pictures: Sequence[bytes]) -> Path:
    folder.mkdir()
    for place, picture in enumerate(pictures):
        (folder / f"{place}.png").write_bytes(picture)
    shown = [{**record, "image": f"{place}.png"} for place, record in enumerate(records)]
    write_records(folder / "data.json", shown)
    return folder / "data.json"


def parquet(path: Path, rows: list[dict[str, Any]], group: int = 2) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def shown(records: Sequence[Mapping[str, Any]], pictures: Sequence[bytes]) -> list[dict[str, Any]]:
    """Rows with every column, so that files with a subset of the rows have the same columns."""
    columns = {"conversations": None, "caption": None}
    pairs = zip(records, pictures, strict=True)
    return [{**columns, **record, "image": {"bytes": picture, "path": "same.png"}} for record, picture in pairs]


def members(records: Sequence[Mapping[str, Any]], pictures: Sequence[bytes]) -> list[tuple[str, bytes]]:
    found = []
    for place, (record, picture) in enumerate(zip(records, pictures, strict=True)):
        # A path to a file elsewhere is ignored.
        said = json.dumps({**record, "image": "../../etc/passwd"}).encode()
        found += [(f"{place}.json", said), (f"{place}.png", picture)]
    return found


def prepare(path: Path, **options: Any) -> PreparedSamples:
    return prepare_samples(path, rejects=Rejects(None), **options)


@pytest.mark.parametrize("kind", ["parquet", "folder", "glob", "tar", "braces"])
def test_an_archive_gives_the_examples_of_a_json_file(
    tmp_path: Path, records: list, pictures: list, assembled: Callable, kind: str
) -> None:
    folder = tmp_path / "archive"
    halves = (slice(0, 4), slice(4, None))
    if kind == "parquet":
        path = parquet(folder / "all.parquet", shown(records, pictures))
    elif kind in ("folder", "glob"):
        for number, half in enumerate(halves):
            parquet(folder / f"{number}.parquet", shown(records[half], pictures[half]))
        path = folder / "*.parquet" if kind == "glob" else folder
    else:
        for number, half in enumerate(halves):
            tar(folder / f"0{number}.tar", members(records[half], pictures[half]))
        path = folder if kind == "tar" else folder / "{00..01}.tar"
    _, processor = assembled("qwen2")

    def examples(data: Path) -> Any:
        samples = prepare(data, require_level=True)
        return samples, ConversationDataset(samples, processor, data.parent)

    of_json, expected = examples(json_file(tmp_path / "json", records, pictures))
    samples, found = examples(path)
    assert len(found) == len(expected) == ROWS
    assert [sample.turns for sample in samples] == [sample.turns for sample in of_json]
    for place in range(ROWS):
        (one,), (other,) = found[place], expected[place]
        assert (one.input_ids, one.labels, one.level, one.id) == (
            other.input_ids,
            other.labels,
            other.level,
            other.id,
        )
        assert torch.equal(one.pixel_values, other.pixel_values)
    # Samples keep their images, whatever their position in the training order.
    chosen = Chosen(Mixture([of_json, samples]), np.array([3, ROWS + 5]))
    assert chosen.picture(0, 0) is None and chosen.picture(1, 0).read() == pictures[5]


def test_questions_about_one_picture_share_it_wherever_they_are(tmp_path: Path, pictures: list) -> None:
    rows = [
        {"image": pictures[place % 3], "question": f"what {place} ?", "answer": "red", "id": place}
        for place in range(6)
    ]
    samples = prepare(parquet(tmp_path / "a.parquet", rows))
    assert rows_of(samples, 4) == [(0, 3), (1, 4), (2, 5)]
    out = held_out(samples, 0.5)
    assert out[:3].tolist() == out[3:].tolist()
    # In tar files, an image is identified by its name and its tar file.
    for name in ("a", "b"):
        tar(tmp_path / "tars" / f"{name}.tar", [("0.png", pictures[0]), ("0.txt", b"a circle")])
    assert len(rows_of(prepare(tmp_path / "tars"), 4)) == 2


def test_a_level_counts_from_one_and_must_not_contradict(tmp_path: Path, pictures: list) -> None:
    def level(**fields: Any) -> Any:
        path = parquet(tmp_path / "one.parquet", [{"image": pictures[0], "caption": "a", **fields}])
        sample = prepare(path)[0]
        return sample.level, sample.score

    assert level(level=3) == level(level=3.0) == level(similarity=2) == level(level=3, similarity=2) == (3, None)
    assert level(level=3, similarity=0.25) == level(level=3, score=0.25) == (3, 0.25)
    for wrong in ({"level": 0}, {"level": 1.5}, {"level": True}, {"level": 3, "similarity": 3}):
        with pytest.raises(TooManyRejects, match="level 1"):
            level(**wrong)


def test_captions_without_levels_are_rejected_where_they_are_needed(tmp_path: Path, pictures: list) -> None:
    rows = [{"image": picture, "caption": "a"} for picture in pictures]
    with pytest.raises(TooManyRejects, match="no_level 9"):
        prepare(parquet(tmp_path / "a.parquet", rows), require_level=True)


def test_a_path_in_a_parquet_file_stays_below_the_image_root(tmp_path: Path, pictures: list) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for folder in (tmp_path, root):
        (folder / "a.png").write_bytes(pictures[0])
    rows = [{"image": name, "caption": "a"} for name in ("a.png", "../a.png", "gone.png")]
    rejects = Rejects(tmp_path / "rejects", max_share=1)
    samples = prepare_samples(parquet(tmp_path / "a.parquet", rows), image_root=root, rejects=rejects)
    assert [sample.images for sample in samples] == [("a.png",)] and samples.picture(0, 0) is None
    assert rejects.by_reason == {"outside_root": 1, "missing": 1}
    # The images are separate files, so there are no blocks to read together.
    assert samples.columns.blocks.tolist() == [-1]


def test_what_an_archive_lacks_is_rejected_with_its_reason(
    tmp_path: Path, pictures: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [("0.png", pictures[0]), ("0.txt", b"a")]
    path = tar(
        tmp_path / "a.tar",
        [
            *(*good, ("1.png", b"no picture"), ("1.txt", b"a"), ("2.txt", b"a"), ("3.png", pictures[3])),
            *(("3.json", b"{"), ("4.png", pictures[4]), ("4.txt", b"the last whole one"), ("5.png", pictures[5])),
        ],
    )
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(pictures[5]) + 10])
    table = tmp_path / "b.parquet"
    cells = [pictures[0], b"no picture", b"", None]
    parquet(table, [{"image": cell, "caption": "a"} for cell in cells])
    expected = (
        (path, ["a", "the last whole one"], {"not_an_image": 1, "no_picture": 1, "broken_json": 1, "broken_tar": 1}),
        (table, ["a"], {"not_an_image": 1, "empty": 1, "no_picture": 1}),
    )
    for again in (False, True):
        if again:
            monkeypatch.setattr(prepared, "_build", lambda *_: pytest.fail("made anew"))
        for data, captions, reasons in expected:
            rejects = Rejects(None, max_share=1)
            samples = prepare_samples(data, rejects=rejects)
            assert [sample.caption for sample in samples] == captions and rejects.by_reason == reasons


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_picture_that_cannot_be_decoded_is_a_reject_of_training(
    tmp_path: Path, pictures: list, assembled: Callable, kind: str
) -> None:
    half = pictures[0][: len(pictures[0]) // 2]
    said = {"question": "is it red ?", "answer": "yes"}
    rows = [said | {"id": name} for name in ("bad", "good")]
    if kind == "tar":
        path = tar(tmp_path / "a.tar", members(rows, [half, pictures[1]]))
    else:
        path = parquet(tmp_path / "a.parquet", shown(rows, [half, pictures[1]]))
    dataset = ConversationDataset(prepare(path), assembled("qwen2")[1], tmp_path)
    assert dataset[0][0].id == dataset[1][0].id == "good"
    (reject,) = dataset[0][0].rejected
    assert (reject.id, reject.reason) == ("bad", "truncated") and path.name in reject.detail


NAMED_IN_TURNS = {
    "field": [{"role": "user", "content": "Red?", "images": ["0.png"]}, {"role": "assistant", "content": "yes"}],
    "beside a tag": [
        {"role": "user", "content": "<image>\nRed?", "image": "0.png"},
        {"role": "assistant", "content": "yes"},
    ],
    "part": [
        {"role": "user", "content": [{"type": "image", "path": "0.png"}, {"type": "text", "text": "Red?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ],
}


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("messages", NAMED_IN_TURNS.values(), ids=NAMED_IN_TURNS)
def test_a_stored_image_may_have_a_name_in_a_turn(
    tmp_path: Path, pictures: list, messages: list[dict[str, Any]], kind: str
) -> None:
    record = {"id": "0", "messages": messages}
    if kind == "tar":
        path = tar(tmp_path / "a.tar", [("0.json", json.dumps(record).encode()), ("0.png", pictures[0])])
    else:
        path = parquet(tmp_path / "a.parquet", [record | {"image": pictures[0]}])
    samples = prepare(path)
    assert samples.picture(0, 0).read() == pictures[0]
    assert "".join(turn.text for turn in samples[0].turns) == "Red?yes" and len(samples[0].images) == 1


def test_several_names_for_one_stored_image_are_a_reject(tmp_path: Path, pictures: list) -> None:
    rejects = Rejects(None, max_share=1)
    for names in (["0.png", "1.png"], ["0.png", "0.png"]):
        said = [{"role": "user", "content": "Red?", "images": names}, {"role": "assistant", "content": "yes"}]
        path = tar(
            tmp_path / f"{names[1]}.tar", [("0.json", json.dumps({"messages": said}).encode()), ("0.png", pictures[0])]
        )
        with pytest.raises(SourceError, match="no usable record"):
            prepare_samples(path, rejects=rejects)
    assert rejects.by_reason == {"image_count": 2}


def test_each_row_of_a_damaged_row_group_is_a_reject(tmp_path: Path, pictures: list) -> None:
    rows = [{"image": picture, "caption": "a"} for picture in pictures]
    path = parquet(tmp_path / "a.parquet", rows, group=3)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    rejects = Rejects(None, max_share=1)
    samples = prepare_samples(path, rejects=rejects)
    assert rejects.by_reason == {"broken_parquet": 3}
    assert [samples.picture(place, 0).read() for place in range(6)] == pictures[:3] + pictures[6:]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": b"", "alt": "a"}], "found image, alt"),
        ([{"picture": b"", "caption": "a"}], "no column for the image: .* found picture, caption"),
    ],
)
def test_a_table_without_usable_columns_names_those_it_has(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        prepare(parquet(tmp_path / "a.parquet", rows))


def test_what_is_no_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "*.parquet", "{0..3}.tar", "empty"):
        with pytest.raises(SourceError, match=name.split(".")[0].strip("*{") or "parquet"):
            prepare(tmp_path / name)
    tar(tmp_path / "mixed" / "a.tar", [])
    parquet(tmp_path / "mixed" / "a.parquet", [{"caption": "a"}])
    with pytest.raises(SourceError, match=r"\.parquet and \.tar files"):
        prepare(tmp_path / "mixed" / "a.*")


def test_an_archive_that_changed_is_read_anew(tmp_path: Path, pictures: list) -> None:
    def caption(data: Path) -> str:
        return prepare(data)[0].caption

    path = tar(tmp_path / "tars" / "a.tar", [("0.png", pictures[0]), ("0.txt", b"a cat")])
    assert caption(path.parent) == "a cat"
    content, before = path.read_bytes(), path.stat()
    path.write_bytes(content.replace(b"a cat", b"a dog"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed = content_of(path.parent)
    assert caption(path.parent) == "a dog"
    # A copy elsewhere counts as the same source for a run, and its images are read from the copy.
    copy = tar(tmp_path / "copy" / "a.tar", [])
    copy.write_bytes(path.read_bytes())
    assert content_of(copy.parent) == changed
    samples = prepare(copy.parent)
    path.unlink()
    assert samples.picture(0, 0).read() == pictures[0]
    tar(copy.parent / "b.tar", [("0.png", pictures[1]), ("0.txt", b"a bird")])
    assert len(prepare(copy.parent)) == 2 and content_of(copy.parent) != changed


def test_a_copy_is_the_same_to_training_and_scoring(tmp_path: Path, pictures: list) -> None:
    """Modification times do not matter."""
    for kind in (".tar", ".parquet"):
        path = tmp_path / "here" / f"a{kind}"
        if kind == ".tar":
            tar(path, [("0.png", pictures[0]), ("0.txt", b"a cat")])
        else:
            parquet(path, [{"image": pictures[0], "caption": "a cat"}])
        before = content_of(path), open_pairs(path).fingerprint()
        (tmp_path / "there").mkdir(exist_ok=True)
        copy = tmp_path / "there" / path.name
        copy.write_bytes(path.read_bytes())
        os.utime(copy, (1, 1))
        assert (content_of(copy), open_pairs(copy).fingerprint()) == before and len(set(before)) == 1
        # Another version with the same size and time, as `rsync -t` and `tar x` may produce.
        copy.write_bytes(path.read_bytes().replace(b"a cat", b"a dog"))
        os.utime(copy, (1, 1))
        assert content_of(copy) == open_pairs(copy).fingerprint() != before[0]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_check_lists_what_training_would_reject(tmp_path: Path, records: list, pictures: list, kind: str) -> None:
    """A record without text, a file that is not an image and, if decoded in full, a truncated image."""
    records[1] = {"id": "silent"}
    pictures[3], pictures[5] = b"no picture", pictures[5][:-200]
    records[7]["id"] = "r6"
    archive = tmp_path / "archive"
    if kind == "parquet":
        path = parquet(archive / "all.parquet", shown(records, pictures))
    else:
        path = tar(archive / "all.tar", members(records, pictures))
    (found,) = check_files([path], levels=4)
    assert (found.records, found.samples, found.images, found.broken_images) == (9, 3, 8, 1)
    told = {(problem.record, problem.reason) for problem in found.problems}
    outside = {(place, "level_outside") for place in range(4, 8)}
    (silent,) = {reason for record, reason in told if record == 1}
    assert told == {(1, silent), (3, "not_an_image")} | outside
    assert [(repeat.record, repeat.earlier) for repeat in found.repeated_ids.listed] == [(7, 6)]
    (full,) = check_files([path], full=True)
    assert {(problem.record, problem.reason) for problem in full.problems} == {
        (1, silent),
        (3, "not_an_image"),
        (5, "truncated"),
    }
    with Rejects(None, max_share=1.0) as rejects:
        assert len(prepare_samples(path, rejects=rejects)) == 7
    assert check_files([tmp_path / "none.tar"])[0].error is not None


def test_members_of_one_name_are_different_images(tmp_path: Path, pictures: list[bytes]) -> None:
    """As in `cat a.tar b.tar`, where both begin with `000000.png`."""
    whole = b""
    for text, picture in (("one", pictures[0]), ("two", pictures[1])):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, content in (("000000.png", picture), ("000000.txt", text.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        whole += stream.getvalue()
    (tmp_path / "both.tar").write_bytes(whole)
    samples = prepare_samples(tmp_path / "both.tar", rejects=Rejects(None))
    assert [one.caption for one in samples] == ["one", "two"] and len({one.images for one in samples}) == 1
    assert rows_of(samples, 8) == [(0,), (1,)]
    found = [samples.picture(place, 0) for place in range(2)]
    assert [None if one is None else one.read() for one in found] == pictures[:2]
