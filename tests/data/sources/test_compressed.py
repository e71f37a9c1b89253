"""Compressed text files are read like the files in them, as far as they are whole."""

import bz2
import errno
import gzip
import hashlib
import json
import lzma
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from aligngpt.cache import CACHE_VARIABLE, cache_folder
from aligngpt.data.records.pairs import Pair, PairSource, Unusable, open_pairs
from aligngpt.data.sources import converted
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.byte_ranges import BrokenLine
from aligngpt.data.sources.values import read_values

LINES = [{"image": f"{number}.png", "caption": f"caption {number}: ü", "id": str(number)} for number in range(200)]


def zstd(content: bytes) -> bytes:
    stream = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(stream, "zstd") as file:
        file.write(content)
    return bytes(stream.getvalue())


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def json_lines() -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in LINES)


def csv_rows() -> bytes:
    return ("image,caption,id\n" + "".join(f"{one['image']},{one['caption']},{one['id']}\n" for one in LINES)).encode()


def array() -> bytes:
    return json.dumps(LINES).encode()


def everything(pairs: PairSource) -> list[Pair | Unusable]:
    return [one for shard in pairs.shards() for one in pairs.read(shard)]


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize(("name", "content"), [("a.jsonl", json_lines), ("a.json", array), ("a.csv", csv_rows)])
def test_a_compressed_file_is_read_like_the_file_in_it(
    name: str, content: Callable[[], bytes], suffix: str, tmp_path: Path
) -> None:
    plain, packed = tmp_path / name, tmp_path / f"{name}.{suffix}"
    plain.write_bytes(content())
    packed.write_bytes(PACK[suffix](content()))
    first, second = open_pairs(plain, shard_size=64), open_pairs(packed, shard_size=64)
    assert everything(second) == everything(first) and len(everything(second)) == 200
    assert [shard.records for shard in second.shards()] == [64, 64, 64, 8]
    assert (second.kind, second.fingerprint(), second.root) == (first.kind, first.fingerprint(), tmp_path)
    assert list(read_values(packed)) == list(read_values(plain))


def test_a_file_is_decompressed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(json_lines()))
    before = everything(open_pairs(packed))
    monkeypatch.setattr(converted, "cache_entry", None)
    assert everything(open_pairs(packed)) == before


def test_a_file_that_is_replaced_while_it_is_decompressed_is_not_kept(tmp_path: Path) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(b"packed")

    def replacing(path: Path, out: Path) -> str | None:
        path.write_bytes(b"another")
        out.write_bytes(b"another one unpacked")
        return None

    with pytest.raises(SourceError, match=r"a\.jsonl\.gz changed while it was being read"):
        converted._made(packed, "a.jsonl", replacing)
    assert list(cache_folder("converted").iterdir()) == []


def test_the_entry_of_a_process_that_was_faster_is_kept(tmp_path: Path) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(b"packed")
    running, made = [], []

    def slow(path: Path, out: Path) -> str | None:
        running.append(path)
        if len(running) == 1:
            made.append(converted._made(path, out.name, slow).path.stat().st_ino)
        out.write_bytes(b"unpacked")
        return None

    assert [converted._made(packed, "a.jsonl", slow).path.stat().st_ino] == made


def test_a_worker_elsewhere_decompresses_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(json_lines()))
    pairs = open_pairs(packed, shard_size=64)
    before = everything(pairs)
    sent = pickle.dumps(pairs)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "other"))
    assert everything(pickle.loads(sent)) == before
    assert (tmp_path / "other").exists()


@pytest.mark.parametrize("suffix", PACK)
def test_a_truncated_file_costs_its_rest_only_and_says_so(suffix: str, tmp_path: Path) -> None:
    content = b"".join(
        b'{"image": "%d.png", "caption": "%s"}\n' % (n, hashlib.sha256(bytes([n])).hexdigest().encode())
        for n in range(50)
    )
    whole = PACK[suffix](content)
    packed = tmp_path / f"a.jsonl.{suffix}"
    packed.write_bytes(whole[: -len(whole) // 8])
    try:
        pairs = open_pairs(packed, shard_size=7)
    except SourceError as error:
        # These compress in blocks, so that nothing of a file of one block can be read.
        assert suffix in ("bz2", "zst") and "damaged or cut short" in str(error) and str(packed) in str(error)
        return
    *good, last = everything(pairs)
    assert good and all(isinstance(one, Pair) for one in good)
    assert isinstance(last, Unusable) and last.reason == "broken_compression"
    assert str(packed) in last.detail and "cut short" in last.detail
    assert sum(shard.records or 0 for shard in pairs.shards()) == len(good) + 1
    *_, (number, value) = read_values(packed)
    assert number == len(good) and isinstance(value, BrokenLine) and value.kind == "broken_compression"


def test_what_is_cut_short_is_remembered_with_the_cached_file(tmp_path: Path) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(json_lines())[:-100])
    assert everything(open_pairs(packed)) == everything(open_pairs(packed))
    moved = packed.rename(tmp_path / "b.jsonl.gz")
    last = everything(open_pairs(moved))[-1]
    assert isinstance(last, Unusable) and last.detail.startswith(str(moved))


def test_a_file_that_cannot_be_read_is_not_remembered_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines()))

    def failing(self: gzip.GzipFile, size: int = -1) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(gzip.GzipFile, "read", failing)
        with pytest.raises(SourceError, match=r"a\.jsonl\.gz.* cannot be read: .*Input/output error"):
            everything(open_pairs(path))
    assert len(everything(open_pairs(path))) == len(LINES)


def test_a_truncated_array_is_an_error_that_names_the_compressed_file(tmp_path: Path) -> None:
    packed = tmp_path / "a.json.gz"
    packed.write_bytes(gzip.compress(array())[:-100])
    with pytest.raises(SourceError, match="cut short after") as caught:
        everything(open_pairs(packed))
    assert str(packed) in str(caught.value) and "converted" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        ('{"caption": "größer"}\n'.encode("latin-1") * 20, "is not UTF-8 in line 1"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"PAR1" + bytes(50), "is a Parquet file compressed with gzip; decompress it (gunzip)"),
    ],
)
def test_an_error_in_a_compressed_file_names_it(content: bytes, message: str, tmp_path: Path) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(content))
    with pytest.raises(SourceError) as caught:
        everything(open_pairs(packed))
    assert message in str(caught.value) and str(packed) in str(caught.value)


def test_a_compressed_tar_file_is_refused_before_it_is_decompressed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a.txt", "a.txt")
    with pytest.raises(SourceError, match="is a tar file compressed with gzip; decompress it"):
        open_pairs(tmp_path / "a.tar.gz")
