"""tools/site_links.py: links written for the repository lead somewhere on the site, or the build stops."""

import re
import shutil
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[2]
ADDRESS = "https://example.com/us/small"


def built(root: Path, text: str, address: str | None = None) -> str:
    """The page docs/part/page.md with this text, on the site of a small repository, which is built into root/site."""
    urls = f'[project.urls]\nRepository = "{address}"\n' if address else ""
    for name, content in {
        "pyproject.toml": f'[project]\nname = "small"\n{urls}',
        "README.md": "# Small\n\n## Install\n\n[A page](docs/part/page.md)",
        "CONTRIBUTING.md": "# Contributing",
        "NOTICE.md": "# Notices",
        "recipes/one.yaml": "a: 1",
        "docs/part/page.md": text,
        "docs/other.md": "# Other\n\n## A heading",
        "theme/main.html": "{{ page.edit_url }} {{ page.content }}",
        "mkdocs.yml": "site_name: small\nstrict: true\nplugins: []\nuse_directory_urls: false\n"
        "hooks: [tools/site_links.py]\nmarkdown_extensions: [fenced_code]\n"
        "theme: {name: null, custom_dir: theme}\nvalidation: {anchors: warn}\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    (root / "tools").mkdir(exist_ok=True)
    shutil.copy(ROOT / "tools" / "site_links.py", root / "tools")
    build(load_config(str(root / "mkdocs.yml")))
    return (root / "site" / "part" / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("written", "with_address", "without"),
    [
        ("../other.md#a-heading", "../other.html#a-heading", "../other.html#a-heading"),
        ("../../README.md#install", "../readme.html#install", "../readme.html#install"),
        ("../../recipes/one.yaml", f"{ADDRESS}/blob/HEAD/recipes/one.yaml", "../repository/recipes/one.yaml.txt"),
        ("../../recipes", f"{ADDRESS}/tree/HEAD/recipes", "../repository/recipes.txt"),
        ("https://example.com/a.md", "https://example.com/a.md", "https://example.com/a.md"),
    ],
)
def test_a_link_leads_to_the_page_to_the_repository_or_to_a_copy(
    tmp_path: Path, written: str, with_address: str, without: str
) -> None:
    for address, expected in ((f"{ADDRESS}/", with_address), (None, without)):
        page = built(tmp_path, f"[a\nlink]({written}) and ![a picture]({written})", address)
        assert re.findall(r'(?:href|src)="(.*?)"', page) == [expected, expected]


def test_a_page_from_outside_docs_links_to_those_inside(tmp_path: Path) -> None:
    built(tmp_path, "# Page")
    assert 'href="part/page.html"' in (tmp_path / "site" / "readme.html").read_text(encoding="utf-8")


def test_a_copy_has_the_content_of_the_file_and_a_folder_lists_its_files(tmp_path: Path) -> None:
    built(tmp_path, "[one](../../recipes/one.yaml), [all](../../recipes), [one](../../recipes/one.yaml)")
    copies = tmp_path / "site" / "repository"
    found = {path.relative_to(copies).as_posix(): path.read_text() for path in copies.rglob("*.*")}
    assert found == {"recipes/one.yaml.txt": "a: 1", "recipes.txt": "one.yaml"}


@pytest.mark.parametrize("target", ["../../recipes/gone.yaml", "../gone.md", "../../../outside.md"])
def test_a_link_to_what_is_not_in_the_repository_stops_the_build(
    tmp_path: Path, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "outside.md").write_text("# Outside", encoding="utf-8")
    with pytest.raises(Abort):
        built(tmp_path / "repository", f"[a link]({target})")
    assert f"part/page.md links to {target}, which is not in the repository" in caplog.text


@pytest.mark.parametrize("code", ["`[a](gone.md)`", "``[a](`gone.md`)``", "```python\n[a](gone.md)\n```"])
def test_code_stays_as_it_is(tmp_path: Path, code: str) -> None:
    assert "[a](" in built(tmp_path, code)


def test_pages_have_a_link_for_editing_where_the_repository_has_an_address(tmp_path: Path) -> None:
    assert built(tmp_path, "# Page", ADDRESS).startswith(f"{ADDRESS}/edit/HEAD/docs/part/page.md ")
    assert built(tmp_path, "# Page").startswith("None ")
