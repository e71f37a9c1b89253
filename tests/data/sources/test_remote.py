"""Addresses that fsspec opens are sources: found, listed, read in ranges, and told apart when they change."""

import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from object_store import forget
from PIL import Image

from aligngpt.data.images.opening import ImageError, check_image, open_image, resolve_image
from aligngpt.data.images.reference import Picture
from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.fields import ColumnNames
from aligngpt.data.sources.finding import content_of, find_records, is_pattern, name_of_data, root_of_data
from aligngpt.data.sources.remote import RemotePath, located
from aligngpt.data.sources.remote_store import RemoteChangedError, RemoteError


def png(colour: str, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's store in memory, with `memory://data/…` to write to."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/data", recursive=True)


def values(source: str | Path) -> list[object]:
    found = find_records(source, shard_size=2, names=ColumnNames())
    return [record.value for shard in found.shards() for record in found.read(shard)]  # type: ignore[union-attr]


@pytest.mark.parametrize("given", ["s3://bucket/a/b.tar", Path("s3://bucket/a/b.tar"), "S3://bucket/a/b.tar"])
def test_an_address_is_the_same_as_text_and_as_path(given: str | Path) -> None:
    path = located(given)
    assert str(path) == "s3://bucket/a/b.tar"
    assert str(path.parent / "c") == "s3://bucket/a/c"
    assert path.relative_to(path.parent).as_posix() == "b.tar"
    assert str(pickle.loads(pickle.dumps(path))) == "s3://bucket/a/b.tar"
    assert path.absolute() == path.resolve() == path


@pytest.mark.parametrize("given", ["a/b.json", "/s3/b.json", "C:/b.json", "./s3:/x"])
def test_a_path_stays_a_path(given: str) -> None:
    assert located(given) == Path(given) and not isinstance(located(given), RemotePath)


def test_a_folder_named_like_a_scheme_stays_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "b").mkdir(parents=True)
    assert not isinstance(located("s3:/b"), RemotePath)


def test_a_file_address_is_a_local_path(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    assert values(f"file://{tmp_path}/a.jsonl") == [{"a": 1}]


def test_the_web_is_read_only_when_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteError, match="set ALIGNGPT_ALLOW_HTTP=1") as caught:
        located("https://example.org/a.jsonl?X-Amz-Signature=secret")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("ALIGNGPT_ALLOW_HTTP", "1")
    assert str(located("https://example.org/a.jsonl")) == "https://example.org/a.jsonl"
    with pytest.raises(RemoteError, match="followed by a query") as caught:
        located("https://example.org/a.jsonl?X-Amz-Signature=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("allowed", ["0", "1"])
@pytest.mark.parametrize(
    "address", ["https://secret@host/a.json", "http://me:secret@host", "https://host/a#sig=secret"]
)
def test_a_token_in_a_web_address_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, allowed: str, address: str
) -> None:
    monkeypatch.setenv("ALIGNGPT_ALLOW_HTTP", allowed)
    with pytest.raises(RemoteError) as caught:
        located(address)
    assert "secret" not in str(caught.value)


def test_a_name_that_is_no_token_is_part_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNGPT_ALLOW_HTTP", "1")
    for address in ("ssh://me@host/a.json", "https://host/@me/a.json"):
        assert str(located(address)) == address


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(RemoteError, match="a name and a password") as caught:
        located("s3://key:secret@bucket/a.tar")
    assert "secret" not in str(caught.value) and "key" not in str(caught.value)


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(SourceError, match="begin with nosuch:// are not known"):
        find_records("nosuch://bucket/a.tar", shard_size=1, names=ColumnNames())


def test_an_address_is_never_written_to() -> None:
    for write in (lambda p: p.mkdir(parents=True), lambda p: p.open("w"), lambda p: p.write_text("a")):
        with pytest.raises(RemoteError, match="only read"):
            write(located("s3://bucket/out"))


@pytest.mark.parametrize("form", ["lines", "array", "csv", "gzip"])
def test_records_are_those_of_the_same_file_on_disk(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, form: str
) -> None:
    records = [{"id": str(number), "image": f"{number}.png", "caption": f"caption {number}"} for number in range(5)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    text, suffix = {
        "lines": (lines.encode(), "jsonl"),
        "array": (json.dumps(records).encode(), "json"),
        "csv": (b"id,image,caption\n" + b"".join(f"{i},{i}.png,caption {i}\n".encode() for i in range(5)), "csv"),
        "gzip": (gzip.compress(lines.encode()), "jsonl.gz"),
    }[form]
    (tmp_path / f"a.{suffix}").write_bytes(text)
    memory.pipe(f"/data/a.{suffix}", text)
    assert values(f"memory://data/a.{suffix}") == values(tmp_path / f"a.{suffix}")
    assert len(values(f"memory://data/a.{suffix}")) == 5


def test_folders_and_patterns_of_tar_files(memory: fsspec.AbstractFileSystem) -> None:
    for number in range(3):
        memory.pipe(f"/data/t/{number:05}.tar", tar_of({f"{number}.png": png("red"), f"{number}.txt": b"red"}))
    memory.pipe("/data/t/notes.txt", b"x")
    memory.pipe("/data/t/._00002.tar", b"added by macOS")
    for source, keys in {
        "memory://data/t": ["0", "1", "2"],
        "memory://data/t/{00001..00002}.tar": ["1", "2"],
        "memory://data/t/*2.tar": ["2"],
        "memory://data/t/00000.tar": ["0"],
    }.items():
        assert [one.key for one in values(source)] == keys, source  # type: ignore[attr-defined]
        assert is_pattern(Path(source)) == any(sign in source for sign in "{*")
    assert name_of_data(Path("memory://data/t/*.tar")) == "t"
    assert str(root_of_data(Path("memory://data/t"), None)) == "memory://data/t"
    with pytest.raises(SourceError, match=r"expected the file 00003\.tar"):
        values("memory://data/t/{00002..00003}.tar")
    with pytest.raises(SourceError, match="matches no"):
        values("memory://data/t/*.parquet")


def test_what_an_address_does_not_have_is_said(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/data/t/notes.txt", b"x")
    with pytest.raises(SourceError, match=r"memory://data/t has neither \.tar nor \.parquet files.* found notes\.txt"):
        values("memory://data/t")
    with pytest.raises(SourceError, match=r"memory://data/none\.tar does not exist"):
        values("memory://data/none.tar")


def test_a_table_in_a_folder_is_read(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/data/f/captions.csv", b"image,caption\na.png,red\n")
    memory.pipe("/data/f/a.png", png("red"))
    assert values("memory://data/f") == [{"image": "a.png", "caption": "red"}]


def test_the_fingerprint_changes_with_the_object(memory: fsspec.AbstractFileSystem) -> None:
    names = {"/data/t/0.tar": tar_of({"0.png": png("red"), "0.txt": b"red"}), "/data/a.jsonl": b'{"a": 1}\n'}
    for name, content in names.items():
        memory.pipe(name, content)
        before = content_of(Path(f"memory:/{name}"))
        assert content_of(Path(f"memory:/{name}")) == before
        memory.pipe(name, content)
        assert content_of(Path(f"memory:/{name}")) != before, "a new version of the same size"


def test_an_object_replaced_between_two_shards_ends_the_reading(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/data/a.jsonl", b'{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    memory.pipe("/data/t/0.tar", tar_of({"0.png": png("red"), "0.txt": b"red"}))
    memory.pipe("/data/t/1.tar", tar_of({"1.png": png("red"), "1.txt": b"red"}))
    for source, key in (("memory://data/a.jsonl", "/data/a.jsonl"), ("memory://data/t", "/data/t/1.tar")):
        found = find_records(source, shard_size=2, names=ColumnNames())
        first, second = found.shards()
        assert list(found.read(first))
        memory.pipe(key, memory.cat(key))
        forget()
        with pytest.raises(RemoteChangedError, match=f"{key[5:]} changed while it was being read"):
            list(pickle.loads(pickle.dumps(found)).read(second))


def test_images_below_an_address(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/data/i/a.png", png("red"))
    memory.pipe("/data/i/b.png", b"not an image")
    root = located("memory://data/i")
    path = resolve_image("a.png", root)
    check_image(path)
    assert open_image(path).getpixel((0, 0)) == (255, 0, 0)
    assert Picture("a", path=path).open().size == (8, 8)
    for name, reason in {"../x.png": "outside_root", "/etc/passwd": "outside_root", "s3://b/x": "outside_root"}.items():
        with pytest.raises(ImageError) as caught:
            resolve_image(name, root)
        assert caught.value.reason == reason
    for name, reason in {"none.png": "missing", "b.png": "not_an_image", "": "outside_root"}.items():
        with pytest.raises(ImageError) as caught:
            check_image(resolve_image(name, root))
        assert caught.value.reason == reason


def test_pairs_with_images_at_another_address(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    memory.pipe("/data/i/a.png", png("blue"))
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "caption": "blue"}\n')
    pairs = open_pairs(tmp_path / "a.jsonl", image_root=Path("memory://data/i"))
    (pair,) = [pair for shard in pairs.shards() for pair in pairs.read(shard)]
    assert pair.picture.open().getpixel((0, 0)) == (0, 0, 255)  # type: ignore[union-attr]
    assert pairs.settings()["image_root_absolute"] == "memory://data/i"
    with pytest.raises(SourceError, match="image root memory://data/none is not a folder"):
        open_pairs(tmp_path / "a.jsonl", image_root=Path("memory://data/none"))
