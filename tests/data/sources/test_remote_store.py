"""Objects of an S3 server are read in parts, once, over dropped connections, and never in two versions."""

import io
import json
import tarfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import Store, forget
from PIL import Image

from aligngpt.data.images.reference import Picture
from aligngpt.data.sources import remote_store
from aligngpt.data.sources.base import Record, RecordSource, SourceError
from aligngpt.data.sources.fields import ColumnNames
from aligngpt.data.sources.finding import Archive, find_records
from aligngpt.data.sources.remote import RemotePath, located
from aligngpt.data.sources.remote_store import BLOCK, RemoteChangedError, RemoteDeniedError, RemoteError
from aligngpt.data.sources.stored_images import ArchivePictures
from aligngpt.data.sources.tar_samples import TarSample

SIDE = 400
"""Side of an image of noise, of about half a megabyte."""


def noise(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [noise(number) for number in range(8)]


@pytest.fixture(scope="module")
def tar(pictures: list[bytes]) -> bytes:
    """Eight images with texts, about 4 MB."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for number, picture in enumerate(pictures):
            for name, content in ((f"{number}.png", picture), (f"{number}.txt", b"noise")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))
    return file.getvalue()


def opened(address: str, shard_size: int = 2) -> RecordSource:
    return find_records(address, shard_size=shard_size, names=ColumnNames())


def read(source: RecordSource) -> list[Any]:
    found = [record for shard in source.shards() for record in source.read(shard)]
    assert all(isinstance(record, Record) for record in found), found
    return [record.value for record in found if isinstance(record, Record)]


def picture_of(sample: TarSample) -> Picture:
    return sample.pictures[0]


def test_a_tar_file_is_read_once_with_its_images(store: Store, tar: bytes, pictures: list[bytes]) -> None:
    address = store.put("t/0.tar", tar)
    before = store.proxy.served
    source = opened(address)
    (shard,) = source.shards()
    found = [picture_of(record.value).read() for record in source.read(shard)]  # type: ignore[union-attr]
    assert found == pictures
    assert len(tar) <= store.proxy.served - before < len(tar) * 1.1


def test_an_image_is_read_by_its_range(store: Store, tar: bytes, pictures: list[bytes]) -> None:
    samples = read(opened(store.put("t/0.tar", tar)))
    forget()
    before = store.proxy.served
    assert picture_of(samples[5]).read() == pictures[5]
    picture_of(samples[6]).check()
    assert store.proxy.served - before < len(pictures[5]) + (1 << 16) + 5_000


def test_captions_are_read_without_the_images_of_parquet(store: Store, pictures: list[bytes]) -> None:
    rows = [{"caption": f"noise {number}", "image": pictures[number % 8]} for number in range(32)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=16)
    address = store.put("p/0.parquet", file.getvalue())
    before = store.proxy.served
    archive: Archive = opened(address)  # type: ignore[assignment]
    archive.fingerprint()
    found = archive.read_all(lambda schema, name: ["caption"])  # type: ignore[union-attr]
    assert [record.value["caption"] for _, record in found] == [row["caption"] for row in rows]
    assert store.proxy.served - before < len(file.getvalue()) / 2
    (stored, _), *_ = archive.read_all(lambda schema, name: ["caption"])  # type: ignore[union-attr]
    assert ArchivePictures.of(archive).picture("x", stored).read() == pictures[0]


def test_lines_are_streamed(store: Store) -> None:
    records = [{"id": str(number), "text": "x" * 1000} for number in range(3000)]
    address = store.put("a.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    before = store.proxy.served
    source = opened(address, shard_size=1000)
    assert source.fingerprint() == opened(address).fingerprint()
    first = next(iter(source.read(source.shards()[2])))
    assert isinstance(first, Record) and first.value == records[2000]
    # The records are counted once, front to back; the shard is still in memory.
    assert store.proxy.served - before < 3.3e6
    forget()
    before = store.proxy.served
    next(iter(source.read(source.shards()[2])))
    assert store.proxy.served - before < 1.2 * BLOCK


def test_a_dropped_connection_is_resumed(store: Store, tar: bytes, pictures: list[bytes]) -> None:
    source = opened(store.put("t/0.tar", tar))
    store.proxy.drops = [3_000, 40_000]
    before = store.proxy.served
    assert [picture_of(sample).read() for sample in read(source)] == pictures
    assert store.proxy.dropped == 2
    # What was read before a drop is not read again.
    assert store.proxy.served - before < len(tar) + 3 * BLOCK


def test_a_connection_that_is_always_dropped_stops_the_reading(store: Store, tar: bytes) -> None:
    source = opened(store.put("t/0.tar", tar))
    forget()
    store.proxy.drops = [100] * 50
    with pytest.raises(RemoteError, match=r"s3://pairs/t/0\.tar cannot be read: no connection after 3 attempts"):
        read(source)


def test_an_object_replaced_while_it_is_read_ends_the_reading(store: Store, tar: bytes) -> None:
    source = opened(store.put("t/0.tar", tar))
    (shard,) = source.shards()
    records = source.read(shard)
    sample = next(records).value  # type: ignore[union-attr]
    store.put("t/0.tar", tar[:-1024] + tar[-1024:][::-1] + bytes(1024))
    with pytest.raises(RemoteChangedError, match=r"s3://pairs/t/0\.tar changed while it was being read"):
        list(records)
    forget()
    with pytest.raises(RemoteChangedError):
        picture_of(sample).read()


def test_an_object_replaced_between_two_shards_ends_the_reading(store: Store, tar: bytes) -> None:
    for number in range(2):
        store.put(f"t/{number}.tar", tar)
    source = opened("s3://pairs/t")
    first, second = source.shards()
    assert len(list(source.read(first))) == 8
    before = source.fingerprint()
    store.put("t/1.tar", tar + bytes(512))
    with pytest.raises(RemoteChangedError, match=r"t/1\.tar changed"):
        list(source.read(second))
    assert opened("s3://pairs/t").fingerprint() != before


def test_a_removed_object_is_no_damaged_one(store: Store, tar: bytes) -> None:
    source = opened(store.put("t/0.tar", tar))
    store.client.delete_object(Bucket="pairs", Key="t/0.tar")
    forget()
    with pytest.raises(RemoteChangedError, match="removed while it was being read"):
        read(source)


def test_folders_and_patterns(store: Store, tar: bytes) -> None:
    for number in range(3):
        store.put(f"t/{number:05}.tar", tar)
    store.put("t/", b"")
    assert len(opened("s3://pairs/t").shards()) == 3
    assert [shard.name for shard in opened("s3://pairs/t/{00001..00002}.tar").shards()] == ["00001.tar", "00002.tar"]
    assert [shard.name for shard in opened("s3://pairs/t/*1.tar").shards()] == ["00001.tar"]
    store.put("t//a.tar", tar)
    with pytest.raises(RemoteError, match=r"t//a\.tar, whose name is not a path"):
        opened("s3://pairs/t")


def test_errors_say_what_failed_and_what_to_do(store: Store, tar: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteError, match=r"s3://nosuch/a\.tar cannot be read: there is no such bucket"):
        opened("s3://nosuch/a.tar")
    with pytest.raises(SourceError, match=r"s3://pairs/none\.tar does not exist"):
        opened("s3://pairs/none.tar")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget()
    with pytest.raises(RemoteDeniedError, match=r"no credentials were found; set .*AWS_ACCESS_KEY_ID"):
        opened("s3://pairs/t")


def test_refused_access_is_told_without_the_secrets(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def info(self, address: str) -> None:
            raise PermissionError("Forbidden for key AKIASECRET")

        def invalidate_cache(self) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(remote_store, "_filesystem", lambda process, scheme: Refusing())
        with pytest.raises(
            RemoteDeniedError, match=r"s3://pairs/a\.tar cannot be read: access denied; check"
        ) as caught:
            located("s3://pairs/a.tar").exists()
    assert "AKIASECRET" not in str(caught.value)


def test_no_network_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget()
    with pytest.raises(RemoteError, match=r"no connection after 3 attempts.*check the network and the endpoint"):
        located("s3://pairs/a.tar").exists()


def test_the_blocks_kept_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_store, "KEPT_BLOCKS", 2)
    path = located(store.put("a.bin", bytes(5 * BLOCK)))
    assert isinstance(path, RemotePath)
    with path.open("rb") as file:
        assert len(file.read()) == 5 * BLOCK
    assert len(remote_store._blocks._kept) == 2
