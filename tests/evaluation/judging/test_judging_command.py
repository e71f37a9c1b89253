"""`aligngpt evaluate --judge-url`: what it prints and refuses, and what a kill leaves."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import Server, said
from judged_folders import COUNT, asked_of, fair, mm_vet
from typer.testing import CliRunner

from aligngpt.cli import app
from aligngpt.errors import AlignGPTError


def options(server: Server, root: Path) -> list[str]:
    where = ["--data", str(root), "--out", str(root / "out"), "--answers", str(mm_vet(root))]
    return ["--benchmarks", "mm-vet", *where, "--judge-url", server.url, "--judge-model", "judge-1"]


def command(*arguments: object) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if isinstance(ended.exception, AlignGPTError):
        raise ended.exception
    return ended.exit_code, " ".join(ended.output.replace("│", " ").split())


def test_answers_are_judged_without_a_model(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-mine")
    server.answer = fair
    code, text = command(*options(server, tmp_path), "--judge-key-env", "MY_KEY", "--judge-concurrency", 2)
    assert code == 0 and "MM-Vet, published rules 50.0%" in text and server.keys == {"Bearer sk-mine"}
    assert "calibration: the judge gives the ground truth itself 100.0%" in text and "sk-mine" not in text
    assert f"judges {COUNT} answers and as many reference answers; 0 replies are saved" in text
    (result,) = json.loads((tmp_path / "out/results.json").read_text())
    assert result["judge"]["judge"] == "judge-1" and '"temperature": 0' in result["judge"]["options"]


def test_options_reach_the_judge(server: Server, tmp_path: Path) -> None:
    server.answer = fair
    wanted = '{"max_tokens": null, "max_completion_tokens": 50}'
    code, _ = command(*options(server, tmp_path), "--judge-options", wanted)
    assert code == 0 and "max_tokens" not in server.asked[0] and server.asked[0]["max_completion_tokens"] == 50


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--benchmarks", "mm-vet", "--judge-model", "m"], "--judge-model needs --judge-url"),
        (["--benchmarks", "mm-vet", "--judge-url", "http://localhost/v1"], "--judge-url needs --judge-model"),
        (
            ["--benchmarks", "pope", "--judge-url", "http://localhost/v1", "--judge-model", "m"],
            "need no judge, omit it",
        ),
        (["--judge-model", "m"], "--judge-model is only for --benchmarks"),
    ],
)
def test_wrong_combinations_are_sentences(arguments: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    code, text = command(*arguments, *_of(arguments, tmp_path), "--out", tmp_path / "o")
    assert code == 2 and expected in text


def _of(arguments: list[str], root: Path) -> list[object]:
    return ["--answers", root / "a.jsonl", "--data", root] if "--benchmarks" in arguments else []


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--judge-key-env", "NO_SUCH_KEY"], "variable NO_SUCH_KEY of --judge-key-env is not set"),
        (["--judge-url", "localhost"], "must be an address such as"),
        (["--judge-options", "{"], "the options must be JSON"),
        (["--judge-options", '{"model": "x"}'], "the option model of requests is set"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_asked(
    more: list[str], expected: str, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(AlignGPTError, match=expected):
        command(*options(server, tmp_path), *more)
    assert not server.asked


def test_a_wrong_key_or_address_names_the_options(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-mine")
    server.answer = lambda _, __: (401, {}, "no")
    with pytest.raises(AlignGPTError, match="set MY_KEY in the environment"):
        command(*options(server, tmp_path), "--judge-key-env", "MY_KEY")
    server.answer = lambda _, __: (404, {}, "no")
    with pytest.raises(AlignGPTError, match="check --judge-url, which usually ends in /v1, and --judge-model"):
        command(*options(server, tmp_path))


@pytest.mark.slow
def test_a_killed_command_resumes_without_a_second_request(server: Server, tmp_path: Path) -> None:
    stuck = {30}

    def answer(request: dict[str, Any], number: int) -> object:
        while asked_of(request)[0] in stuck:
            time.sleep(0.02)
        return fair(request, number)

    server.answer = answer
    line = [sys.executable, "-m", "aligngpt", "evaluate", *options(server, tmp_path), "--judge-concurrency", "1"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    replies = tmp_path / "out/mm-vet/judge_replies.jsonl"
    while process.poll() is None and not (replies.exists() and replies.read_bytes().count(b"\n") == 30):
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    assert not (tmp_path / "out/mm-vet/grades.json").exists()
    stuck.clear()
    done = {json.dumps(one["messages"]) for one in server.asked if asked_of(one)[0] != 30}
    sent = len(server.asked)
    again = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "MM-Vet, published rules" in again.stdout and "30 replies are saved" in again.stderr
    later = [json.dumps(one["messages"]) for one in server.asked[sent:]]
    assert len(later) == 2 * COUNT - 30 and not done & set(later)


def test_the_terminal_shows_unjudged_answers(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request, number: said("?") if asked_of(request) == (7, False) else fair(request, number)
    code, text = command(*options(server, tmp_path))
    assert code == 0 and "MM-Vet: not graded, and in no figure: v1_7" in text
