"""`aligngpt inspect`, from the arguments to the files."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aligngpt import cli


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable:
    """Run the command in an empty folder; returns its exit code and what it printed to stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aligngpt", "inspect", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return call


def test_the_command_writes_a_page_once(
    run: Callable, write_records: Callable, model_folder: Path, tmp_path: Path
) -> None:
    data = write_records(3)
    arguments = [model_folder, data, "--device", "cpu", "--limit", 2, "--examples", 1]
    code, out, error = run(*arguments)
    assert (code, out.splitlines()[-2:]) == (0, ["page: inspection.html", "numbers: inspection.json"])
    assert "nats per token" in out and "2/2" in error
    before = (tmp_path / "inspection.html").read_bytes()
    assert before.startswith(b"<!doctype html>")
    code, out, error = run(*arguments)
    assert (code, out) == (1, "")
    assert error.startswith("error: inspection.html exists already") and error.count("\n") == 1
    assert run(*arguments, "--force")[0] == 0
    assert (tmp_path / "inspection.html").read_bytes() == before


def test_missing_arguments_are_said_before_anything_is_loaded(
    run: Callable, write_records: Callable, model_folder: Path
) -> None:
    assert "the data none.json cannot be read" in run(model_folder, "none.json")[2]
    assert "./none cannot be loaded" in run("./none", write_records(1))[2]
