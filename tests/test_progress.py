"""Progress display: plain lines without a terminal, a bar on one, and a rate without the items done before a resume."""

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from aligngpt import progress
from aligngpt.progress import Meter, say, status, track, warn

STYLED = {"progress.py", "chatting/chat.py", "cli/__init__.py", "quickstart/run_folder.py"}
"""Modules that print on the console themselves: what has a style, and the study's runner."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only moves when its `now` is set."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def lines(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """Returns the lines written since its last call, without a terminal."""
    monkeypatch.setattr(progress, "console", Console(stderr=True, force_terminal=False))

    def written() -> list[str]:
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()

    return written


class Screen(io.StringIO):
    """The file of a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    screen = Screen()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=100, color_system=None))
    return screen


def test_off_a_terminal_a_plain_line_comes_now_and_then(clock: SimpleNamespace, lines: Callable) -> None:
    with Meter("scoring", 100, unit="pairs") as meter:
        for _ in range(50):
            clock.now += 0.25
            meter.advance()
        assert lines() == ["scoring: 40/100, 4.0 pairs/s, 15 s left"]
        clock.now += 9
        meter.advance()
        assert lines() == ["scoring: 51/100, 2.4 pairs/s, 21 s left"]


def test_the_last_line_says_how_many_and_how_fast(clock: SimpleNamespace, lines: Callable) -> None:
    with Meter("scoring", 6, unit="pairs") as meter:
        clock.now += 2
        meter.advance(6)
    assert lines() == ["scoring: 6/6, 3.0 pairs/s"]


def test_lines_are_free_of_markup_and_control_codes(clock: SimpleNamespace, lines: Callable) -> None:
    with Meter("step [1/2]", None) as meter:
        clock.now += 10
        meter.advance(remark="loss [red]2.5")
    assert lines() == ["step [1/2]: 1, 0.1 items/s, loss [red]2.5", "step [1/2]: 1, 0.1 items/s"]


def test_messages_are_printed_as_they_are(lines: Callable) -> None:
    path = f"runs/[v2]/[/tmp]/:key:/{'long/' * 40}x.json"
    say(path)
    warn(f"{path} is 1 of 2")
    assert lines() == [path, f"warning: {path} is 1 of 2"]


def test_a_bar_and_a_status_show_brackets(terminal: io.StringIO) -> None:
    with Meter("reading [a-c]*.parquet", 2) as meter:
        meter.advance(2, "[/tmp]")
    with status("loading [v2]"):
        pass
    assert all(text in terminal.getvalue() for text in ("reading [a-c]*.parquet", "[/tmp]", "loading [v2]"))


@pytest.mark.parametrize(
    ("kind", "environment"), [(Screen, {"TERM": "dumb"}), (io.StringIO, {"TERM": "xterm", "FORCE_COLOR": "1"})]
)
def test_where_nothing_can_be_drawn_over_there_are_lines(
    monkeypatch: pytest.MonkeyPatch,
    clock: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    kind: type[io.StringIO],
    environment: dict[str, str],
) -> None:
    """A terminal that cannot move its cursor, and a file that is to have colours."""
    file = kind()
    monkeypatch.setattr(progress, "console", Console(file=file, _environ=environment))
    assert progress.console.is_terminal
    with Meter("training", 4) as meter, status("loading"):
        clock.now += 11
        meter.advance(2)
    assert file.getvalue() == ""
    assert [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()] == ["training: 2/4"] * 2


def test_a_status_is_shown_on_a_terminal_only(lines: Callable) -> None:
    with status("loading"):
        pass
    assert lines() == []


def test_modules_print_messages_as_they_are() -> None:
    root = Path(progress.__file__).parent
    sources = {file: file.read_text(encoding="utf-8") for file in root.rglob("*.py")}
    printing = {file.relative_to(root).as_posix() for file, text in sources.items() if "console.print(" in text}
    assert printing <= STYLED, "use say or warn"


def test_without_a_total_no_time_is_promised(clock: SimpleNamespace, lines: Callable) -> None:
    with Meter("reading", None, unit="records") as meter:
        clock.now += 10
        meter.advance(20)
    assert lines() == ["reading: 20, 2.0 records/s"] * 2


def test_what_was_done_before_is_left_out_of_the_rate(clock: SimpleNamespace, lines: Callable) -> None:
    with Meter("training", 1000, initial=900, unit="steps") as meter:
        clock.now += 10
        meter.advance(20, "loss 2.5")
        assert lines() == ["training: 920/1000, 2.0 steps/s, 40 s left, loss 2.5"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (10, "1/100, 0.1 runs/s, 16 min left"),
        (30, "1/100, 2.0 runs/min, 50 min left"),
        (160, "1/100, 0.4 runs/min, 4 h 24 min left"),
        (900, "1/100, 4.0 runs/h, 24 h 45 min left"),
    ],
)
def test_slow_work_has_a_rate_and_a_time_that_can_be_read(
    clock: SimpleNamespace, lines: Callable, seconds: float, shown: str
) -> None:
    with Meter("study", 100, unit="runs") as meter:
        clock.now += seconds
        meter.advance()
        assert lines() == [f"study: {shown}"]


def test_the_clock_starts_when_the_work_does(clock: SimpleNamespace, lines: Callable) -> None:
    meter = Meter("scoring", 10)
    clock.now += 1000
    with meter:
        clock.now += 5
        meter.advance(10)
    assert lines() == ["scoring: 10/10, 2.0 items/s"]


@pytest.mark.parametrize(("total", "initial", "shown"), [(0, 0, "resuming: 0"), (5, 5, "resuming: 5/5")])
def test_nothing_to_do_has_no_rate(
    clock: SimpleNamespace, lines: Callable, total: int, initial: int, shown: str
) -> None:
    with Meter("resuming", total, initial=initial):
        pass
    assert lines() == [shown]


def test_work_that_failed_has_no_last_line(lines: Callable) -> None:
    with pytest.raises(KeyError), Meter("scoring", 3) as meter:
        meter.advance()
        raise KeyError
    assert lines() == []


def test_track_yields_everything_in_order(lines: Callable) -> None:
    assert list(track("abc", "reading")) == ["a", "b", "c"]
    assert lines() == ["reading: 3/3"]


def test_track_counts_an_item_when_its_work_is_done(clock: SimpleNamespace, lines: Callable) -> None:
    for _ in track(range(3), "copying", unit="files"):
        clock.now += 10
    assert lines() == [
        "copying: 1/3, 0.1 files/s, 20 s left",
        "copying: 2/3, 0.1 files/s, 10 s left",
        "copying: 3/3, 0.1 files/s",
        "copying: 3/3, 0.1 files/s",
    ]


def test_track_adds_what_was_done_before_to_the_total(clock: SimpleNamespace, lines: Callable) -> None:
    for _ in track(range(3), "copying", initial=7, unit="files"):
        clock.now += 5
    assert lines() == ["copying: 9/10, 0.2 files/s, 5 s left", "copying: 10/10, 0.2 files/s"]


def test_track_takes_items_it_cannot_count(lines: Callable) -> None:
    def items() -> Iterator[int]:
        yield from range(4)

    assert list(track(items(), "reading")) == [0, 1, 2, 3]
    assert list(track(items(), "reading", total=4)) == [0, 1, 2, 3]
    assert lines() == ["reading: 4", "reading: 4/4"]


def test_track_reads_no_item_ahead(lines: Callable) -> None:
    source = iter(range(10))
    for item in track(source, "reading"):
        if item == 3:
            break
    assert next(source) == 4


def test_on_a_terminal_there_is_a_bar_with_rate_and_remark(
    clock: SimpleNamespace, terminal: io.StringIO, capsys: pytest.CaptureFixture
) -> None:
    with Meter("training", 10, initial=4, unit="steps") as meter:
        clock.now += 2
        meter.advance(6, "loss 2.5")
    last = terminal.getvalue().split("training")[-1]
    assert "━" in last and "10/10" in last and "3.0 steps/s loss 2.5" in last
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_new_total_is_shown(clock: SimpleNamespace, terminal: io.StringIO) -> None:
    with Meter("training", 100_000, unit="steps") as meter:
        clock.now += 2
        meter.total = 50
        meter.advance(10)
    assert "10/50 " in terminal.getvalue().split("training")[-1]


def test_on_a_terminal_a_failure_ends_the_bar(terminal: io.StringIO) -> None:
    with pytest.raises(KeyError), Meter("training", 10):
        raise KeyError
    assert terminal.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_beside_a_bar_writes_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write of the screen takes a while, as over a network: a thread that draws would mostly hold its lock."""

    class Slow(Screen):
        def write(self, text: str) -> int:
            time.sleep(0.005)
            return super().write(text)

    screen, plain = Slow(), io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=100))
    monkeypatch.setattr(sys, "stderr", plain)
    codes = []
    with Meter("training", 1000) as meter:
        assert sys.stderr is not plain
        for _ in range(20):
            meter.advance()
            time.sleep(0.007)
            if not (child := os.fork()):
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(2)
                print("a warning", file=sys.stderr)
                progress.console.print("another")
                told = plain.getvalue() == "a warning\n" and screen.getvalue().endswith("another\n")
                redrawn = "training" in screen.getvalue().rpartition("another")[2]
                os._exit(0 if told and not redrawn else 3)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert codes == [0] * 20
