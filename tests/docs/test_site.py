"""The documentation as a site: it builds without a warning, no link is lost, the reference names what exists."""

import ast
import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.config import load_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
NAMES = [name for page in REFERENCE for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)]
WRITTEN = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


class Html(HTMLParser):
    """What the tests look at in a page of the site."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.paragraphs: list[str] = []
        self._in_paragraph = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.loaded += [found[name] for name in ("src", "srcset") if name in found]
        if tag == "link" and found.get("rel") != "canonical":
            self.loaded.append(found["href"])
        if tag == "p":
            self._in_paragraph = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_paragraph &= tag != "p"

    def handle_data(self, data: str) -> None:
        if self._in_paragraph:
            self.paragraphs[-1] += data


Site = dict[Path, Html]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    out = tmp_path_factory.mktemp("site")
    # Without --quiet: it drops the warnings before --strict counts them.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Html(path.read_text(encoding="utf-8")) for path in out.rglob("*.html")}


def lost(site: Site) -> list[str]:
    """Links and pictures of the site that lead nowhere in it."""
    found = []
    # 404.html is shown at any address, so its links begin with the site's own.
    for path, page in ((path, page) for path, page in site.items() if path.name != "404.html"):
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and anchor not in site[target].ids):
                found.append(f"{path}: {link}")
    return found


@pytest.mark.medium
def test_the_site_builds_strictly_and_no_link_is_lost(site: Site) -> None:
    assert lost(site) == []
    assert sum(len(page.links) for page in site.values()) > 1000


def test_a_lost_link_a_lost_heading_and_a_lost_picture_are_found(tmp_path: Path) -> None:
    links = ["other/", "other/#there", "other/#gone", "gone/", "#gone", "https://example.com/#gone"]
    pages = {
        tmp_path / "index.html": "".join(f'<a href="{one}">link</a>' for one in links) + '<img src="gone.png">',
        tmp_path / "other" / "index.html": '<h2 id="there">There</h2>',
    }
    for path, text in pages.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found = lost({path: Html(text) for path, text in pages.items()})
    assert [one.rpartition(" ")[2] for one in found] == ["other/#gone", "gone/", "#gone", "gone.png"]


@pytest.mark.medium
def test_the_site_loads_nothing_from_elsewhere(site: Site) -> None:
    loaded = {link for page in site.values() for link in page.loaded}
    assert loaded and not {link for link in loaded if urlsplit(link).netloc}


@pytest.mark.medium
def test_lists_are_lists_on_the_site_too(site: Site) -> None:
    """Python-Markdown wants an empty line before a list and four spaces before a list within one."""
    swallowed = [
        (path.parent.name, text)
        for path, page in site.items()
        for text in page.paragraphs
        if re.search(r"^\s*(?:[-*]|\d+\.) ", text, re.MULTILINE)
    ]
    assert swallowed == []


@pytest.mark.medium
def test_every_name_of_the_reference_is_on_the_site(site: Site) -> None:
    assert set(NAMES) <= {one for path, page in site.items() if "reference" in path.parts for one in page.ids}


def test_every_page_is_in_the_navigation_and_none_twice() -> None:
    def files(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        assert isinstance(entry, list | dict)
        return [one for part in (entry if isinstance(entry, list) else entry.values()) for one in files(part)]

    shown = files(load_config(str(ROOT / "mkdocs.yml")).nav)
    outside = ["contributing.md", "notice.md", "readme.md"]
    assert sorted(shown) == sorted([*outside, *(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))])


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_reference_can_be_imported_and_is_explained(name: str) -> None:
    place, _, own = name.rpartition(".")
    found = getattr(importlib.import_module(place), own)
    if callable(found):
        assert found.__doc__


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_what_a_page_imports_is_in_the_reference(page: Path) -> None:
    code = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    imports = [node for text in code for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    wanted = {f"{node.module}.{one.name}" for node in imports for one in node.names}
    known = {identity(name) for name in NAMES}
    assert [one for one in wanted if one.startswith("aligngpt.") and identity(one) not in known] == []


def identity(name: str) -> int:
    """The same for all names of one object: a class may be imported from where it is defined and from its package."""
    place, _, own = name.rpartition(".")
    return id(getattr(importlib.import_module(place), own))
