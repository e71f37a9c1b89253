"""Tests of samples cached on disk: equal to those read directly, and invalidated when the file or its images change."""

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import aligngpt
from aligngpt.cache import CacheError
from aligngpt.data.batches.rows import rows_of
from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.data.samples import preparing as prepared
from aligngpt.data.samples.columns import columns_of
from aligngpt.data.samples.index import SAMPLES_FILE, PreparedSamples
from aligngpt.data.samples.mixtures import Mixture
from aligngpt.data.samples.preparing import prepare_samples
from aligngpt.data.samples.reading import load_samples, write_records
from aligngpt.data.sources.base import SourceError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    for name in ("a.png", "b.png", "\udc80.png"):
        with open(os.fsencode(tmp_path / name), "wb") as file:
            Image.new("RGB", (4, 4)).save(file, format="PNG")
    return tmp_path


@pytest.fixture
def records() -> list[dict[str, Any]]:
    turns = [{"from": who, "value": f"{who} 猫"} for who in ("system", "human", "gpt", "human", "gpt")]
    return [
        {"image": "a.png", "caption": "A cat.", "similarity": 3, "score": 1},
        {"image": ["a.png", "b.png"], "question": "Which?", "answer": "Both.", "question_type": "which"},
        {"id": "half \ud83d", "conversations": turns},
        {"image": "gone.png", "caption": "A cat."},
        {"image": "\udc80.png", "caption": "A dog.", "similarity": 0.25},
        {"question": "1 + 1?", "answer": ""},
        {"image": "a.png", "caption": "The same cat.", "similarity": 3},
        7,
    ]


def entries(folder: Path) -> list[Path]:
    return list((folder / "cache" / "samples").iterdir())


def without_building(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_build", lambda *_: pytest.fail("made anew"))


@pytest.mark.parametrize("batch", [2, 4096])
def test_prepared_samples_are_those_that_are_loaded(
    folder: Path, records: list, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(prepared, "BATCH", batch)
    path = folder / "data.json"
    write_records(path, records)
    loading, preparing = folder / "loading.jsonl", folder / "preparing.jsonl"
    loaded = load_samples(path, rejects=Rejects(loading, max_share=1))
    found = prepare_samples(path, rejects=Rejects(preparing, max_share=1))
    assert list(found) == [found[place] for place in range(len(found))] == found[:] == loaded
    assert found[-1] == loaded[-1] and len(found) == 5
    assert preparing.read_text() == loading.read_text() and loading.read_text().count("\n") == 3
    # The columns agree with the samples.
    columns, expected = found.columns, columns_of(loaded)
    for name in ("levels", "characters", "images", "sources"):
        assert getattr(columns, name).tolist() == getattr(expected, name).tolist()
    assert rows_of(found, 4) == rows_of(loaded, 4) == [(0, 4), (1,), (2,), (3,)]
    again = pickle.loads(pickle.dumps(found))
    assert list(again) == loaded


def test_prepared_samples_know_their_system_prompts_apart(folder: Path) -> None:
    record = {"image": "a.png", "question": "Which?", "answer": "A cat."}
    systems = [{"system": "Be brief."}, {}, {"system": "Be kind."}, {"system": "Be brief."}, {}]
    path = folder / "data.json"
    write_records(path, [record | system for system in systems])
    found = prepare_samples(path, rejects=Rejects(None))
    assert rows_of(found, 4) == rows_of(list(found), 4) == [(0, 3), (1, 4), (2,)]
    assert rows_of(Mixture([found, found]), 4) == [(0, 3), (1, 4), (2,), (5, 8), (6, 9), (7,)]


def test_the_second_time_nothing_is_read_and_the_rejects_are_the_same(
    folder: Path, records: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(folder / "data.jsonl", records)
    first, second = Rejects(folder / "first", max_share=0.5), Rejects(folder / "second", max_share=0.5)
    samples = prepare_samples(folder / "data.jsonl", rejects=first)
    without_building(monkeypatch)
    assert list(prepare_samples(folder / "data.jsonl", rejects=second)) == list(samples)
    assert first.by_reason == second.by_reason == {"missing": 1, "empty_text": 1, "not_an_object": 1}
    assert (folder / "first").read_text() == (folder / "second").read_text()
    with pytest.raises(TooManyRejects, match="3 of 8 records"):
        prepare_samples(folder / "data.jsonl", rejects=Rejects(None, max_share=0.3))


def test_other_content_and_other_demands_are_other_entries(folder: Path) -> None:
    path = folder / "data.json"
    (folder / "images").mkdir()
    write_records(path, [{"question": "1 + 1?", "answer": "2"}])
    for options in ({}, {"image_root": folder / "images"}, {"require_level": True}, {"check_images": False}):
        prepare_samples(path, rejects=Rejects(None), **options)
    assert len(entries(folder)) == 4
    write_records(path, [{"question": "1 + 2?", "answer": "3"}])
    assert prepare_samples(path, rejects=Rejects(None))[0].turns[1].text == "3"
    assert len(entries(folder)) == 5


@pytest.mark.medium
def test_an_upgrade_with_other_rules_reads_the_data_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(folder / "data.json", [{"question": "one ?", "answer": "2"}])
    assert prepare_samples(folder / "data.json", rejects=Rejects(None))[0].turns[0].text == "one ?"
    without_building(monkeypatch)
    prepare_samples(folder / "data.json", rejects=Rejects(None))
    # A second installation of the package, in which one module reads records differently, uses the same cache.
    package = folder / "upgrade" / "aligngpt"
    shutil.copytree(Path(aligngpt.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    module = package / "data" / "records" / "sample.py"
    rule = "text = placed(turn.text)"
    assert rule in module.read_text()
    module.write_text(module.read_text().replace(rule, f"{rule}.upper()"))
    program = (
        "from pathlib import Path; from aligngpt.data.samples.preparing import prepare_samples; "
        "from aligngpt.data.rejects import Rejects; "
        "print(prepare_samples(Path('data.json'), rejects=Rejects(None))[0].turns[0].text)"
    )
    environment = os.environ | {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "ONE ?\n"


@pytest.mark.parametrize("module", ["record_formats.py", "record_tags.py", "archive_records.py", "images.py"])
def test_any_module_that_reads_records_is_a_part_of_the_rules(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    write_records(folder / "data.json", [{"question": "1 + 1?", "answer": "2"}])
    prepare_samples(folder / "data.json", rejects=Rejects(None))
    rules = Path(shutil.copytree(prepared.RULES, folder / "rules"))
    with (rules / module).open("a") as file:
        file.write("ANOTHER_RULE = 1\n")
    monkeypatch.setattr(prepared, "RULES", rules)
    prepare_samples(folder / "data.json", rejects=Rejects(None))
    assert len(entries(folder)) == 2


def test_a_picture_that_has_come_since_is_used(folder: Path, records: list) -> None:
    write_records(folder / "data.json", records)
    assert len(prepare_samples(folder / "data.json", rejects=Rejects(None, max_share=1))) == 5
    Image.new("RGB", (4, 4)).save(folder / "gone.png")
    rejects = Rejects(None, max_share=1)
    assert [sample.record for sample in prepare_samples(folder / "data.json", rejects=rejects)] == [0, 1, 2, 3, 4, 6]
    assert "missing" not in rejects.by_reason


def test_an_entry_that_is_damaged_or_half_gone_is_made_anew(folder: Path, records: list) -> None:
    write_records(folder / "data.json", records)
    expected = list(prepare_samples(folder / "data.json", rejects=Rejects(None, max_share=1)))
    (entry,) = entries(folder)
    for damage in (
        lambda: os.truncate(entry / SAMPLES_FILE, 600),
        lambda: (entry / prepared.REJECTS_FILE).unlink(),
        lambda: (entry / prepared.REJECTS_FILE).write_text("[1]\n"),
    ):
        damage()
        rejects = Rejects(None, max_share=1)
        assert list(prepare_samples(folder / "data.json", rejects=rejects)) == expected
        assert rejects.count == 3


def test_samples_that_another_process_prepared_meanwhile_are_not_replaced(
    folder: Path, records: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(folder / "data.json", records)
    find, running, made = prepared._found_in, [], []

    def slow(*given: Any) -> Any:
        running.append(given)
        if len(running) == 1:
            prepare_samples(folder / "data.json", rejects=Rejects(None, max_share=1))
            made.extend((one / SAMPLES_FILE).stat().st_ino for one in entries(folder) if one.suffix != ".tmp")
        yield from find(*given)

    monkeypatch.setattr(prepared, "_found_in", slow)
    assert len(prepare_samples(folder / "data.json", rejects=Rejects(None, max_share=1))) == 5
    assert [(entry / SAMPLES_FILE).stat().st_ino for entry in entries(folder)] == made


def test_a_file_that_cannot_be_read_leaves_no_entry(folder: Path) -> None:
    (folder / "data.json").write_text('[{"question": "1 + 1?", "answer": "2"}, {"quest')
    with pytest.raises(SourceError, match="not a complete JSON array: line 1"):
        prepare_samples(folder / "data.json", rejects=Rejects(None))
    assert entries(folder) == []
    with pytest.raises(SourceError, match="No such file"):
        prepare_samples(folder / "none.json", rejects=Rejects(None))
    (folder / "data.json").write_text("[]")
    for _ in range(2):
        with pytest.raises(SourceError, match="contains no usable record"):
            prepare_samples(folder / "data.json", rejects=Rejects(None))


def test_a_number_that_no_column_holds_is_a_reject(folder: Path) -> None:
    pair = {"image": "a.png", "caption": "A cat."}
    write_records(folder / "data.json", [pair | {"similarity": 10**30}, pair | {"score": 10**400}, pair])
    rejects = Rejects(None, max_share=1)
    assert len(prepare_samples(folder / "data.json", rejects=rejects)) == 1
    assert rejects.by_reason == {"level": 2}


def test_a_cache_that_cannot_be_written_anywhere_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(folder / "data.json", [{"question": "1 + 1?", "answer": "2"}])
    monkeypatch.setenv("ALIGNGPT_CACHE", str(folder / "a.png"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "b.png"))
    with pytest.raises(CacheError, match="set ALIGNGPT_CACHE"):
        prepare_samples(folder / "data.json", rejects=Rejects(None))


def _prepare(path: Path, start: Any) -> None:
    start.wait()
    for _ in range(5):
        assert len(prepare_samples(path, rejects=Rejects(None))) == 2000


def test_processes_that_prepare_the_same_at_once_all_get_it(folder: Path) -> None:
    write_records(folder / "data.jsonl", [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(2000)])
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    processes = [context.Process(target=_prepare, args=(folder / "data.jsonl", start)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    (entry,) = entries(folder)
    assert len(PreparedSamples(entry)) == 2000
