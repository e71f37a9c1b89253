"""Links in tar files: hard links to earlier members are followed, others are rejects that say what to do.

Long names, which a header of their own holds, may be damaged.
"""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from aligngpt.data.records.pairs import Pair, Unusable, open_pairs
from aligngpt.data.sources import tar_members
from aligngpt.data.sources.tar_members import BrokenTar, Member, read_members


def png(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def packed(path: Path, *members: tuple[str, bytes | str], kind: bytes = tarfile.LNKTYPE) -> Path:
    """A tar file of members with their contents; one with a string is a link to that name."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = kind, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def found_in(path: Path) -> list[Pair | Unusable]:
    pairs = open_pairs(path)
    return [one for shard in pairs.shards() for one in pairs.read(shard)]


def test_a_hard_link_has_the_content_of_the_member_it_names(tmp_path: Path) -> None:
    first = packed(tmp_path / "a.tar", ("0.png", png(10)), ("0.txt", b"one"), ("./1.png", "0.png"), ("1.txt", b"two"))
    second = packed(
        tmp_path / "b.tar", ("0.png", png(90)), ("0.txt", b"three"), ("2.png", "./0.png"), ("2.txt", "0.txt")
    )
    whole = tmp_path / "whole.tar"
    whole.write_bytes(first.read_bytes() + second.read_bytes())
    pairs = found_in(whole)
    assert [one.caption for one in pairs if isinstance(one, Pair)] == ["one", "two", "three", "three"]
    # A name stands for the last member of this name before the link.
    reds = [one.picture.open().getpixel((0, 0))[0] for one in pairs if isinstance(one, Pair)]
    assert reds == [10, 10, 90, 90]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_sample_of_links_that_lead_nowhere_is_one_reject(kind: bytes, tmp_path: Path) -> None:
    members = [("0.png", png(1)), ("0.txt", b"one"), ("1.png", "/data/1.png"), ("1.txt", "/data/1.txt")]
    good, bad = found_in(packed(tmp_path / "a.tar", *members, kind=kind))
    assert isinstance(good, Pair) and isinstance(bad, Unusable)
    assert (bad.id, bad.reason) == ("1", "link")
    assert "'1.png' is a link" in bad.detail and "--hard-dereference" in bad.detail


def test_a_complete_sample_may_have_a_link_as_a_further_member(tmp_path: Path) -> None:
    members = [("0.png", png(1)), ("0.txt", b"one"), ("0.mask.png", "/masks/0.png"), ("0.cls", "/labels/0")]
    (found,) = found_in(packed(tmp_path / "a.tar", *members, kind=tarfile.SYMTYPE))
    assert isinstance(found, Pair) and found.caption == "one"


def test_dotted_names_of_links_are_rejects_of_their_own(tmp_path: Path) -> None:
    members = [("22.01.png", png(1)), ("22.01.txt", b"one"), ("22.02.png", "/a.png"), ("22.02.txt", b"two")]
    bad, good = found_in(packed(tmp_path / "a.tar", *members, kind=tarfile.SYMTYPE))
    assert isinstance(good, Pair) and good.id == "22.01"
    assert isinstance(bad, Unusable) and (bad.id, bad.reason) == ("22.02", "link")


def test_names_are_only_kept_from_the_first_link_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int | None] = []

    def counted(path: Path, stop: int | None = None) -> object:
        reads.append(stop)
        return read_members(path, stop)

    monkeypatch.setattr(tar_members, "read_members", counted)
    plain = packed(tmp_path / "a.tar", ("0.png", b"x"), ("0.txt", b"y"))
    assert len(list(read_members(plain))) == 2 and not reads
    linked = packed(tmp_path / "b.tar", ("0.png", b"x"), ("1.png", "0.png"), ("2.png", "1.png"), ("3.png", "2.png"))
    contents = [one.read() for one in read_members(linked) if isinstance(one, Member)]
    assert contents == [b"x"] * 4 and len(reads) == 1


@pytest.mark.parametrize(("size", "count"), [(1 << 70, 1), (1 << 45, 1), (0, 1_500)])
def test_long_names_of_absurd_size_and_number_break_the_file_from_there_on(
    size: int, count: int, tmp_path: Path
) -> None:
    good = packed(tmp_path / "a.tar", ("a.txt", b"a text")).read_bytes()[: 2 * tarfile.BLOCKSIZE]
    name = tarfile.TarInfo("x")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, size
    (tmp_path / "a.tar").write_bytes(good + count * name.tobuf(tarfile.GNU_FORMAT) + good + bytes(1024))
    first, broken = read_members(tmp_path / "a.tar")
    assert isinstance(first, Member) and first.name == "a.txt"
    assert isinstance(broken, BrokenTar) and f"{tmp_path / 'a.tar'} is not a complete" in broken.reason
