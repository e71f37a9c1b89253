"""The command in a real terminal, with and without prompt_toolkit, and over a pipe."""

import importlib.util
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are of POSIX")]

SECONDS = 60
AN_INSTANT = 0.5
"""readline does not notice a signal in the instant between showing something and waiting for a key."""
PROGRAM = """
import sys, time
sys.argv = ['aligngpt', *sys.argv[1:]]
from aligngpt import cli
from aligngpt.inference import engine
if 'SLOW' in __import__('os').environ:
    answering = engine.Engine.events
    def slowly(*arguments):
        for event in answering(*arguments):
            yield event
            time.sleep(0.2)
    engine.Engine.events = slowly
if 'PLAIN' in __import__('os').environ:
    find = cli.sys.modules['importlib.util'].find_spec
    cli.sys.modules['importlib.util'].find_spec = lambda name, *_: None if name == 'prompt_toolkit' else find(name, *_)
cli.main()
"""
CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")


@pytest.fixture(scope="module")
def model(assembled: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    for part in assembled():
        part.save_pretrained(folder)
    return folder


class Terminal:
    """The command in a pseudo-terminal."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        import pty
        import termios

        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment})
            os.execv(sys.executable, [sys.executable, "-c", PROGRAM, "chat", *arguments])
        # Wide enough for a path on one line.
        termios.tcsetwinsize(self.terminal, (24, 200))
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, *texts: str) -> str:
        """Read until the terminal has shown texts, in this order; returns and forgets what it has shown."""
        end = time.monotonic() + SECONDS
        pattern = re.compile(".*?".join(map(re.escape, texts)), re.DOTALL)
        while (found := pattern.search(CODES.sub("", self.text))) is None:
            assert time.monotonic() < end and self._read(), f"no {texts} in {self.text!r}"
        shown = CODES.sub("", self.text)
        self.text = shown[found.end() :]
        return shown[: found.end()]

    def code(self) -> int:
        """The exit code, once the command has ended."""
        while self._read():
            pass
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bool:
        if not select.select([self.terminal], [], [], SECONDS)[0]:
            return False
        try:
            new = os.read(self.terminal, 4096)
        except OSError:
            return False
        self.text += new.decode(errors="replace")
        return bool(new)

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)


@pytest.fixture
def open_terminal(model: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def make(*arguments: str, **environment: str) -> Terminal:
        opened.append(Terminal(str(model), "--device", "cpu", *arguments, **environment))
        return opened[-1]

    yield make
    for one in opened:
        one.end()


@pytest.fixture(params=["edited", "plain"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "plain":
        return {"PLAIN": "1"}
    if importlib.util.find_spec("prompt_toolkit") is None:
        pytest.skip("prompt_toolkit is not installed (the extra chat)")
    return {}


def test_ctrl_c_stops_an_answer_and_ctrl_d_the_chat(
    open_terminal: Callable[..., Terminal], picture: Path, environment: dict[str, str]
) -> None:
    terminal = open_terminal(str(picture), "--max-new-tokens", "200", SLOW="1", **environment)
    terminal.wait_for("my picture.png", "goes with the next question", ">")
    terminal.type("what colour ?\n")
    terminal.wait_for("what colour ?", "\n")
    while not re.search(r"\w", CODES.sub("", terminal.text)):
        assert terminal._read()
    terminal.type("\x03")
    terminal.wait_for("stopped; what was said stays", ">")
    terminal.type("/undo\n")
    terminal.wait_for("taken back: what colour ?; its image goes with the next question", ">")
    terminal.type("half a line")
    terminal.wait_for("half a line")
    time.sleep(AN_INSTANT)
    terminal.type("\x03")
    terminal.wait_for(">")
    terminal.type("/level 3\n")
    terminal.wait_for("level: 3 of 8", ">")
    terminal.type("/image nowhere.png\n")
    terminal.wait_for("error:", "nowhere.png", ">")
    terminal.type("\x04")
    assert terminal.code() == 0


def test_sigterm_ends_a_chat_that_waits(open_terminal: Callable[..., Terminal], environment: dict[str, str]) -> None:
    terminal = open_terminal(**environment)
    terminal.wait_for("/help", ">")
    time.sleep(AN_INSTANT)
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.code() == 143


def test_tab_completes_commands_and_paths_and_up_recalls(open_terminal: Callable[..., Terminal], picture: Path) -> None:
    pytest.importorskip("prompt_toolkit")
    terminal = open_terminal()
    terminal.wait_for("/help", ">")
    terminal.type("/lev\t")
    terminal.wait_for("/level")
    terminal.type(" 5\r")
    terminal.wait_for("level: 5 of 8", ">")
    terminal.type(f"/image {str(picture)[:-6]}\t")
    terminal.wait_for("picture.png")
    terminal.type("\r")
    terminal.wait_for("goes with the next question", ">")
    terminal.type("\x1b[A\x1b[A\r")
    terminal.wait_for("level: 5 of 8")


def piped(model: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "chat", str(model), "--device", "cpu", "--max-new-tokens", "6"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def test_over_a_pipe_answers_go_to_stdout_and_messages_to_stderr(
    model: Path, picture: Path, pictures: list[Image.Image]
) -> None:
    from aligngpt.inference.engine import Engine, Request, Sampling

    done = piped(model, f"/image {picture}", "what colour ?", "how many ?")
    with Engine.load(model, device="cpu") as engine:
        (answer,) = engine.answer([Request.ask("what colour ?", pictures[0])], Sampling(6))
    assert done.returncode == 0
    assert done.stdout.startswith(f"{answer.text}\n") and done.stdout.count("\n") == 2
    assert "goes with the next question" in done.stderr


def test_over_a_pipe_a_failed_answer_is_exit_code_1(model: Path) -> None:
    done = piped(model, "red " * 600, "how many ?")
    assert done.returncode == 1 and "context" in done.stderr
    assert done.stdout.count("\n") == 1
