"""The command `aligngpt`: parse, call one function, print."""

import os
import sys
import traceback
from typing import Annotated

import typer
from rich.text import Text

from aligngpt import __version__
from aligngpt.cli import (
    ask,
    cache,
    chat,
    check,
    convert,
    derive,
    doctor,
    evaluate,
    export,
    init,
    inspect,
    judge,
    levels,
    quickstart,
    recipe,
    report,
    score,
    serve,
    study,
    train,
    web,
)
from aligngpt.cli.options import Shown, Verb
from aligngpt.endings import INTERRUPTED, said_in_one_line, stoppable
from aligngpt.printing import printable
from aligngpt.progress import console, say

FORMER_NAMES = {"address": "ray-address", "actors": "ray-actors"}
"""Former names of options, which still work, and their present names."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: FORMER_NAMES.get(name, name),
    },
    help="AlignGPT: score → levels → train → evaluate → ask. Multimodal language models whose alignment is modelled.",
)

RESUMABLE = ("quickstart", "score", "judge", "derive", "train", "evaluate", "study")
"""Verbs that resume where they stopped; the others leave no partial output and start over."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"aligngpt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only results and errors: no progress, notes or warnings.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the Python traceback of an error, to report it.")
    ] = False,
) -> None:
    """Options that come before the verb."""
    console.quiet = quiet
    context.ensure_object(Shown).traceback = traceback


for _verb in (
    quickstart.quickstart,
    score.score,
    judge.judge,
    derive.derive,
    levels.levels,
    init.init,
    recipe.recipe,
    train.train,
    check.check,
    evaluate.evaluate,
    inspect.inspect,
    ask.ask,
    web.web,
    serve.serve,
    chat.chat,
    convert.convert,
    convert.merge,
    export.export,
    report.report,
    cache.cache,
    doctor.doctor,
):
    app.command(cls=Verb)(_verb)
app.add_typer(study.app, name="study")


def _speak_utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale's file name encoding is not UTF-8.

    The underlying libraries expect UTF-8 paths and could not open a folder with an accent in its name.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """Run the command.

    An error that the user can act on becomes one line and exit code 1. Ctrl-C exits with code 130 and SIGTERM with
    143; both print what running the same command again will do.
    """
    _speak_utf8()
    shown = Shown()
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    with stoppable() as stopping:
        try:
            # Inside the try block: this imports libraries, and Ctrl-C may arrive meanwhile.
            from aligngpt.quiet import quiet_libraries

            quiet_libraries()
            app(obj=shown)
        except KeyboardInterrupt:
            sys.exit(stopping.code)
        except SystemExit as end:
            if end.code != INTERRUPTED:
                raise
            say(f"\nstopped; the same command {'resumes where it stopped' if verb in RESUMABLE else 'starts over'}")
            sys.exit(stopping.code)
        except Exception as error:
            message = said_in_one_line(error, verb)
            if message is None:
                traceback.print_exception(error)
                message = (
                    f"unexpected {type(error).__name__}, a fault of aligngpt; please report it with the command and "
                    "the traceback above"
                )
            elif shown.traceback:
                traceback.print_exception(error)
            console.quiet = False
            console.print(Text.assemble(("error: ", "bold red"), printable(message)), soft_wrap=True)
            sys.exit(1)
