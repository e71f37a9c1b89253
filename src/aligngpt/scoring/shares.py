"""Shares of a source's shards: several processes can each score one share into the same folder."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aligngpt.locks import FolderInUse, owned_folder
from aligngpt.scoring.score_files import ScoresError


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
            stack.enter_context(owned_folder(out / f".share-{index}-of-{count}", "score"))
        except FolderInUse as error:
            what = "these scores are" if share is None else f"the share {index}/{count} of these scores is"
            raise FolderInUse(f"{what} already being written into {out}: {error}") from error
        yield
