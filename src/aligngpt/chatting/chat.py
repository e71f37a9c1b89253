"""Runs a chat: each line is a question, a command or dropped image files."""

import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.text import Text

from aligngpt.chatting.conversation import Conversation, Shown
from aligngpt.chatting.heat import drawn
from aligngpt.chatting.lines import Lines, Stopped
from aligngpt.chatting.paths import dropped, paths_in
from aligngpt.chatting.saving import save
from aligngpt.data.images.opening import open_image
from aligngpt.endings import said_in_one_line
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import near_paths
from aligngpt.inference.ask import NOT_UNICODE, describe_alignment, is_unicode
from aligngpt.inference.engine import Engine, Finished, Sampling, TextDelta
from aligngpt.inference.generation.prompts import ContextLengthError
from aligngpt.inference.similarity_map import similarity_map
from aligngpt.printing import printable
from aligngpt.progress import console

COMMANDS = {
    "/image": "PATH…: show one or several images with the next question; dropping files here does the same",
    "/level": "K or auto: force alignment level K from now on, or leave it to the gate; alone: show which",
    "/alignment": "how the levels were mixed for the last answer, and which parts of the images match the text",
    "/retry": "ask the last question again, with the present level (and another seed, if answers are sampled)",
    "/undo": "take back the last question and its answer",
    "/reset": "start over, without images",
    "/save": "FILE: write the conversation to FILE.json (LLaVA's layout) and FILE.txt, or to FILE if it has an ending",
    "/help": "show this list",
}
HELP = "\n".join(
    [
        *(f"{name} {what}" for name, what in COMMANDS.items()),
        "Everything else is a question. Put a space before one that begins with a slash.",
        "Ctrl-C stops an answer; Ctrl-D ends the chat.",
    ]
)


class ChatError(AlignGPTError):
    """A line of a chat that cannot be carried out."""


class Chat:
    """A conversation with a model, driven line by line.

    Args:
        engine: answers.
        sampling: how tokens are chosen.
    """

    def __init__(self, engine: Engine, sampling: Sampling) -> None:
        self.engine, self.sampling = engine, sampling
        self.conversation = Conversation()
        self._saved: set[Path] = set()
        self._missing_images = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": lambda text: self.show(self._found_in(text)),
            "/level": self._level,
            "/alignment": lambda text: self._alone("/alignment", text, self._alignment),
            "/retry": lambda text: self._alone("/retry", text, self._retry),
            "/undo": lambda text: self._alone("/undo", text, self._undo),
            "/reset": lambda text: self._alone("/reset", text, self._reset),
            "/save": self._save,
            "/help": lambda text: self._alone("/help", text, lambda: print(HELP, flush=True)),
        }

    def run(self, lines: Lines) -> bool:
        """Carry out lines until they end; errors are printed, and the chat goes on.

        Returns:
            Whether everything succeeded.
        """
        succeeded = True
        while True:
            try:
                line = lines.next()
                if line is None:
                    return succeeded
                self.do(line)
            except Stopped:
                note("")
            except Exception as error:
                message = said_in_one_line(error, "chat")
                if message is None:
                    raise
                succeeded = False
                complain(message)

    def do(self, line: str) -> None:
        """Carry out one line.

        Raises:
            AlignGPTError: it cannot be carried out; the conversation is unchanged.
            Stopped: Ctrl-C was pressed, other than during an answer.
        """
        if not line.strip():
            return
        if paths := dropped(line):
            self.show(paths)
        elif line.startswith("/"):
            name, _, rest = line.strip().partition(" ")
            if name not in self._commands:
                raise ChatError(
                    f"there is no command {name}; /help lists them. If it is a question, put a space before it; if it "
                    "is an image, there is no such file"
                )
            self._commands[name](rest)
        else:
            self._ask(line.strip())

    def show(self, paths: Sequence[Path]) -> None:
        """Show images with the next question.

        Raises:
            AlignGPTError: one of them cannot be opened; none is shown then.
        """
        self._missing_images = True
        found = [Shown(Path(os.path.abspath(path)), _opened(path)) for path in paths]
        self._missing_images = False
        self.conversation.next_shown += found
        for one in found:
            note(f"{one.name} ({one.image.width} × {one.image.height}) goes with the next question")

    def _found_in(self, text: str) -> list[Path]:
        self._missing_images = True
        return paths_in(text)

    def _ask(self, question: str) -> None:
        if self._missing_images and not sys.stdin.isatty():
            # Nobody reads the message about the image before asking on.
            raise ChatError(f"not asked, because its image could not be opened: {question}")
        self._missing_images = False
        if not is_unicode(question):
            raise ChatError(f"not asked: {NOT_UNICODE}")
        answer = self._answer(question, self.sampling)
        if answer:
            self.conversation.add(question, answer)

    def _answer(
        self,
        question: str,
        sampling: Sampling,
        *,
        if_none: str = "the question is not kept in the conversation",
    ) -> str:
        """Print the answer while it is generated, and return it without white space around it; empty if there is none.

        Args:
            question, sampling: what is asked.
            if_none: what then becomes of the question.

        Raises:
            AlignGPTError: the model cannot answer.
        """
        said, finished = "", None
        try:
            events = self.engine.events(self.conversation.asking(question), sampling)
            with ExitStack() as ending:
                if isinstance(events, Generator):
                    ending.callback(events.close)
                for event in events:
                    if isinstance(event, TextDelta):
                        said += event.text
                        print(printable(event.text), end="", flush=True)
                    elif isinstance(event, Finished):
                        finished = event.answer
        except Stopped:
            print(flush=True)
            note(f"stopped; {'what was said stays in the conversation' if said.strip() else if_none}")
            return said.strip()
        except ContextLengthError as error:
            raise ChatError(f"{error}: /undo or /reset, or start with a smaller --max-new-tokens") from error
        except BaseException:
            if said:
                print(flush=True)
            raise
        print(flush=True)
        if not said.strip():
            note(f"the model answered with nothing; {if_none}")
        elif finished is not None and not finished.stopped:
            note(f"cut off after {finished.tokens} tokens; --max-new-tokens sets the limit")
        return said.strip()

    def _retry(self) -> None:
        conversation = self.conversation
        waiting = list(conversation.next_shown)
        conversation.next_shown = []
        last = conversation.undo()
        if last is None:
            conversation.next_shown = waiting
            raise ChatError("there is no question to ask again yet")
        answer = ""
        try:
            if not self.sampling.is_greedy:
                self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
            elif last.level == conversation.level:
                note("the same question at the same level has the same answer; /level K or --temperature changes it")
            answer = self._answer(last.question, self.sampling, if_none="the earlier answer stays in the conversation")
        finally:
            if answer:
                conversation.add(last.question, answer)
            else:
                conversation.turns.append(last)
            conversation.next_shown = waiting

    def _undo(self) -> None:
        last = self.conversation.undo()
        if last is None:
            raise ChatError("there is nothing to take back; /reset also removes images that were not asked about yet")
        images = len(last.shown)
        again = f"; its {'image goes' if images == 1 else 'images go'} with the next question" if images else ""
        note(f"taken back: {last.question}{again}")

    def _reset(self) -> None:
        self.conversation.reset()
        self._missing_images = False
        note("the conversation is empty")

    def _level(self, text: str) -> None:
        text, levels = text.strip(), self.engine.num_levels
        if self.engine.model.model.alignment is None:
            raise ChatError("this model has no alignment module (alignment: none), so it has no levels")
        if text == "auto":
            self.conversation.level = None
        elif text.isdecimal() and 1 <= int(text) <= levels:
            self.conversation.level = int(text)
        elif text:
            raise ChatError(f"/level takes a level from 1 to {levels}, or auto; found {text!r}")
        level = self.conversation.level
        note("level: auto" if level is None else f"level: {level} of {levels}")

    def _alignment(self) -> None:
        request = self.conversation.last_asked()
        if request is None:
            raise ChatError("ask a question first: the alignment depends on image and question")
        if not request.images:
            raise ChatError("the conversation has no image, so there is no alignment; /image PATH shows one")
        print(describe_alignment(self.engine, request), flush=True)
        if self.engine.model.model.alignment is None:
            return
        for number, one in enumerate(self.conversation.shown()):
            print(f"{one.name}: the parts that match the text")
            print(drawn(similarity_map(self.engine, request, number)), flush=True)

    def _save(self, text: str) -> None:
        if not text.strip():
            raise ChatError("/save needs a file name, as in /save chat")
        paths = paths_in(text)
        if len(paths) != 1 or not paths[0].name:
            raise ChatError(f"/save takes one file name, found {text.strip()}; quote a name with spaces")
        for path in save(self.conversation, paths[0], own=self._saved):
            note(f"saved: {path}")

    def _alone(self, name: str, text: str, command: Callable[[], None]) -> None:
        if text.strip():
            raise ChatError(
                f"{name} takes nothing after it, found {text.strip()!r}; a question goes on a line of its own"
            )
        command()


def _opened(path: Path) -> Image.Image:
    near = () if path.exists() else near_paths(path)
    try:
        return open_image(path)
    except AlignGPTError as error:
        raise ChatError(f"{error}{f'; did you mean {chr(32).join(near)}?' if near else ''}") from error


def note(text: str) -> None:
    """Say something beside the answers, on stderr; not with `--quiet`."""
    console.print(Text(printable(text), style="dim"), soft_wrap=True)


def complain(text: str) -> None:
    """Say what went wrong, on stderr, also with `--quiet`."""
    quiet, console.quiet = console.quiet, False
    console.print(Text.assemble(("error: ", "bold red"), printable(text)), soft_wrap=True)
    console.quiet = quiet
