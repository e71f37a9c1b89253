"""Questions on the terminal, each with a default, and repeated until the answer can be used."""

import sys
from collections.abc import Callable
from typing import TypeVar

from aligngpt.errors import AlignGPTError
from aligngpt.starting.output import StartError

Answer = TypeVar("Answer")


class Asker:
    """Takes each value from its flag, its default or the user.

    Args:
        interactive: ask for values without a flag; otherwise a value that is needed must have one.
        defaults: take the default where there is one instead of asking (`--yes`).
    """

    def __init__(self, *, interactive: bool, defaults: bool) -> None:
        self.interactive, self.defaults = interactive, defaults

    def value(
        self,
        question: str,
        flag: str,
        given: str | None,
        read: Callable[[str], Answer],
        *,
        default: str | None = None,
        needed: bool = True,
    ) -> Answer:
        """One value, as `read` returns it.

        Args:
            question: what to ask, without question mark or default.
            flag: that gives the value, for messages.
            given: the flag's value; None if it was not given.
            read: turns the text into the value, and raises an `AlignGPTError` for text that cannot be used.
            default: the text that an empty answer stands for; None if there is none.
            needed: whether the value must be given where nothing can be asked, unless defaults are taken.

        Raises:
            StartError: the value is missing and cannot be asked for, or the input ended.
            AlignGPTError: a flag's value cannot be used.
        """
        if given is not None:
            return read(given)
        if self.defaults or not self.interactive:
            if default is not None and (self.defaults or not needed):
                return read(default)
            advice = "" if default is None else f", or --yes for the default {default}"
            reason = "" if self.defaults else " because the input is no terminal"
            raise StartError(f"the {question} is missing and cannot be asked for{reason}; give {flag}{advice}")
        while True:
            text = _line(f"{question}{f' [{default}]' if default is not None else ''}: ", flag) or default
            if text is None:
                print(f"an answer is needed, as for {flag}", file=sys.stderr)
                continue
            try:
                return read(text)
            except AlignGPTError as error:
                print(error, file=sys.stderr)


def _line(prompt: str, flag: str) -> str:
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise StartError(f"the input ended before this was answered; give {flag}")
    return line.strip()
