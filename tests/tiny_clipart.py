"""A small invented library of drawings, laid out as Debian's packages of the Open Clip Art Library unpack it."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

PUBLIC_DOMAIN = "http://web.resource.org/cc/PublicDomain"
_WORDS = """
animals: cat wolf horse tiger zebra camel sheep goat mouse rabbit bear lion otter badger whale
food: apple bread cheese lemon onion potato pizza salad soup sugar melon grape carrot pepper honey
tools: hammer wrench ladder shovel needle pencil broom bucket anchor magnet compass lantern rope saw axe
plants: tulip rose daisy cactus fern maple pine willow orchid poppy clover ivy moss lotus violet
"""
FOLDERS = {line.split(": ")[0]: line.split(": ")[1].split() for line in _WORDS.strip().splitlines()}


def add_drawing(
    library: Path,
    path: str,
    title: str,
    keywords: Sequence[str] = (),
    *,
    creator: str = "Ann Author",
    licence: str = PUBLIC_DOMAIN,
    picture: Image.Image | None = None,
) -> None:
    """Add an SVG with its metadata and a PNG; without a picture, one that the path determines."""
    items = "".join(f"<rdf:li>{escape(keyword)}</rdf:li>" for keyword in keywords)
    svg = library / "svg" / f"{path}.svg"
    svg.parent.mkdir(parents=True, exist_ok=True)
    svg.write_text(
        '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f"<title>the page</title><metadata><rdf:RDF><cc:Work><dc:title>{escape(title)}</dc:title>"
        f"<dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>"
        f"<dc:publisher><cc:Agent><dc:title>A Library</dc:title></cc:Agent></dc:publisher>"
        f"<dc:creator><cc:Agent><dc:title>{escape(creator)}</dc:title></cc:Agent></dc:creator>"
        f'<cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata><!-- a comment --></svg>',
        encoding="utf-8",
    )
    png = library / "png" / f"{path}.png"
    png.parent.mkdir(parents=True, exist_ok=True)
    (picture or _spots(path)).save(png)


def _spots(path: str) -> Image.Image:
    pixels = np.random.default_rng(list(path.encode())).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((30, 30), Image.Resampling.NEAREST).convert("RGBA")


def tiny_library(library: Path) -> Path:
    """Sixty drawings in four folders; every fifth has a title that several others have too."""
    for place, (folder, name) in enumerate((folder, name) for folder, names in FOLDERS.items() for name in names):
        title = "Various Cliparts" if place % 5 == 4 else name.title()
        add_drawing(library, f"{folder}/{name}_ann_auth_01", title, [folder[:-1], "hash(0x8a0)"])
    return library
