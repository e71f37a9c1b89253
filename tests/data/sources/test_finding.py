"""Common kinds of sources of pairs: which are distinguished, which are rejected, which records are skipped and why."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from aligngpt.data.images.opening import ImageError
from aligngpt.data.records.pairs import Pair, Unusable, open_pairs
from aligngpt.data.samples.reading import write_records
from aligngpt.data.sources import byte_ranges as pair_ranges
from aligngpt.data.sources import hub as pair_datasets
from aligngpt.data.sources import json_array, json_window
from aligngpt.data.sources.base import SourceError

GOOD = {"image": "a.png", "caption": "good"}


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "PNG")
    return stream.getvalue()


def tar_of(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def everything(source: str | Path, **options: Any) -> list[Pair | Unusable]:
    pairs = open_pairs(source, **options)
    return [found for shard in pairs.shards() for found in pairs.read(shard)]


def captions(found: Sequence[Pair | Unusable]) -> list[str]:
    """The caption of each pair, and the reject reason of each other record."""
    return [one.caption if isinstance(one, Pair) else one.reason for one in found]


def source_error(source: str | Path, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        everything(source, **options)
    assert str(source) in str(caught.value)
    return str(caught.value)


class Table:
    """Ways to write rows of `file_name`, `caption` and other fields to disk."""

    @staticmethod
    def lines(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
        return written(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    @staticmethod
    def array(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
        return written(folder / "rows.json", json.dumps(rows))

    @staticmethod
    def llava(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
        return Table.lines(folder, [{"image" if k == "file_name" else k: v for k, v in row.items()} for row in rows])

    @staticmethod
    def csv(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
        quoted = [[str(row[name]).replace('"', '""') for name in rows[0]] for row in rows]
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row) for row in quoted)]
        return written(folder / "rows.csv", "\n".join(lines))

    @staticmethod
    def parquet(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / "rows.parquet")
        return folder / "rows.parquet"

    @staticmethod
    def dataset(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
        datasets.Dataset.from_list(list(rows)).save_to_disk(str(folder / "saved"))
        return folder / "saved"


TABLES = [Table.lines, Table.array, Table.llava, Table.csv, Table.parquet, Table.dataset]
each_table = pytest.mark.parametrize("write", TABLES, ids=lambda write: write.__name__)
Write = Callable[[Path, Sequence[dict[str, Any]]], Path]


def test_a_missing_path_says_what_is_accepted(tmp_path: Path) -> None:
    for name in ["nowhere.json", "nowhere", "{0,3}.tar"]:
        assert "JSON lines" in source_error(tmp_path / name)
    assert "00000.tar, which does not exist" in source_error(tmp_path / "{00000..00003}.tar")
    assert "does not exist" in source_error("nowhere/data.json")


@pytest.mark.parametrize("name", ["{00041..00000}.tar", "{0..1}-{41..0}.parquet"])
def test_a_range_that_ends_before_it_begins_is_refused(name: str, tmp_path: Path) -> None:
    assert "ends before it begins; write {0" in source_error(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "splits", "named"),
    [
        (["data/test-00000-of-00001", "data/train-00000-of-00001"], "test and train", "data/test*"),
        (["train/0", "val/0"], "train and val", "train"),
        (["plain/train_a", "plain/validation.b", "plain/c"], "train and validation", "plain/train*"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_files_of_several_splits_are_not_read_as_one(
    kind: str, files: list[str], splits: str, named: str, tmp_path: Path
) -> None:
    for file in files:
        path = tmp_path / f"{file}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "tar":
            tar_of(path, [("a.png", png()), ("a.txt", b"one")])
        else:
            pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"], "caption": ["one"]}), path)
    one = tmp_path / (f"{named}.{kind}" if "*" in named else named)
    assert source_error(tmp_path) == f"{tmp_path} has the splits {splits}; name the files of one, such as {one}"
    assert captions(everything(one)) == ["one"]


def test_files_of_one_split_and_of_none_are_read_together(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "testimony-0", "b"):
        pyarrow.parquet.write_table(
            pyarrow.table({"image": ["a.png"], "caption": [name]}), tmp_path / f"{name}.parquet"
        )
    assert captions(everything(tmp_path)) == ["b", "testimony-0", "train-0", "train-1"]


def test_files_that_macos_adds_on_a_stick_are_no_data(tmp_path: Path) -> None:
    """On file systems without attributes, it keeps those of `NAME` in `._NAME`."""
    added = b"\x00\x05\x16\x07" * 1024
    pictures, tables, tars = (tmp_path / name for name in ("pictures", "tables", "tars"))
    for folder in (pictures, tables, tars):
        folder.mkdir()
    (pictures / "0.png").write_bytes(png())
    (pictures / "0.txt").write_text("one")
    Table.parquet(tables, [{"image": "0.png", "caption": "one"}])
    tar_of(tars / "0.tar", [("0.png", png()), ("0.txt", b"one")])
    for path in [*pictures.iterdir(), *tables.iterdir(), *tars.iterdir()]:
        path.with_name(f"._{path.name}").write_bytes(added)
    for source in (pictures, tables, tars, tables / "*.parquet", tars / "*.tar"):
        assert captions(everything(source)) == ["one"]
    (tables / ".own.parquet").write_bytes((tables / "rows.parquet").read_bytes())
    assert captions(everything(tables / ".o*.parquet")) == ["one"]


def test_scores_below_the_folder_of_their_pairs_are_no_pairs(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"], "caption": ["one"]}), tmp_path / "0.parquet")
    (tmp_path / "scores").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.table({"id": ["0"], "score": [0.3]}), tmp_path / "scores" / "part-00000.parquet"
    )
    manifest = written(tmp_path / "scores" / "manifest.json", '{"model_fingerprint": "0"}')
    assert captions(everything(tmp_path)) == ["one"]
    manifest.write_text("{}")
    assert "no column for the caption" in source_error(tmp_path)


@pytest.mark.parametrize("beside", ["texts", "parquet"])
def test_a_folder_below_that_cannot_be_read_is_an_error(
    beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("", "below", "lost+found"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if beside == "texts":
            (folder / "a.png").write_bytes(png())
            written(folder / "a.txt", "one")
        else:
            pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"], "caption": ["one"]}), folder / "0.parquet")
    scan, denied = os.scandir, {"below", "lost+found"}

    def scandir(path: str | Path = ".") -> Any:
        if Path(path).name in denied:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert f"{tmp_path / 'below'} cannot be read: Permission denied" in source_error(tmp_path)
    denied.remove("below")
    assert captions(everything(tmp_path)) == ["one", "one"]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    for name in ["a.json", "a.csv", "a.parquet", "a.tar", "a"]:
        assert "is empty" in source_error(written(tmp_path / name, b""))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", "[]"), ("a.json", " [ \n ] "), ("a.csv", "image,caption\n"), ("a.csv", "image,caption\n\n\n")],
)
def test_a_source_without_records_is_refused(name: str, content: str, tmp_path: Path) -> None:
    assert "no record" in source_error(written(tmp_path / name, content))


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    empty = pyarrow.table({"image": pyarrow.array([], pyarrow.string()), "text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(empty, tmp_path / "a.parquet")
    assert "no record" in source_error(tmp_path)


def test_what_is_no_source_is_named_with_what_was_found(tmp_path: Path) -> None:
    assert "begins with b'<xml>'" in source_error(written(tmp_path / "a.json", "<xml>"))
    (tmp_path / "folder").mkdir()
    assert "found nothing" in source_error(tmp_path / "folder")
    written(tmp_path / "folder" / "a.png", png())
    assert "found a.png" in source_error(tmp_path / "folder")
    assert "not a readable Parquet file" in source_error(written(tmp_path / "a.parquet", "PAR1 or not"))


def test_what_a_file_is_does_not_depend_on_its_name(tmp_path: Path) -> None:
    for number, write in enumerate([Table.lines, Table.array, Table.parquet]):
        path = write(tmp_path, [{"file_name": "a.png", "caption": "one"}]).rename(tmp_path / f"data{number}")
        assert captions(everything(path)) == ["one"]
    path = tar_of(tmp_path / "data", [("a.png", png()), ("a.txt", b"one")])
    assert captions(everything(path)) == ["one"]


@pytest.mark.parametrize(
    ("name", "head", "row", "end"),
    [
        ("a.jsonl", b"", b'{"image": "a.png", "caption": "%s"}\n', b""),
        ("a.json", b"[\n", b'{"image": "a.png",\n"caption": "%s"},\n', b"null]"),
        ("a.csv", b"image,caption\n", b"a.png,%s\n", b""),
    ],
)
def test_a_byte_that_is_not_utf8_costs_its_record_only(
    name: str, head: bytes, row: bytes, end: bytes, tmp_path: Path
) -> None:
    texts = [b"one", b"caf\xe9", "grüße".encode(), b"three"]
    path = written(tmp_path / name, head + b"".join(row % text for text in texts) + end)
    for shard_size in (1, 10):
        found = everything(path, shard_size=shard_size)[:4]
        assert captions(found) == ["one", "broken_text", "grüße", "three"]
        assert isinstance(found[1], Unusable) and "not UTF-8" in found[1].detail


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"image": "a.png", "caption": "é"}\n' * 3), ("a.csv", "image,caption\n" + "a.png,é\n" * 3)],
)
def test_a_file_in_another_encoding_is_refused_with_the_line(name: str, content: str, tmp_path: Path) -> None:
    line = 2 if name == "a.csv" else 1
    assert f"not UTF-8 in line {line}" in source_error(written(tmp_path / name, content.encode("latin-1")))
    assert "UTF-8" in source_error(written(tmp_path / name, content.encode("utf-16")))


def test_an_over_long_line_costs_its_record_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_ranges, "MAX_RECORD", 1000)
    good = '{"image": "a.png", "caption": "good"}\n'
    path = written(tmp_path / "a.jsonl", good + good.replace("good", "long" * 1000) + good)
    assert captions(everything(path, shard_size=1)) == ["good", "broken_text", "good"]
    path = written(tmp_path / "a.csv", f"image,caption\na.png,good\na.png,{'long' * 1000}\na.png,good\n")
    assert captions(everything(path, shard_size=1)) == ["good", "broken_text", "good"]


def test_a_packed_file_is_named_as_one(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl.x", b"PK\x03\x04" + b"\xff" * 50)
    assert "is compressed with zip; decompress it" in source_error(path)


def test_what_was_never_fetched_is_named(tmp_path: Path) -> None:
    assert "web page" in source_error(written(tmp_path / "a.json", "<!DOCTYPE html>\n<html>404</html>"))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name in ("a.json", "a.parquet", "a.csv"):
        assert "git lfs pull" in source_error(written(tmp_path / name, pointer))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("keys", ["info, images, annotations", "a, b, c"])
def test_one_object_is_named_with_its_keys(keys: str, indent: int | None, tmp_path: Path) -> None:
    found = {key: [GOOD] if "info" in keys else GOOD for key in keys.split(", ")}
    message = source_error(written(tmp_path / "a.json", json.dumps(found, indent=indent)))
    assert f"one JSON object with the keys {keys}; expected an array, or one record per line" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1},\n{"b": 2}', "line 2: no ']' at the end"),
        ('[{"a": 1},\n{"b": 2}\n{"c": 3}]', "line 3: expected ']', found '{'"),
        ('[{"a": 1},\n{"b": "2\n"}]', "Invalid control character"),
        ('[{"a": 1},\n{"b": tru}]', "line 2: Expecting value"),
        ('[{"a": 1},\n{"b": "cut', "line 2: Unterminated string"),
        ('[{"a": 1},\n]', "line 2: Expecting value"),
        ("[1]\n2", "line 2: more text"),
        ("[" * 100_000, "recursion"),
        ("[" + "1" * 5000 + "]", "integer"),
    ],
)
def test_a_broken_array_is_refused_with_the_line(content: str, message: str, tmp_path: Path) -> None:
    assert message in source_error(written(tmp_path / "a.json", content))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_an_array_is_read_the_same_whatever_the_chunks(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_window, "CHUNK", chunk)
    values: list[Any] = [
        12345,
        -1.5e-10,
        True,
        None,
        'ü 猫 😀 \\ " \u0001',
        [[], {}],
        {"a": {"b": [1, 2]}},
        "",
        "\ud83d",
    ]
    for text in [json.dumps(values), json.dumps(values, indent=3), json.dumps(values[:8], ensure_ascii=False)]:
        path = written(tmp_path / "a.json", "\ufeff\n" + text + " \n")
        elements = list(json_array.read_array(path))
        assert [element.value for element in elements] == json.loads(text)
        for first in range(len(elements)):
            found = json_array.read_array_range(path, elements[first].start, elements[-1].stop)
            assert list(found) == elements[first:]


def test_an_endless_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_window, "MAX_RECORD", 1000)
    monkeypatch.setattr(json_window, "CHUNK", 100)
    assert "longer than 1000" in source_error(written(tmp_path / "a.json", '["' + "x" * 5000))


def test_a_broken_line_is_passed_over(tmp_path: Path) -> None:
    lines = [json.dumps(GOOD), "{", "", "[" * 100_000, json.dumps(GOOD)]
    found = everything(written(tmp_path / "a.jsonl", "\n".join(lines)))
    assert captions(found) == ["good", "broken_line", "broken_line", "good"]
    assert isinstance(found[1], Unusable)
    assert "record 1 of" in found[1].detail and "column 2" in found[1].detail


def test_a_llava_record_with_one_image_is_a_pair(tmp_path: Path) -> None:
    conversation = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": " A cat.\n"}]
    records = [
        {"id": 7, "image": "a.png", "conversations": conversation},
        {"id": "none", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        {"id": "two", "image": ["a.png", "b.png"], "caption": "both"},
        "text",
        17,
    ]
    found = everything(written(tmp_path / "a.json", json.dumps(records)))
    assert captions(found) == ["A cat.", "image_count", "image_count", "not_an_object", "not_an_object"]
    assert [one.id for one in found] == ["7", "none", "two", None, None]
    assert [one.record for one in found] == list(range(5))


def test_a_record_of_a_table_that_is_no_object_is_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '[3, {"file_name": "a.png", "text": "one"}, null]')
    assert captions(everything(path)) == ["not_an_object", "one", "not_an_object"]


@pytest.mark.parametrize("write", [Table.lines, Table.array, Table.llava], ids=lambda write: write.__name__)
def test_a_caption_that_is_none_has_a_reason(write: Write, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"file_name": "a.png", "caption": "good"},
        {"file_name": "a.png", "caption": ""},
        {"file_name": "a.png", "caption": " \n"},
        {"file_name": "a.png", "caption": "half \ud83d"},
        {"file_name": "a.png", "caption": None},
        {"file_name": "a.png", "caption": ["one", "two"]},
        {"file_name": "a.png"},
    ]
    wrong = "no_conversation" if write is Table.llava else "no_caption"
    found = captions(everything(write(tmp_path, rows)))
    assert found == ["good", "empty_text", "empty_text", "broken_text", wrong, wrong, wrong]


@each_table
def test_captions_are_kept_as_they_are(write: Write, tmp_path: Path) -> None:
    long = "word " * 9_999 + "word"
    rows = [
        {"file_name": "a.png", "caption": caption}
        for caption in [
            long,
            "bell \a and escape \x1b[31m",
            "  outer \t",
            "null \0 byte",
            "",
            'two\nlines, ‘one’ "comma"',
        ]
    ]
    found = captions(everything(write(tmp_path, rows), shard_size=2))
    assert found == [long, rows[1]["caption"], "outer", "broken_text", "empty_text", rows[5]["caption"]]


@each_table
def test_a_picture_outside_the_root_is_refused(write: Write, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    written(tmp_path / "secret.png", png())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["../../etc/passwd", "../secret.png", "/etc/passwd", str(tmp_path / "secret.png"), "link.png", "a.png"]
    path = write(tmp_path, [{"file_name": name, "caption": "one"} for name in names])
    assert captions(everything(path, image_root=root)) == ["outside_root"] * 5 + ["one"]


def test_the_image_root_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="image root"):
        open_pairs(Table.lines(tmp_path, [GOOD]), image_root=tmp_path / "nowhere")


@each_table
def test_pictures_are_looked_at_when_they_are_opened(write: Write, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    written(root / "empty.png", b"")
    names = ["empty.png", "missing.png", "."]
    found = everything(write(tmp_path, [{"file_name": n, "caption": "one"} for n in names]), image_root=root)
    reasons = []
    for pair in found:
        assert isinstance(pair, Pair)
        with pytest.raises(ImageError) as caught:
            pair.picture.open()
        reasons.append(caught.value.reason)
    assert reasons == ["empty", "missing", "not_an_image"]


@each_table
def test_pairs_with_the_same_id_are_both_kept(write: Write, tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "caption": caption, "id": "same"} for caption in ["one", "two"]]
    found = everything(write(tmp_path, rows), shard_size=1)
    assert captions(found) == ["one", "two"]
    assert [one.id for one in found] == ["same", "same"]


@each_table
def test_without_an_id_the_number_in_the_source_is_one(write: Write, tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "caption": str(number)} for number in range(5)]
    assert [one.id for one in everything(write(tmp_path, rows), shard_size=2)] == list("01234")


@each_table
def test_columns_can_be_named(write: Write, tmp_path: Path) -> None:
    rows = [{"where": "a.png", "said": "one", "caption": "other", "file_name": "other.png", "number": 5}]
    path = write(tmp_path, rows)
    names = {"image_column": "where", "caption_column": "said", "id_column": "number"}
    (pair,) = everything(path, **names)
    assert isinstance(pair, Pair)
    assert (pair.id, pair.caption, pair.picture.name) == ("5", "one", "a.png")
    assert "expected nowhere, found" in source_error(path, caption_column="nowhere")


@pytest.mark.parametrize("write", [Table.csv, Table.parquet, Table.dataset], ids=lambda write: write.__name__)
def test_a_table_without_the_columns_is_refused(write: Write, tmp_path: Path) -> None:
    message = source_error(write(tmp_path, [{"url": "http://x", "alt": "one"}]))
    assert "expected caption or text or TEXT or title, found url, alt" in message


def test_a_csv_row_with_an_unquoted_comma_is_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", 'image,caption\na.png,"a cat, asleep"\na.png,a cat, asleep\na.png\na.png,one\n')
    assert captions(everything(path)) == ["a cat, asleep", "broken_line", "broken_line", "one"]


def test_a_csv_field_without_end_is_passed_over(tmp_path: Path) -> None:
    rows = [f"a.png,{number} {'x' * 100}\n" for number in range(3000)]
    found = everything(written(tmp_path / "a.csv", 'image,caption\na.png,"open\n' + "".join(rows)), shard_size=1000)
    assert captions(found)[0] == "broken_line"
    assert captions(found)[-1] == rows[-1].removeprefix("a.png,").strip()


@pytest.mark.parametrize("stray", ['a.png,"open', '"a.png,open', '"a.png","open'])
@pytest.mark.parametrize(
    "later", ["b.png,closed", 'b.png,"quoted, text"', 'b.png,24" wide', 'b.png,closed"', 'b.png,""']
)
@pytest.mark.parametrize("shard_size", [1, 4, 1000])
def test_a_stray_quote_in_a_csv_file_costs_its_own_line_only(
    stray: str, later: str, shard_size: int, tmp_path: Path
) -> None:
    rows = [f"{number}.png,caption {number}" for number in range(30)]
    lines = ["image,caption", *rows[:5], stray, *rows[5:20], later, *rows[20:]]
    found = captions(everything(written(tmp_path / "a.csv", "\n".join(lines) + "\n"), shard_size=shard_size))
    del found[21]
    assert found == [*(f"caption {n}" for n in range(5)), "broken_line", *(f"caption {n}" for n in range(5, 30))]


@pytest.mark.parametrize(
    ("written_as", "read_as"),
    [
        (r'"He said \"hi\" to me"', 'He said "hi" to me'),
        (r'"\"stop\" on a sign"', '"stop" on a sign'),
        (r'"a screen of 12\""', 'a screen of 12"'),
        (r'"two\three \"four\""', r'two\three "four"'),
        ('"one, two"  ', "one, two"),
    ],
)
def test_quotes_escaped_with_a_backslash_and_blanks_after_a_quote_are_read(
    written_as: str, read_as: str, tmp_path: Path
) -> None:
    content = f'image,caption\na.png,{written_as}\na.png,"plain"\na.png,{written_as}\n'
    assert captions(everything(written(tmp_path / "a.csv", content))) == [read_as, "plain", read_as]


@pytest.mark.parametrize("text", ['"Big" sale', '"a 5" screen"', r'"C:\\" and \"D\"'])
def test_words_after_a_closing_quote_are_no_caption_without_the_quotes(text: str, tmp_path: Path) -> None:
    first, second = everything(written(tmp_path / "a.tsv", f"image\tcaption\na.png\t{text}\na.png\tplain\n"))
    assert isinstance(first, Unusable) and first.reason == "broken_line"
    assert "row 0 of a.tsv, at byte 14: words follow a closing quote" in first.detail
    assert "double each quote inside a text" in first.detail
    assert isinstance(second, Pair)


def test_line_breaks_in_quotes_are_kept_in_whatever_shards(tmp_path: Path) -> None:
    texts = ["two\nlines, one comma", "a\n\nb,c\nd", 'said ""so"", \n""then""', "\n".join("words" for _ in range(300))]
    content = "image,caption\n" + "".join(f'a.png,"{text}"\na.png,plain\n' for text in texts)
    wanted = [one for text in texts for one in (text.replace('""', '"'), "plain")]
    path = written(tmp_path / "a.csv", content)
    for shard_size in (1, 3, 100):
        assert captions(everything(path, shard_size=shard_size)) == wanted


def test_two_stray_quotes_in_neighbouring_rows_are_no_text_of_two_lines(tmp_path: Path) -> None:
    rows = ["id,caption,image", 'a,"open,a.png', 'b,5 feet 5",b.png', 'c,"first', ' second, “third”",c.png']
    found = everything(written(tmp_path / "a.csv", "\n".join(rows) + "\n"))
    assert captions(found) == ["broken_line", '5 feet 5"', "first\n second, “third”"]


def test_a_broken_csv_row_says_where_it_is(tmp_path: Path) -> None:
    found = everything(written(tmp_path / "a.csv", 'image,caption\na.png,one\na.png,"open\na.png,two\n'))
    assert captions(found) == ["one", "broken_line", "two"]
    assert isinstance(found[1], Unusable)
    assert "row 1 of a.csv, at byte 24: a quote that opens here is not closed" in found[1].detail


def test_a_picture_in_a_parquet_file_may_be_empty_or_missing(tmp_path: Path) -> None:
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    images = [{"bytes": png(), "path": "/a.png"}, {"bytes": b"", "path": None}, {"bytes": None, "path": None}, None]
    images.append({"bytes": None, "path": "b.png"})
    table = pyarrow.table({"image": pyarrow.array(images, kind), "caption": ["one"] * 5})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = everything(tmp_path)
    assert captions(found) == ["one", "one", "no_picture", "no_picture", "one"]
    assert isinstance(found[0], Pair) and isinstance(found[1], Pair) and isinstance(found[4], Pair)
    assert found[0].picture.open().size == (2, 2)
    assert found[4].picture.path == tmp_path / "b.png"
    with pytest.raises(ImageError, match=r"row 1 of a\.parquet") as caught:
        found[1].picture.open()
    assert caught.value.reason == "empty"


def test_a_picture_column_of_another_type_is_passed_over(tmp_path: Path) -> None:
    path = Table.parquet(tmp_path, [{"image": 5, "caption": "one"}])
    assert captions(everything(path)) == ["image_field"]


def test_text_in_a_parquet_file_that_is_not_utf8_is_passed_over(tmp_path: Path) -> None:
    raw = pyarrow.array([b"one", b"caf\xe9", b"three"], pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"] * 3, "text": text}), tmp_path / "a.parquet")
    assert captions(everything(tmp_path)) == ["one", "broken_text", "three"]


def test_a_damaged_row_group_ends_its_shard_only(tmp_path: Path) -> None:
    table = pyarrow.table({"image": ["a.png"] * 4, "caption": ["first" * 50, "second" * 50, "third" * 50, "last" * 50]})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=2, compression="zstd", use_dictionary=False)
    column = pyarrow.parquet.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    start = column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    assert captions(everything(path)) == ["broken_parquet", "broken_parquet", "third" * 50, "last" * 50]


SAMPLES = [(f"{n}.{e}", c) for n in range(3) for e, c in [("png", png()), ("txt", f"caption {n}".encode())]]


def test_a_tar_file_is_read_by_offset(tmp_path: Path) -> None:
    found = everything(tar_of(tmp_path / "a.tar", [*SAMPLES, ("sub/3.x.png", b""), ("./sub/4.JPG", png())]))
    assert captions(found) == ["caption 0", "caption 1", "caption 2", "no_caption", "no_caption"]
    for pair in found[:3]:
        assert isinstance(pair, Pair)
        assert pair.picture.content is None
        assert pair.picture.read() == png()
    assert [one.id for one in found[3:]] == ["sub/3.x", "sub/4"]


NAMES = [
    (["22.01.png", "22.01.txt", "22.02.png", "22.02.txt"], ["22.01", "22.02"]),
    (["shot 1.5 mm.png", "shot 1.5 mm.txt"], ["shot 1.5 mm"]),
    (["s0.input.png", "s0.output.txt", "s1.input.png", "s1.output.txt"], ["s0", "s1"]),
    (["s0.img", "s0.cap", "s1.img", "s1.caption"], ["s0", "s1"]),
    (["0.png", "0.output.txt"], ["0"]),
    (["0.png", "0.txt", "0.mask.png", "0.cls"], ["0"]),
]


@pytest.mark.parametrize(("names", "ids"), NAMES, ids=lambda value: value[0])
def test_names_with_more_dots_and_other_endings_are_paired(names: list[str], ids: list[str], tmp_path: Path) -> None:
    is_text = (".txt", ".cap", ".caption")
    members = [(name, b"one" if name.endswith(is_text) else png()) for name in names]
    found = everything(tar_of(tmp_path / "a.tar", members))
    assert captions(found) == ["one"] * len(ids)
    assert [one.id for one in found] == ids


def test_members_that_pair_with_nothing_are_accounted_for(tmp_path: Path) -> None:
    members = [*SAMPLES[:2], ("5.cls", b"1"), ("6.npy", b"1"), ("7.1.png", png()), ("7.2.png", png()), ("LICENSE", b"")]
    found = everything(tar_of(tmp_path / "a.tar", members))
    assert captions(found) == ["caption 0", "unpaired", "unpaired", "no_caption", "no_caption", "unpaired"]
    assert isinstance(found[1], Unusable) and "'5.cls'" in found[1].detail


@pytest.mark.parametrize("padding", [0, 512, 1 << 21])
def test_tar_files_behind_each_other_are_all_read(padding: int, tmp_path: Path) -> None:
    first = tar_of(tmp_path / "first", SAMPLES[:2]).read_bytes()
    second = tar_of(tmp_path / "second", SAMPLES[2:]).read_bytes()
    path = written(tmp_path / "both.tar", first + bytes(padding) + second)
    found = everything(path)
    assert captions(found) == ["caption 0", "caption 1", "caption 2"]
    assert all(isinstance(pair, Pair) and pair.picture.read() == png() for pair in found)
    broken = everything(written(path, first + b"no tar" * 100))
    assert captions(broken) == ["caption 0", "broken_tar"]
    assert isinstance(broken[1], Unusable) and f"byte {len(first)}" in broken[1].detail


def test_tar_files_are_found_at_any_depth(tmp_path: Path) -> None:
    for part in ("a/0", "b"):
        (tmp_path / part).mkdir(parents=True)
        tar_of(tmp_path / part / "0.tar", SAMPLES[:2])
        Table.parquet(tmp_path / part, [{"url": "http://x"}])
    assert captions(everything(tmp_path)) == ["caption 0"] * 2
    (tmp_path / "c").mkdir()
    Table.parquet(tmp_path / "c", [{"url": "http://x"}])
    assert "no column" in source_error(tmp_path)


def test_what_a_tar_sample_lacks_has_a_reason(tmp_path: Path) -> None:
    members = [
        ("README.md", b"not a sample"),
        ("0.txt", b"no picture"),
        ("1.png", png()),
        ("2.png", png()),
        ("2.txt", b"caf\xe9"),
        ("3.png", png()),
        ("3.json", b"{"),
        ("4.png", png()),
        ("4.json", b"[]"),
        ("5.png", png()),
        ("5.jpg", png()),
        ("5.txt", b"two pictures"),
        ("6.png", png()),
        ("6.json", b'{"text": "of the json", "caption": ""}'),
        ("7.png", png()),
        ("7.json", b'{"TEXT": "good"}'),
        ("8.png", b""),
        ("8.txt", b"a\0b"),
        (".hidden.png", png()),
        ("../../etc/passwd.png", png()),
        ("../../etc/passwd.txt", b"only a name"),
    ]
    found = everything(tar_of(tmp_path / "a.tar", members))
    assert captions(found) == [
        "unpaired",
        "no_picture",
        "no_caption",
        "broken_text",
        "broken_json",
        "not_an_object",
        "image_count",
        "empty_text",
        "good",
        "broken_text",
        "only a name",
    ]
    last = found[-1]
    assert isinstance(last, Pair)
    assert last.picture.path == tmp_path / "a.tar"


def test_links_in_a_tar_file_are_no_pictures(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        text = tarfile.TarInfo("0.txt")
        text.size = 3
        tar.addfile(text, io.BytesIO(b"one"))
    assert captions(everything(tmp_path)) == ["link"]


def test_fields_of_the_json_in_a_tar_file_can_be_named(tmp_path: Path) -> None:
    members = [("0.png", png()), ("0.txt", b"short"), ("0.json", b'{"long": "long text", "uid": 12}')]
    (pair,) = everything(tar_of(tmp_path / "a.tar", members), caption_column="long", id_column="uid")
    assert isinstance(pair, Pair)
    assert (pair.id, pair.caption) == ("12", "long text")


def test_a_broken_header_in_a_tar_file_ends_it(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", SAMPLES)
    with tarfile.open(path) as tar:
        header = tar.getmember("1.txt").offset
    content = bytearray(path.read_bytes())
    content[header : header + 8] = b"damaged!"
    path.write_bytes(content)
    found = everything(path)
    assert captions(found) == ["caption 0", "broken_tar"]
    assert isinstance(found[1], Unusable)
    assert f"byte {header}" in found[1].detail
    assert captions(everything(written(path, b"no tar at all" * 100))) == ["broken_tar"]


def test_what_was_readable_of_a_tar_file_cut_anywhere_is_used(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", SAMPLES)
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [tar.getmember(f"{n}.txt").offset_data + len(f"caption {n}") for n in range(3)]
        whole = tar.offset
    for size in range(1, whole, 101):
        found = captions(everything(written(path, content[:size])))
        assert found == [f"caption {n}" for n in range(3) if ends[n] <= size] + ["broken_tar"], size


def test_a_shard_that_has_gone_is_an_error_that_names_it(tmp_path: Path) -> None:
    for write in [Table.lines, Table.array, Table.csv, Table.parquet]:
        path = write(tmp_path, [{"file_name": "a.png", "caption": "one"}])
        source = open_pairs(path)
        (shard,) = source.shards()
        path.unlink()
        with pytest.raises(SourceError, match=path.name):
            list(source.read(shard))


def test_a_name_on_the_hub_is_loaded_as_a_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.png", png())
    rows = datasets.Dataset.from_list([{"image": "a.png", "text": "one"}])
    asked = []

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        if name == "owner/none":
            raise FileNotFoundError("no such data set")
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert captions(everything("owner/name")) == ["one"]
    assert asked == [("owner/name", "train")]
    assert "neither a path nor a readable data set on the hub" in source_error("owner/none")
    (tmp_path / "owner").mkdir()
    assert "does not exist" in source_error("owner/name")


def test_pictures_that_the_hub_library_fetched_are_inside_its_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    written(cache / "a.png", png())
    written(tmp_path / "secret.png", png())
    (cache / "link.png").symlink_to(tmp_path / "secret.png")
    paths = [cache / "a.png", tmp_path / "secret.png", cache / ".." / "secret.png", cache / "link.png"]
    images = [{"bytes": None, "path": str(path)} for path in paths]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": images, "text": ["one"] * 4}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)
    monkeypatch.setattr(pair_datasets, "HF_HUB_CACHE", str(cache))
    found = everything("owner/name")
    assert captions(found) == ["one", "outside_root", "outside_root", "outside_root"]
    assert isinstance(found[0], Pair)
    assert found[0].picture.open().size == (2, 2)


def test_a_saved_data_set_without_the_split_is_refused(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"image": "a.png", "text": "one"}])
    datasets.DatasetDict({"validation": rows}).save_to_disk(str(tmp_path / "one"))
    assert captions(everything(tmp_path / "one")) == ["one"]
    datasets.DatasetDict({"a": rows, "b": rows}).save_to_disk(str(tmp_path / "two"))
    assert "found a, b" in source_error(tmp_path / "two")
    (tmp_path / "one" / "dataset_dict.json").write_text("{")
    assert "not a readable data set" in source_error(tmp_path / "one")


def test_a_table_in_a_folder_names_the_pictures_beside_it(tmp_path: Path) -> None:
    written(tmp_path / "a.png", png())
    write_records(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "text": "one"}])
    (pair,) = everything(tmp_path)
    assert isinstance(pair, Pair)
    assert pair.picture.open().size == (2, 2)
