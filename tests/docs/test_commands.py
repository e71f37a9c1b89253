"""The documentation holds: commands parse, code compiles, links lead somewhere."""

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.main import get_command

from aligngpt.evaluation.matching import matches
from aligngpt.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
HOME = ROOT / "docs" / "index.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(\w*)\s*$")
LINK = re.compile(
    r"\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|<(?:img|source|a)\b[^>]*?\b(?:src|srcset|href)=\"([^\"]+)\""
)
ELSEWHERE = re.compile(r"^([a-z][a-z0-9+.-]*:|#)")
INSTALLED_COMMAND = "$(command -v aligngpt)"
OPTIONAL = {"trl"}
"""Packages that the pages use and this project does not install."""


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

    def do_nothing(command: Any) -> None:
        command.callback = lambda *_, **__: None
        for below in getattr(command, "commands", {}).values():
            do_nothing(below)

    do_nothing(root)

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


@pytest.mark.parametrize("words", [one for one in COMMANDS if one.values[0][:2] == ["aligngpt", "train"]])
def test_documented_settings_are_those_of_a_recipe(words: list[str]) -> None:
    recipe = ROOT / words[2]
    if recipe.is_file():
        load_recipe(recipe, [words[place + 1] for place, word in enumerate(words) if word == "--set"])


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


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_what_documented_code_imports_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            line = ast.unparse(node)
            package = re.split(r"[ .]", line)[1]
            if package in OPTIONAL and importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
            exec(line, {})


def test_the_home_page_lists_every_verb_and_no_other() -> None:
    from aligngpt.cli import app

    verbs = set(getattr(get_command(app), "commands", {}))
    assert set(re.findall(r"^\| `aligngpt ([\w-]+)` \|", HOME.read_text(encoding="utf-8"), re.MULTILINE)) == verbs


def test_the_readme_names_verbs_that_exist_and_their_number() -> None:
    from aligngpt.cli import app

    verbs = set(getattr(get_command(app), "commands", {}))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`aligngpt .*?) \|", readme, flags=re.MULTILINE)
    named = {verb for row in rows for verb in re.findall(r"`(?:aligngpt )?([\w-]+)`", row)}
    assert {"init", "score", "train", "serve"} <= named <= verbs
    assert f"commands of {len(verbs)} (" in readme


def test_the_answers_that_the_page_calls_right_are_right() -> None:
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| (yes|no) \|$", page, flags=re.MULTILINE)
    assert len(rows) == 7
    assert [verdict == "yes" for _, _, verdict in rows] == [matches(answer, accepted) for accepted, answer, _ in rows]


def heading_names(page: Path) -> set[str]:
    """The names that links give to a page's headings."""
    outside = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", outside, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("page", "target"), [pytest.param(*one.values, id=one.id) for one in LINKS if ".md#" in str(one.values[1])]
)
def test_links_to_a_heading_find_it(page: Path, target: str) -> None:
    path, _, heading = target.partition("#")
    assert heading in heading_names(page.parent / path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_a_page_find_their_heading(page: Path) -> None:
    wanted = {target for target, _ in LINK.findall(page.read_text(encoding="utf-8")) if target.startswith("#")}
    assert {target[1:] for target in wanted} <= heading_names(page)


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_links_between_files_lead_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target.partition("#")[0]).exists()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_home_page_links_to_every_page_and_the_readme_to_it(page: Path) -> None:
    if page == HOME:
        assert "](docs/index.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    else:
        assert re.search(rf"\]\({re.escape(page.name)}[)#]", HOME.read_text(encoding="utf-8"))


def test_the_readme_and_every_page_of_docs_are_looked_at() -> None:
    assert {ROOT / "README.md", ROOT / "docs" / "own-data.md"} <= set(PAGES)
    assert any(block.language == "bash" for block in BLOCKS)


def test_the_container_has_the_files_that_the_wheel_includes() -> None:
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "Containerfile").read_text(encoding="utf-8"), re.MULTILINE)
    sources = {Path(source) for line in copied for source in line.split()}
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    included = [Path(path) for path in targets["wheel"]["force-include"]]
    assert included and not [path for path in included if not {path, *path.parents} & sources]
