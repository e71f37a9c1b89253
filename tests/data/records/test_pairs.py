"""Every kind of source gives the same pairs for any shard size, and memory does not grow with their number."""

import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from aligngpt.data.records.pairs import Pair, PairSource, open_pairs
from aligngpt.data.samples.reading import write_records

COUNT = 10
CAPTIONS = [f"Caption {number}:\nü 猫 😀, “quoted”" for number in range(COUNT)]


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def pictures(folder: Path) -> None:
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(png(number))


def llava_array(folder: Path) -> Path:
    pictures(folder)
    records = [{"id": f"p{n}", "image": f"{n}.png", "caption": caption} for n, caption in enumerate(CAPTIONS)]
    write_records(folder / "data.json", records)
    return folder / "data.json"


def llava_array_indented(folder: Path) -> Path:
    path = llava_array(folder)
    path.write_text("\ufeff" + json.dumps(json.loads(path.read_text()), indent=2) + "\n\n", encoding="utf-8")
    return path


def llava_lines(folder: Path) -> Path:
    records = json.loads(llava_array(folder).read_text())
    lines = "\r\n\r\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (folder / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    return folder / "data.jsonl"


def csv_file(folder: Path) -> Path:
    pictures(folder)
    rows = [f'p{n},"{caption}",{n}.png\r\n' for n, caption in enumerate(CAPTIONS)]
    (folder / "captions.csv").write_bytes(("\ufeffid,caption,file_name\r\n" + "\r\n".join(rows)).encode())
    return folder / "captions.csv"


def csv_folder(folder: Path) -> Path:
    return csv_file(folder).parent


def metadata_folder(folder: Path) -> Path:
    pictures(folder)
    rows = [{"id": f"p{n}", "file_name": f"{n}.png", "text": caption} for n, caption in enumerate(CAPTIONS)]
    write_records(folder / "metadata.jsonl", rows)
    return folder


def parquet_paths(folder: Path) -> Path:
    pictures(folder)
    table = pyarrow.table(
        {
            "key": [f"p{n}" for n in range(COUNT)],
            "TEXT": CAPTIONS,
            "path": [f"{n}.png" for n in range(COUNT)],
            "other": list(range(COUNT)),
        }
    )
    pyarrow.parquet.write_table(table, folder / "data.parquet", row_group_size=7)
    return folder / "data.parquet"


def parquet_folder(folder: Path) -> Path:
    for part, numbers in enumerate([range(4), range(4, 4), range(4, COUNT)]):
        table = pyarrow.table(
            {
                "id": pyarrow.array([f"p{n}" for n in numbers], pyarrow.string()),
                "image": pyarrow.array(
                    [{"bytes": png(n), "path": None} for n in numbers],
                    pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
                ),
                "caption": pyarrow.array([CAPTIONS[n] for n in numbers], pyarrow.large_string()),
            }
        )
        (folder / "train").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, folder / "train" / f"{part}.parquet")
    return folder


def parquet_binary(folder: Path) -> Path:
    columns = {"uid": [f"p{n}" for n in range(COUNT)], "image": [png(n) for n in range(COUNT)], "text": CAPTIONS}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "data.parquet", row_group_size=2)
    return folder / "data.parquet"


def tars(folder: Path) -> Path:
    for part, numbers in enumerate([range(4), range(4, COUNT)]):
        with tarfile.open(folder / f"{part:05}.tar", "w") as tar:
            for number in numbers:
                caption = (
                    ("txt", CAPTIONS[number].encode())
                    if number % 2
                    else ("json", json.dumps({"caption": CAPTIONS[number]}).encode())
                )
                for extension, content in [("png", png(number)), caption, ("cls", b"1")]:
                    member = tarfile.TarInfo(f"p{number}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def tar_pattern(folder: Path) -> Path:
    return tars(folder) / "{00000..00001}.tar"


def dataset_folder(folder: Path) -> Path:
    columns = {"id": [f"p{n}" for n in range(COUNT)], "caption": CAPTIONS, "image": [png(n) for n in range(COUNT)]}
    features = {"id": datasets.Value("string"), "caption": datasets.Value("string"), "image": datasets.Image()}
    rows = datasets.Dataset.from_dict(
        {**columns, "image": [{"bytes": content, "path": None} for content in columns["image"]]},
        features=datasets.Features(features),
    )
    datasets.DatasetDict({"train": rows}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


SOURCES: dict[str, list[Callable[[Path], Path]]] = {
    "llava": [llava_array, llava_array_indented, llava_lines],
    "csv": [csv_file, csv_folder, metadata_folder],
    "parquet": [parquet_paths, parquet_folder, parquet_binary],
    "webdataset": [tars, tar_pattern],
    "dataset": [dataset_folder],
}


def facts(pair: object) -> tuple[str, str, bytes]:
    assert isinstance(pair, Pair), pair
    return pair.id, pair.caption, pair.picture.read()


def all_facts(source: PairSource) -> list[tuple[str, str, bytes]]:
    return [facts(pair) for shard in source.shards() for pair in source.read(shard)]


@pytest.mark.parametrize(
    ("kind", "make"),
    [pytest.param(kind, make, id=make.__name__) for kind, makes in SOURCES.items() for make in makes],
)
def test_shards_in_any_order_hold_what_the_whole_holds(kind: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    place = make(tmp_path)
    expected = [(f"p{number}", CAPTIONS[number], png(number)) for number in range(COUNT)]
    whole = open_pairs(place)
    assert whole.kind == kind
    assert all_facts(whole) == expected

    cut = open_pairs(str(place), shard_size=3)
    assert cut.fingerprint() == whole.fingerprint()
    shards = list(cut.shards())
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert len({shard.name for shard in shards}) == len(shards)
    if kind != "webdataset":
        assert sum(shard.records or 0 for shard in shards) == COUNT
        assert all(shard.records and shard.records <= 3 for shard in shards)
    sent = pickle.loads(pickle.dumps((cut, shards)))
    random.Random(0).shuffle(sent[1])
    found = {}
    for shard in sent[1]:
        pairs = list(sent[0].read(shard))
        assert [pair.record for pair in pairs] == list(range(len(pairs)))
        assert shard.records in (None, len(pairs))
        found[shard.index] = [facts(pair) for pair in pairs]
    assert [fact for index in sorted(found) for fact in found[index]] == expected


@pytest.mark.parametrize("make", [llava_array, csv_file, parquet_paths, tars], ids=lambda make: make.__name__)
def test_a_fingerprint_changes_when_the_data_does(make: Callable[[Path], Path], tmp_path: Path) -> None:
    place = make(tmp_path)
    before = open_pairs(place).fingerprint()
    assert open_pairs(place, shard_size=2).fingerprint() == before
    changed = place / "00001.tar" if place.is_dir() else place
    changed.write_bytes(changed.read_bytes() + b" ")
    assert open_pairs(place).fingerprint() != before


@pytest.mark.parametrize("make", [llava_lines, csv_file, tars, dataset_folder], ids=lambda make: make.__name__)
def test_a_fingerprint_is_that_of_the_content(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """A copy has the same fingerprint whatever its modification times; a changed caption of equal length alters it."""
    (tmp_path / "here").mkdir()
    place = make(tmp_path / "here")
    before = open_pairs(place).fingerprint()
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    copy = tmp_path / "there" / place.relative_to(tmp_path / "here")
    files = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    for path in files:
        os.utime(path, (1, 1))
    assert open_pairs(copy).fingerprint() == before
    for path in files:
        if path.suffix != ".png":
            path.write_bytes(path.read_bytes().replace(b"Caption 5:", b"Copying 5:"))
        os.utime(path, (1, 1))
    assert open_pairs(copy).fingerprint() != before


def test_other_texts_in_the_middle_of_a_large_parquet_file_are_seen_in_its_footer(tmp_path: Path) -> None:
    """Its images are far larger than its captions, so that the hashed stretches all lie in the images."""
    path = tmp_path / "data.parquet"
    captions = [f"caption {n:04}" for n in range(200)]

    def write() -> str:
        columns = {"image": [bytes([n]) * 40_000 for n in range(200)], "caption": captions}
        table = pyarrow.table(columns)
        pyarrow.parquet.write_table(table, path, row_group_size=50, use_dictionary=False, compression="none")
        os.utime(path, (1, 1))
        return open_pairs(path).fingerprint()

    before, size = write(), path.stat().st_size
    assert write() == before
    captions[99] = "caption 0999"
    assert write() != before and path.stat().st_size == size > 4 << 20


def test_a_source_can_be_read_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llava_array(tmp_path).parent)
    source = open_pairs("data.json", image_root=Path())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(all_facts(source)) == COUNT


def test_shards_need_a_positive_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_size"):
        open_pairs(llava_array(tmp_path), shard_size=0)


# The resource module reports at least the peak of the parent process, which Linux hands on.
READ = """
import sys
from aligngpt.data.records.pairs import open_pairs
from aligngpt.device import peak_memory
source = open_pairs(sys.argv[1])
before = peak_memory()
print(sum(1 for shard in source.shards() for pair in source.read(shard)), (peak_memory() - before) / 2**20)
"""


def growth_of(path: Path, count: int) -> float:
    """MiB by which a process grows when it reads a source of `count` records."""
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    found, growth = done.stdout.split()
    assert int(found) == count
    return float(growth)


@pytest.mark.slow
@pytest.mark.parametrize("is_array", [True, False])
def test_memory_does_not_grow_with_the_number_of_pairs(is_array: bool, tmp_path: Path) -> None:
    path = tmp_path / "data"
    lines = (json.dumps({"image": f"{n}.png", "caption": f"{n} " + "word " * 100}) for n in range(200_000))
    with path.open("w") as file:
        if is_array:
            file.write("[" + next(lines))
            file.writelines(",\n" + line for line in lines)
            file.write("]")
        else:
            file.writelines(line + "\n" for line in lines)
    assert path.stat().st_size > 100 << 20
    assert growth_of(path, 200_000) < 60


@pytest.mark.slow
def test_memory_does_not_grow_with_a_row_group(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    columns = {"image": [os.urandom(50_000) for _ in range(2000)], "caption": ["one"] * 2000}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, write_batch_size=16, use_dictionary=False)
    assert growth_of(path, 2000) < 60
