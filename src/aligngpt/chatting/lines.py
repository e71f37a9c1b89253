"""Reads the lines of a chat, from a terminal with history and completion, or from a pipe; and what Ctrl-C does."""

import importlib.util
import io
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

PROMPT = "> "


class Stopped(BaseException):
    """Ctrl-C was pressed at the terminal of a chat; unlike KeyboardInterrupt, it does not end the command."""


class Lines(Protocol):
    """Where the lines of a chat come from."""

    def next(self) -> str | None:
        """The next line without its end; None at the end, or on Ctrl-D.

        Raises:
            Stopped: Ctrl-C was pressed.
        """


@contextmanager
def ctrl_c_stops_answers() -> Iterator[None]:
    """While the body runs, Ctrl-C at a terminal raises `Stopped`; over a pipe it ends the command as usual."""
    if not sys.stdin.isatty():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def lines_of_stdin(commands: Mapping[str, str]) -> Lines:
    """The lines of stdin, with prompt_toolkit if stdin is a terminal and it is installed.

    Args:
        commands: commands to complete, and what they do.
    """
    if sys.stdin.isatty() and importlib.util.find_spec("prompt_toolkit"):
        return _Edited(commands)
    return _Plain()


class _Plain:
    """Lines from `input`: at a terminal with a prompt, over a pipe without."""

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty()
        self.first = True
        if isinstance(sys.stdin, io.TextIOWrapper):
            # A line that is not UTF-8 is for the chat to refuse; it must not end the lines. Names of files may be such.
            sys.stdin.reconfigure(errors="surrogateescape")
        if self.terminal and importlib.util.find_spec("readline"):
            import readline  # noqa: F401 (line editing and history for `input`)

    def next(self) -> str | None:
        if not self.terminal:
            line = sys.stdin.readline()
            if self.first:
                # Editors on Windows put a byte order mark before the first line.
                line, self.first = line.removeprefix("\ufeff"), False
            return line.rstrip("\r\n") if line else None
        # `input` knows no other exception of a signal's handler than KeyboardInterrupt.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            # In an answer that is redirected to a file, a prompt would be out of place.
            if sys.stdout.isatty():
                return input(PROMPT)
            print(PROMPT, end="", file=sys.stderr, flush=True)
            return input()
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            # SIGTERM raises it too, and is ignored from then on: it ends the chat.
            if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
                raise
            raise Stopped from None
        finally:
            signal.signal(signal.SIGINT, handler)


class _Edited:
    """Lines from prompt_toolkit, with history, and completion of commands and paths."""

    def __init__(self, commands: Mapping[str, str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.output import create_output

        keys = KeyBindings()

        @keys.add("c-c")
        @keys.add("<sigint>")
        def stop(event: KeyPressEvent) -> None:
            event.app.exit(exception=Stopped(), style="class:aborting")

        self.session: PromptSession[str] = PromptSession(
            completer=_completer(commands),
            complete_while_typing=False,
            key_bindings=keys,
            # Not into the file that stdout may be redirected to.
            output=create_output(always_prefer_tty=True),
        )

    def next(self) -> str | None:
        try:
            return self.session.prompt(PROMPT)
        except EOFError:
            return None


def _completer(commands: Mapping[str, str]):  # type: ignore[no-untyped-def]
    """Completes commands at the start of a line, and the path after /image and /save."""
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            text = document.text_before_cursor
            name, space, rest = text.partition(" ")
            if space and name in ("/image", "/save"):
                yield from paths.get_completions(Document(rest), complete_event)
            elif not space and text.startswith("/"):
                for command, what in commands.items():
                    if command.startswith(text):
                        yield Completion(command, start_position=-len(text), display_meta=what)

    return Commands()
