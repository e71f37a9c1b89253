"""However the command is stopped, it says so, cleans up and exits with the right code."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")

SECONDS = 60
PROGRAM = str(Path(sys.executable).with_name("aligngpt"))

BUSY = """
import sys, time
from types import SimpleNamespace
sys.argv[0] = 'aligngpt'
from aligngpt import cli, quiet
quiet.quiet_libraries = lambda: None  # It takes seconds.
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
def look(*_, **__):
    with ProcessPoolExecutor(2, mp_context=get_context('fork')) as pool:
        pool.submit(time.sleep, 0).result()
        try:
            print('busy', flush=True)
            time.sleep(60)
        finally:
            print('tidied up', flush=True)
sys.modules['aligngpt.checking.files'] = SimpleNamespace(check_files=look, checks_as_json=None, write_checks=None)
cli.main()
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a program, wait until it prints a word, and stop it at the end of the test."""
    started = []

    def start(*command: str, until: str, **environment: str) -> subprocess.Popen:
        child = subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(child)
        assert child.stdout is not None and child.stdout.readline() == f"{until}\n"
        return child

    yield start
    for child in started:
        for process in [*children_of(child), child]:
            process.kill()
        child.communicate()


def children_of(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize(
    ("number", "code", "times"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 1), (signal.SIGTERM, 143, 2)]
)
def test_a_signal_ends_the_command_its_workers_and_what_it_holds(
    start: Callable, number: signal.Signals, code: int, times: int
) -> None:
    """`timeout` sends SIGTERM twice."""
    child = start("-c", BUSY, "check", "data.json", until="busy")
    workers = children_of(child)
    assert workers
    for _ in range(times):
        child.send_signal(number)
    out, error = child.communicate(timeout=SECONDS)
    assert (child.returncode, out, error.strip()) == (code, "tidied up\n", "stopped; the same command starts over")
    assert not psutil.wait_procs(workers, timeout=5)[1]


def test_workers_that_are_told_to_end_do_so_without_a_word(start: Callable) -> None:
    child = start("-c", BUSY, "check", "data.json", until="busy")
    for worker in children_of(child):
        # The pool stops the other workers when one is gone.
        with suppress(psutil.NoSuchProcess):
            worker.terminate()
    _, alive = psutil.wait_procs(children_of(child), timeout=5)
    assert not alive
    child.send_signal(signal.SIGTERM)
    _, error = child.communicate(timeout=SECONDS)
    assert "Traceback" not in error


@pytest.mark.parametrize("command", [[PROGRAM], ["-m", "aligngpt"]])
@pytest.mark.parametrize("module", ["typer", "rich"])
def test_ctrl_c_while_the_command_starts_says_nothing(
    start: Callable, tmp_path: Path, module: str, command: list[str]
) -> None:
    (tmp_path / f"{module}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    child = start(*command, "--help", until="importing", PYTHONPATH=path)
    child.send_signal(signal.SIGINT)
    out, error = child.communicate(timeout=SECONDS)
    assert (out, error) == ("", "") and child.returncode in (-signal.SIGINT, 130)


@pytest.mark.medium
def test_scoring_that_is_terminated_leaves_no_worker_and_resumes(
    start: Callable, tmp_path: Path, scorer_folder: Callable[[str], Path]
) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    pairs = [{"id": str(number), "image": "red.png", "caption": "a red circle"} for number in range(4000)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    arguments = ["score", str(tmp_path / "pairs.jsonl"), "--model", str(scorer_folder("clip")), "--out"]
    arguments += [str(tmp_path / "scores"), "--shard-size", "50", "--workers", "2", "--device", "cpu"]
    code = "import sys; sys.argv[0] = 'aligngpt'; print('starting', flush=True); from aligngpt.cli import main; main()"
    child = start("-c", code, *arguments, "--precision", "float32", until="starting")
    give_up = time.monotonic() + SECONDS
    while not list((tmp_path / "scores").glob("part-*")):
        assert child.poll() is None and time.monotonic() < give_up
        time.sleep(0.01)
    workers = children_of(child)
    child.send_signal(signal.SIGTERM)
    _, error = child.communicate(timeout=SECONDS)
    assert child.returncode == 143 and "Traceback" not in error
    assert error.strip().endswith("stopped; the same command resumes where it stopped")
    assert not psutil.wait_procs(workers, timeout=5)[1]
    assert not list((tmp_path / "scores").glob(".*.tmp"))


FORKS = """
import os, signal
from aligngpt.endings import stoppable
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.{name}))
with stoppable() as stopping:
    try:
        if os.fork() == 0:
            os._exit(0)
    except KeyboardInterrupt:
        print("stopped", stopping.code)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_a_worker_is_forked_is_not_lost(name: str, code: int) -> None:
    """Python drops exceptions raised in fork hooks: training would continue, possibly with a lock held forever."""
    program = "import sys; sys.argv[0] = 'aligngpt'" + FORKS.format(name=name)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"stopped {code}\n"
    assert "ignored" not in done.stderr
