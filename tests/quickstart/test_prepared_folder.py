import json
from pathlib import Path

import pytest

from aligngpt.quickstart.prepared_folder import Facts, PreparedFolderError, prepare_folder

INPUTS: Facts = {"version": 1, "sha256": {"a": "b"}, "share": 0.15}


class Builder:
    """Writes one file and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> Facts:
        self.calls += 1
        (folder / "inner").mkdir()
        (folder / "inner" / "file.txt").write_text(f"call {self.calls}")
        return {"count": 3}


def test_a_second_call_uses_the_first_result(tmp_path: Path) -> None:
    build, folder = Builder(), tmp_path / "cache" / "thing"
    assert prepare_folder(folder, INPUTS, build) == prepare_folder(folder, dict(INPUTS), build) == folder
    assert build.calls == 1


def test_other_inputs_make_the_folder_anew(tmp_path: Path) -> None:
    build, folder = Builder(), tmp_path / "thing"
    prepare_folder(folder, INPUTS, build)
    prepare_folder(folder, {**INPUTS, "share": 0.2}, build)
    assert (folder / "inner" / "file.txt").read_text() == "call 2"
    assert json.loads((folder / "manifest.json").read_text())["made_from"]["share"] == 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


@pytest.mark.parametrize("harm", ["lost", "cut"])
def test_a_damaged_folder_is_made_anew(tmp_path: Path, harm: str) -> None:
    build, folder = Builder(), tmp_path / "thing"
    file = prepare_folder(folder, INPUTS, build) / "inner" / "file.txt"
    file.unlink() if harm == "lost" else file.write_text("c")
    prepare_folder(folder, INPUTS, build)
    assert file.read_text() == "call 2"


def test_the_manifest_tells_inputs_facts_and_files(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "thing", INPUTS, Builder())
    assert json.loads((tmp_path / "thing" / "manifest.json").read_text()) == {
        "made_from": INPUTS,
        "count": 3,
        "files": {"inner/file.txt": 6},
    }


def test_a_failing_build_leaves_nothing_behind_and_the_old_result_in_place(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path / "thing", INPUTS, Builder())

    def fail(temporary: Path) -> Facts:
        (temporary / "half").write_text("written")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        prepare_folder(folder, {"version": 2}, fail)
    assert (folder / "inner" / "file.txt").read_text() == "call 1"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


@pytest.mark.parametrize("manifest", [None, "not json", '{"name": "a manifest of something else"}', "[1]"])
def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(PreparedFolderError, match="not empty"):
        prepare_folder(tmp_path, INPUTS, Builder())
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_a_file_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thing").write_text("dear")
    with pytest.raises(PreparedFolderError):
        prepare_folder(tmp_path / "thing", INPUTS, Builder())
    assert (tmp_path / "thing").read_text() == "dear"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "thing").mkdir()
    prepare_folder(tmp_path / "thing", INPUTS, Builder())
    assert (tmp_path / "thing" / "inner" / "file.txt").is_file()
