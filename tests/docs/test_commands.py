"""The documentation holds: commands parse, code compiles, links lead somewhere."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from typer.main import get_command

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(\w*)\s*$")
LINK = re.compile(
    r"\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|<(?:img|source|a)\b[^>]*?\b(?:src|srcset|href)=\"([^\"]+)\""
)
ELSEWHERE = re.compile(r"^([a-z][a-z0-9+.-]*:|#)")
INSTALLED_COMMAND = "$(command -v aligngpt)"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is where its text begins, counted from 1."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    language: str | None = None
    begin, lines = 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line.strip())
        if fence and language is None:
            language, begin, lines = fence[1], number + 1, []
        elif line.strip() == "```":
            yield Block(page, begin, language or "", "\n".join(lines))
            language = None
        else:
            lines.append(line)
    assert language is None, f"{page}:{begin}: the block is never closed"


def shell_text(block: Block) -> str:
    """The block's commands: all of a `bash` block, the lines after a prompt of a `console` block."""
    if block.language != "console":
        return block.text
    typed = re.findall(r"^\$ .*(?:\n> .*)*", block.text, flags=re.MULTILINE)
    return "\n".join(re.sub(r"^[$>] ", "", command, flags=re.MULTILINE) for command in typed)


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell text, without comments, redirections and variables set in front."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        redirected = False
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                if words:
                    yield words
                words, redirected = [], False
            elif set(word) <= set("<>"):
                redirected = True
            elif not redirected and (words or not re.match(r"\w+=", word)):
                words.append(word)


def arguments(words: list[str]) -> list[str] | None:
    """What `aligngpt` gets to see, when the command runs it (or lets accelerate run it)."""
    if words[:2] == ["accelerate", "launch"] and INSTALLED_COMMAND in words:
        return words[words.index(INSTALLED_COMMAND) + 1 :]
    return words[1:] if Path(words[0]).name == "aligngpt" else None


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [
    pytest.param(words, id=f"{block} {shlex.join(words)}")
    for block in BLOCKS
    if block.language in ("bash", "console", "sh", "shell")
    for words in commands(shell_text(block))
]
LINKS = [
    pytest.param(page, target, id=f"{page.relative_to(ROOT)} {target}")
    for page in PAGES
    for target in sorted({a or b for a, b in LINK.findall(page.read_text(encoding="utf-8"))})
    if not ELSEWHERE.match(target)
]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """Exit code of the command line given these arguments; nothing is run, and files need not exist."""
    from aligngpt.cli import app

    for registered in app.registered_commands:
        for hint in get_type_hints(registered.callback, include_extras=True).values():
            for declared in getattr(hint, "__metadata__", ()):
                if hasattr(declared, "exists"):
                    monkeypatch.setattr(declared, "exists", False)
    root = get_command(app)
    for command in (root, *getattr(root, "commands", {}).values()):
        command.callback = lambda *_, **__: None

    def exit_code(args: list[str]) -> int:
        with pytest.raises(SystemExit) as ended:
            root.main(args=args, prog_name="aligngpt")
        return int(ended.value.code or 0)

    return exit_code


@pytest.mark.parametrize("words", COMMANDS)
def test_documented_commands_parse(
    words: list[str], parse: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/"))
    args = arguments(words)
    if args is not None:
        assert parse(args) == 0, capsys.readouterr().err
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        asked = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        assert set(asked) <= set(targets)


@pytest.mark.parametrize("line", ["aligngpt no-such-verb", "aligngpt quickstart --no-such-option", "aligngpt ask"])
def test_a_wrong_command_is_noticed(line: str, parse: Callable[[list[str]], int]) -> None:
    args = arguments(next(commands(line)))
    assert args is not None
    assert parse(args) == 2


def test_commands_are_read_as_a_shell_reads_them() -> None:
    text = 'cd here && A=1 aligngpt ask m \\\n  "a b.png" # why\n'
    text += 'accelerate launch -n 8 "$(command -v aligngpt)" train r > log'
    found = list(commands(text))
    assert [arguments(words) for words in found] == [None, ["ask", "m", "a b.png"], ["train", "r"]]
    session = Block(ROOT / "README.md", 1, "console", "$ make \\\n> test\nmake output\n$ aligngpt --help")
    assert list(commands(shell_text(session))) == [["make", "test"], ["aligngpt", "--help"]]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("python", "json")], ids=str)
def test_documented_code_compiles(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
    else:
        compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_links_between_files_lead_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target.partition("#")[0]).exists()


def test_the_readme_and_every_page_of_docs_are_looked_at() -> None:
    assert {ROOT / "README.md", ROOT / "docs" / "own-data.md"} <= set(PAGES)
    assert any(block.language == "bash" for block in BLOCKS)
