"""Shards whose members all have the same name up to the first dot, such as `IMG.000001.jpg`."""

import io
from pathlib import Path

import pytest

from aligngpt.data.sources import tar_samples as module
from aligngpt.data.sources.tar_members import Member
from aligngpt.data.sources.tar_samples import TarSample, tar_samples


class Name(str):
    """A name that counts how often one is compared with another."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)


def test_names_are_not_compared_with_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [Name(f"IMG.{number:06}.{suffix}") for number in range(500) for suffix in ("jpg", "txt")]

    def members(path: Path) -> list[Member]:
        return [Member(name, 0, 6, io.BytesIO(b"a text")) for name in names]

    monkeypatch.setattr(module, "read_members", members)
    found = list(tar_samples(tmp_path / "a.tar"))
    assert all(isinstance(one, TarSample) and one.is_whole for one in found) and len(found) == 500
    assert Name.compared < 10 * len(names)
