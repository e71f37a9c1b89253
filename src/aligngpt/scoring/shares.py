"""Shares of a source's shards: several processes can each score one share into the same folder."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import gcd
from pathlib import Path

from aligngpt.locks import FolderInUse, folder_in_turn
from aligngpt.scoring.score_files import ScoresError

PATIENCE = 3.0
"""Seconds for which a lock may be held by a process that only checks whether its share is being scored."""

_LOCK_FOLDER = re.compile(r"\.share-([0-9]+)-of-([0-9]+)")


def parse_share(text: str) -> tuple[int, int]:
    """Parse a share of the shards, written `i/n`; see `score_source`.

    Raises:
        ScoresError: the text is not of this form, or i is not below n.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise ScoresError(f"expected a share of the shards i/n with i in 0…n-1, such as 0/4, found {text!r}")
    return int(found[1]), int(found[2])


@contextmanager
def owned_share(out: Path, share: tuple[int, int] | None) -> Iterator[None]:
    """Hold the lock of a share of the shards while the body runs; other processes may hold other shares.

    Each share has its lock in its own hidden folder, `.share-i-of-n` in `out`; see `owned_folder`.

    Args:
        out: folder of the scores; created if it is missing.
        share: `(i, n)`; None for all shards.

    Raises:
        FolderInUse: another process is scoring this share; the message names the process.
        OSError: the folder is not writable.
    """
    index, count = share or (0, 1)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_in_turn(out / f".share-{index}-of-{count}", "score", patience=PATIENCE))
        except FolderInUse as error:
            what = "these scores are" if share is None else f"the share {index}/{count} of these scores is"
            raise FolderInUse(f"{what} already being written into {out}: {error}") from error
        _check_others(out, index, count)
        yield


def _check_others(out: Path, index: int, count: int) -> None:
    """Check that no process is scoring a share of another division that has shards in common with share index/count.

    Raises:
        FolderInUse: there is one; both processes would write the same files.
    """
    for folder in sorted(out.glob(".share-*-of-*")):
        found = _LOCK_FOLDER.fullmatch(folder.name)
        if found is None or (other := (int(found[1]), int(found[2]))) == (index, count) or not other[1]:
            continue
        # A shard is in both shares if its number leaves the remainder of each: possible only if these agree.
        if (index - other[0]) % gcd(count, other[1]):
            continue
        try:
            with folder_in_turn(folder, "score", patience=PATIENCE):
                pass
        except FolderInUse as error:
            raise FolderInUse(
                f"the share {index}/{count} of these scores overlaps the share {other[0]}/{other[1]}, which is being "
                f"scored into {out}: {error}. All processes that score into one folder at the same time must use the "
                "same n in --shard i/n"
            ) from error
