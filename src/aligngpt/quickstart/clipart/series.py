"""Series of drawings: what one author drew many times with small changes stays in one split."""

import hashlib
from collections.abc import Sequence

from aligngpt.quickstart.clipart.drawings import Drawing
from aligngpt.quickstart.clipart.wording import name_of, words_of

SHARES = {"captions": 0.35, "encoder": 0.35, "train": 0.15, "test": 0.15}
"""Share of the series of each split."""

LARGE = 30
"""Series of more drawings are never in `train` or `test`, which would be about little else."""


def series_of(drawings: Sequence[Drawing], looks: Sequence[bytes]) -> list[str]:
    """The name of the series of each drawing.

    Two drawings are in one series if they have the same author and the same first word in their file names (numbers
    left out), or look the same; and so are all that are connected in this way.

    Args:
        drawings: all drawings.
        looks: a hash of what each looks like.
    """
    parents = list(range(len(drawings)))

    def first(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    names = []
    seen: dict[object, int] = {}
    for place, (drawing, look) in enumerate(zip(drawings, looks, strict=True)):
        name = (name_of(drawing).split() or [drawing.stem])[0]
        author = " ".join(words_of(" ".join(drawing.creators[:1])))
        names.append(f"{author}/{name}")
        for key in (names[-1], look):
            one, other = first(seen.setdefault(key, place)), first(place)
            parents[max(one, other)] = min(one, other)
    return [names[first(place)] for place in range(len(drawings))]


def split_of(series: str, drawings: int, seed: int) -> str:
    """The split of all drawings of a series, from a hash of its name.

    Args:
        series: its name.
        drawings: how many there are.
        seed: other seeds give other splits.
    """
    digest = hashlib.sha256(f"{seed}/{series}".encode()).digest()
    shares = SHARES if drawings <= LARGE else {split: SHARES[split] for split in ("captions", "encoder")}
    place = int.from_bytes(digest[:8], "big") / 2**64 * sum(shares.values())
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return "captions"
