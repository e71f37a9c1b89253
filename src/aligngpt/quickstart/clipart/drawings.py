"""The drawings of the Open Clip Art Library and what their SVG files say about them."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_SVG_BYTES = 32_000_000
PUBLIC_DOMAIN = (
    "http://web.resource.org/cc/PublicDomain",
    "http://creativecommons.org/licenses/publicdomain",
)
LEFT_OUT = {
    "shapes/stars": "generated stars",
    "computer/icons": "application icons",
    "special/gradients": "gradients",
}
"""Folders whose drawings are not of things, with what they hold."""


@dataclass(frozen=True)
class Drawing:
    """A drawing as the library describes it.

    Attributes:
        path: below `svg` and `png`, without suffix and with forward slashes, such as `animals/birds/cigno_01`.
        title: with single spaces, otherwise as it is.
        keywords: as they are.
        creators: names of the authors.
        licence: address of the licence; empty if the file names none.
    """

    path: str
    title: str
    keywords: tuple[str, ...]
    creators: tuple[str, ...]
    licence: str

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def stem(self) -> str:
        return self.path.rpartition("/")[2]


def read_drawings(root: Path) -> tuple[list[Drawing], Counter[str]]:
    """The usable drawings in order of their paths, and how many were left out for which reason.

    Usable are drawings with a title and with a picture, whose file states that they are in the public domain.

    Args:
        root: has the folders `svg` and `png`.
    """
    usable: list[Drawing] = []
    left_out: Counter[str] = Counter()
    for file in sorted((root / "svg").rglob("*.svg")):
        path = file.relative_to(root / "svg").with_suffix("").as_posix()
        reason = next((what for start, what in LEFT_OUT.items() if path.startswith(f"{start}/")), None)
        drawing = None
        if reason is None:
            drawing = _read(file, path)
            reason = _why_not(drawing, root)
        if reason is not None:
            left_out[reason] += 1
        elif drawing is not None:
            usable.append(drawing)
    return usable, left_out


def _why_not(drawing: Drawing | None, root: Path) -> str | None:
    if drawing is None:
        return "unreadable SVG"
    if drawing.licence.rstrip("/") not in PUBLIC_DOMAIN:
        return "not stated to be in the public domain"
    if not drawing.title:
        return "without a title"
    if not (root / "png" / f"{drawing.path}.png").is_file():
        return "without a PNG"
    return None


def _read(file: Path, path: str) -> Drawing | None:
    """The metadata of an SVG file; None if it cannot be parsed."""
    try:
        if file.stat().st_size > MAX_SVG_BYTES:
            return None
        # expat (2.4.1 and later) limits the expansion of entities and fetches none from outside.
        tree = ElementTree.parse(file)
    except (OSError, ElementTree.ParseError, ValueError, LookupError):
        return None
    # The namespace of the metadata has changed over the years, so only local names are compared.
    work = next((element for element in tree.iter() if _name(element) == "Work"), None)
    if work is None:
        return Drawing(path, "", (), (), "")
    parts = {_name(element): element for element in reversed(work)}
    subject, creator, licence = parts.get("subject"), parts.get("creator"), parts.get("license")
    return Drawing(
        path,
        _text(parts.get("title")),
        tuple(_texts(subject, "li")),
        tuple(_texts(creator, "title")),
        "" if licence is None else next(iter(licence.attrib.values()), ""),
    )


def _name(element: ElementTree.Element) -> str:
    # The tag of a comment is a function.
    return str(element.tag).rpartition("}")[2]


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else " ".join((element.text or "").split())


def _texts(element: ElementTree.Element | None, name: str) -> Iterator[str]:
    if element is not None:
        yield from filter(None, (_text(one) for one in element.iter() if _name(one) == name))
