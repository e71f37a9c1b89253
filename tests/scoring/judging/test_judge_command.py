"""`aligngpt judge` on the command line: what it asks, prints and refuses, and what a stop leaves."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from judge_server import Server, caption_in, said
from typer.testing import CliRunner, Result

from aligngpt.cli import app
from aligngpt.errors import AlignGPTError
from aligngpt.scoring.judging.questions import JudgeError
from aligngpt.scoring.manifest import finished_manifest, read_manifest
from aligngpt.scoring.score_files import ScoresError

Command = Callable[..., Result]


@pytest.fixture
def judge(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the verb in an empty folder; errors are raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")

    def run(*arguments: object) -> Result:
        options = ["--endpoint", server.url.removesuffix("/chat/completions"), "--model", "eye-1", "--out", "judged"]
        ended = CliRunner().invoke(app, ["judge", *options, *map(str, arguments)])
        if ended.exception is not None and not isinstance(ended.exception, SystemExit):
            raise ended.exception
        return ended

    return run


@pytest.fixture
def source(write_pairs: Callable[..., Path]) -> Path:
    return write_pairs(4, **{f"at_{index}": {"caption": f"c{index}"} for index in range(4)})


def test_judge_ends_with_the_next_command_which_runs(judge: Command, server: Server, source: Path) -> None:
    server.answer = lambda request, _: said(caption_in(request)[1])
    ended = judge("pairs.jsonl", "--yes")
    lines = ["4 pairs scored, 0 rejected: judged", "4 requests sent"]
    next_line = "next: aligngpt levels judged --levels 4 --source pairs.jsonl --out pairs-levels.jsonl"
    assert ended.stdout.splitlines() == [*lines, next_line]
    assert f"up to 4 requests to {server.url}; each sends an image, and they may cost money" in ended.stderr
    made = CliRunner().invoke(app, [*next_line.removeprefix("next: aligngpt ").split(), "--report", "page.html"])
    assert made.exit_code == 0 and "level 4: 1 pairs" in made.stdout and Path("page.html").stat().st_size
    assert "sk-very-secret" not in ended.output and server.keys == {"Bearer sk-very-secret"}


def test_the_next_command_asks_for_no_more_levels_than_there_are_scores(
    judge: Command, server: Server, write_pairs: Callable[..., Path]
) -> None:
    write_pairs(8, **{f"at_{index}": {"caption": f"c{index}"} for index in range(8)})
    server.answer = lambda request, _: said(caption_in(request)[1])
    assert "next: aligngpt levels judged --source" in judge("pairs.jsonl", "--yes").stdout
    server.answer = lambda _, __: said("5")
    lines = judge("pairs.jsonl", "--yes", "--out", "equal", "--scale", "0-5").stdout.splitlines()
    assert lines[-1] == "all scores are equal, so no levels can be made of them"


def test_without_a_terminal_it_asks_for_yes(judge: Command, server: Server, source: Path) -> None:
    with pytest.raises(AlignGPTError, match=r"up to 4 requests.*may cost money.*add --yes"):
        judge("pairs.jsonl")
    assert server.asked == []
    judge("pairs.jsonl", "--yes")
    assert "0 requests sent" in judge("pairs.jsonl").stdout, "nothing is left to confirm"


def test_a_limit_judges_the_first_records(judge: Command, server: Server, source: Path) -> None:
    assert judge("pairs.jsonl", "--yes", "--limit", "2").stdout.startswith("2 pairs scored, 0 rejected: judged\n2 requ")


def test_unanswered_pairs_are_told(judge: Command, server: Server, source: Path) -> None:
    server.answer = lambda request, _: (200, {}, "{}") if caption_in(request) == "c3" else said("1")
    ended = judge("pairs.jsonl", "--yes", "--max-reject-share", "0.5")
    assert "3 pairs scored, 1 rejected (unanswered 1): judged" in ended.stdout
    assert "1 pairs got no reply; the same command asks about them again" in ended.stdout


@pytest.mark.parametrize(
    ("options", "said_then"),
    [
        (["--scale", "10-0"], "a scale goes from a lower to a higher number"),
        (["--options", "{"], "the options must be JSON"),
        (["--prompt", "none.txt"], "the prompt none.txt cannot be read: no such file"),
        (["--endpoint", "localhost"], "must be an address such as"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(
    options: list[str], said_then: str, judge: Command, server: Server
) -> None:
    with pytest.raises(AlignGPTError, match=said_then):
        judge("no-such-source.jsonl", "--yes", *options)


def test_a_prompt_and_a_scale_are_used(judge: Command, server: Server, source: Path) -> None:
    Path("question.txt").write_text("Between {lowest} and {highest}? Caption: {caption}")
    server.answer = lambda _, __: said("5/5")
    judge("pairs.jsonl", "--yes", "--prompt", "question.txt", "--scale", "1-5", "--options", '{"temperature": null}')
    texts = {request["messages"][0]["content"][0]["text"] for request in server.asked}
    assert "Between 1 and 5? Caption: c0" in texts and "temperature" not in server.asked[0]
    Path("question.txt").write_text("no caption")
    with pytest.raises(JudgeError, match=r"question\.txt: the prompt does not contain"):
        judge("pairs.jsonl", "--yes", "--prompt", "question.txt")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_resumes(number: signal.Signals, server: Server, source: Path, tmp_path: Path) -> None:
    stuck = {"c2"}

    def answer(request: dict, _: int) -> object:
        while caption_in(request) in stuck:
            time.sleep(0.02)
        return said("3")

    server.answer = answer
    arguments = ["--endpoint", server.url, "--model", "eye-1", "--out", str(tmp_path / "judged"), "--yes"]
    command = [sys.executable, "-m", "aligngpt", "judge", str(source), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    replies = tmp_path / "judged" / "replies.jsonl"
    while process.poll() is None and not (replies.exists() and replies.read_bytes().count(b"\n") == 3):
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    stuck.clear()
    if number == signal.SIGINT:
        assert process.returncode == 130 and "the same command resumes where it stopped" in error
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.startswith("4 pairs scored, 0 rejected") and "1 requests sent" in again.stdout
    assert sorted(server.captions()) == ["c0", "c1", "c2", "c2", "c3"]


def test_a_folder_that_is_not_finished_names_the_command_that_goes_on(
    judge: Command, server: Server, source: Path
) -> None:
    judge("pairs.jsonl", "--yes")
    manifest = read_manifest(Path("judged"))
    replace(manifest, finished=None).write(Path("judged"))
    with pytest.raises(ScoresError, match="run the same `aligngpt judge` command again to resume it"):
        finished_manifest(Path("judged"))
