"""Which members of a tar file in the WebDataset layout form one sample: those whose names differ only in the extension.

The name ends at its first dot, or at its last if no known extension follows the first, as in `22.01.jpg`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aligngpt.data.images.reference import Picture
from aligngpt.data.images.suffixes import IMAGE_SUFFIXES
from aligngpt.data.sources.tar_members import BrokenTar, Member, read_members

PICTURES = IMAGE_SUFFIXES | {"img"}
TEXTS = frozenset({"cap", "caption", "text", "txt"})
MAX_TEXT = 16 << 20
"""Longest caption file read, in bytes."""

# The base name extends to its first dot and is not empty (hidden files are not samples).
_NAME = re.compile(r"(?P<key>(?:.*/)?[^/.]+)(?:\.(?P<extension>[^/]+))?", re.DOTALL)


@dataclass(slots=True)
class TarSample:
    """The members with one key.

    Attributes:
        key: their name without the extension.
        pictures: the images.
        text: the content of the first text.
        texts: the names of the texts with different contents; if there are several, none of them is the caption.
        json: the content of the `.json`.
        others: the names of all members if none of them is an image or a text.
        links: the names of images and texts that are links and cannot be followed; if there are any, the others are
            left out.
    """

    key: str
    pictures: list[Picture] = field(default_factory=list)
    text: bytes | None = None
    texts: list[str] = field(default_factory=list)
    json: bytes | None = None
    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    @property
    def has_text(self) -> bool:
        """Whether it has a text or a `.json`."""
        return self.text is not None or self.json is not None

    @property
    def is_whole(self) -> bool:
        """Whether it has an image and a text."""
        return bool(self.pictures) and self.has_text


def tar_samples(path: Path) -> Iterator[TarSample | BrokenTar]:
    """Yield the samples of a tar file; where the file breaks off, only complete samples.

    Members that do not form a pair are yielded as a sample too, so that every member is accounted for.
    """
    key, entries = "", list[_Entry]()
    # Of the entries: their names, and the kinds of those with content.
    names, kinds = set[str](), set[str]()
    for member in read_members(path):
        if isinstance(member, BrokenTar):
            yield from (sample for sample in _samples(key, entries) if sample.is_whole)
            yield member
            return
        if (parts := _NAME.fullmatch(member.name.removeprefix("./"))) is None:
            continue
        # In concatenated tar files, two samples of one name may follow each other.
        is_again = member.name in names and "picture" in kinds and len(kinds) > 1
        if parts["key"] != key or is_again:
            yield from _samples(key, entries)
            key, entries, names, kinds = parts["key"], [], set(), set()
        entry = _entry(member, parts["extension"] or "", path)
        entries.append(entry)
        names.add(entry.name)
        if entry.content is not None:
            kinds.add(entry.kind)
    yield from _samples(key, entries)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A member of a group with the same name up to the first dot.

    Attributes:
        name: its name.
        stem: its name without the last extension.
        is_plain: whether everything after the first dot is a known extension.
        content: an image, the bytes of a `text` or `json` of up to `MAX_TEXT` bytes, or None for anything else.
        kind: `picture`, `text`, `json` or empty.
        is_link: whether it is a link that cannot be followed.
    """

    name: str
    stem: str
    is_plain: bool
    kind: str
    content: Picture | bytes | None
    is_link: bool = False


def _entry(member: Member, extension: str, path: Path) -> _Entry:
    stem, _, last = member.name.removeprefix("./").rpartition(".")
    kind = _kind(last.lower()) if extension else ""
    content: Picture | bytes | None = None
    if member.is_link:
        return _Entry(member.name, stem, bool(_kind(extension.lower())), kind, None, is_link=True)
    if kind == "picture":
        content = Picture(f"{member.name} in {path}", path=path, offset=member.offset, length=member.size)
    elif kind:
        content = member.read() if member.size <= MAX_TEXT else None
    return _Entry(member.name, stem, bool(_kind(extension.lower())), kind, content)


def _kind(extension: str) -> str:
    if extension in PICTURES:
        return "picture"
    return "text" if extension in TEXTS else "json" if extension == "json" else ""


def _samples(key: str, entries: Sequence[_Entry]) -> Iterator[TarSample]:
    """Yield the samples of adjacent members with the same name up to the first dot."""
    if linked := _linked(key, entries):
        yield from (TarSample(stem, links=names) for stem, names in linked.items())
        entries = [entry for entry in entries if entry.stem not in linked and not (entry.kind and entry.is_link)]
    plain = _sample(key, [entry for entry in entries if entry.is_plain])
    by_stem: dict[str, list[_Entry]] = {}
    for entry in entries:
        if entry.kind and not entry.is_plain:
            by_stem.setdefault(entry.stem, []).append(entry)
    dotted = {stem: _sample(stem, found) for stem, found in by_stem.items()}
    pairs = [sample for sample in dotted.values() if sample.is_whole]
    loose = [entry for stem, found in by_stem.items() if not dotted[stem].is_whole for entry in found]
    # A sample may have further members, such as `0.mask.png` beside `0.jpg` and `0.txt`.
    if not plain.is_whole:
        # `0.input.jpg` and `0.output.txt`, or `0.jpg` and `0.output.txt`, belong together.
        lacking = [entry for entry in loose if not (plain.pictures if entry.kind == "picture" else plain.has_text)]
        joined = _sample(key, [*(entry for entry in entries if entry.is_plain), *lacking])
        is_clear = len(joined.pictures) == 1 and sum(entry.kind == "text" for entry in lacking) <= 1
        if joined.is_whole and (is_clear or plain.pictures or plain.has_text):
            plain = joined
        else:
            pairs += [sample for sample in dotted.values() if not sample.is_whole]
    if plain.pictures or plain.has_text:
        yield plain
    elif not pairs and entries:
        yield TarSample(key, others=[entry.name for entry in entries])
    yield from pairs


def _linked(key: str, entries: Sequence[_Entry]) -> dict[str, list[str]]:
    """The links that leave a sample incomplete, by its name; a complete sample may have links as further members."""
    links = [entry for entry in entries if entry.kind and entry.is_link]
    is_whole = bool(links) and _sample(key, [entry for entry in entries if entry.is_plain]).is_whole
    found: dict[str, list[str]] = {}
    for entry in links:
        if entry.is_plain or not is_whole:
            found.setdefault(entry.stem, []).append(entry.name)
    return found


def _sample(key: str, entries: Sequence[_Entry]) -> TarSample:
    sample = TarSample(key)
    texts: set[bytes] = set()
    for entry in entries:
        if isinstance(entry.content, Picture):
            sample.pictures.append(entry.content)
        elif entry.kind == "text" and entry.content is not None:
            if sample.text is None:
                sample.text = entry.content
            if (text := entry.content.strip()) not in texts:
                texts.add(text)
                sample.texts.append(entry.name)
        elif entry.kind == "json" and sample.json is None:
            sample.json = entry.content
    return sample
