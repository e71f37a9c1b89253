"""MkDocs hook: the pages' links, written for the repository, lead somewhere on the site too.

README.md, CONTRIBUTING.md and NOTICE.md become pages. Links to other files outside docs/ lead to the repository, whose
address is `Repository` under [project.urls] in pyproject.toml; without an address, to a copy on the site.
A link to a file that does not exist stops the build.
"""

import os
import re
import tomllib
from pathlib import Path
from posixpath import dirname, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "NOTICE.md": "notice.md"}
CODE = re.compile(r"(^ *```.*?^ *```|``.+?``|`[^`\n]+`)", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?![a-z][a-z0-9+.-]*:|[#/])([^)#\s]+)")


def on_config(config: MkDocsConfig) -> None:
    """Takes the repository's address from pyproject.toml; with one, pages get a link for editing them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if address := project.get("urls", {}).get("Repository"):
        config.repo_url, config.repo_name, config.edit_uri = address.rstrip("/"), "Repository", "edit/HEAD/docs/"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that lie outside docs/."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page; code stays as it is."""

    def rewritten(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(Path(str(page.file.abs_src_path)).parent / link[1]))
        if not target.exists() or not target.is_relative_to(ROOT):
            raise PluginError(
                f"{page.file.src_uri} links to {link[1]}, which is not in the repository; correct the link."
            )
        name = target.relative_to(ROOT).as_posix()
        if name in PAGES or name.startswith("docs/"):
            return relpath(PAGES.get(name, name.removeprefix("docs/")), dirname(page.file.src_uri) or ".")
        if config.repo_url:
            return f"{config.repo_url}/{'tree' if target.is_dir() else 'blob'}/HEAD/{name}"
        return relpath(copied(target, name, config, files), dirname(page.file.src_uri) or ".")

    parts = CODE.split(markdown)
    return "".join(part if number % 2 else LINK.sub(rewritten, part) for number, part in enumerate(parts))


def copied(target: Path, name: str, config: MkDocsConfig, files: Files) -> str:
    """Puts a file, or the list of a folder's files, on the site, as .txt: browsers show that instead of saving it."""
    uri = f"repository/{name}.txt"
    if files.get_file_from_path(uri) is None:
        content = "\n".join(sorted(os.listdir(target))) if target.is_dir() else target.read_bytes()
        files.append(File.generated(config, uri, content=content))
    return uri
