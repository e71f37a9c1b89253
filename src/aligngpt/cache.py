"""Where what was worked out once is kept: a folder that may be removed at any time, and is then filled anew."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_folder

CACHE_VARIABLE = "ALIGNGPT_CACHE"


class CacheError(AlignGPTError):
    """The cache folder cannot be written."""


def cache_folder(kind: str) -> Path:
    """The folder that entries of a kind are kept in; nothing is made.

    It lies in `$ALIGNGPT_CACHE`, else in `$XDG_CACHE_HOME/aligngpt`, else in `~/.cache/aligngpt`.

    Args:
        kind: what is kept there; a folder name such as `samples`.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser().absolute() / kind
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths passed over.
    base = Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()
    return base / "aligngpt" / kind


@contextmanager
def cache_entry(path: Path) -> Iterator[Path]:
    """Make an entry, a folder below `cache_folder`, that appears only once everything in it was written.

    Yields a temporary folder to write into; on any error it is removed and `path` is left as it was.

    Raises:
        CacheError: the entry cannot be written. An OSError within the body is taken for this too.
    """
    try:
        with atomic_folder(path) as folder:
            yield folder
    except OSError as error:
        raise CacheError(
            f"the cache {path} cannot be written: {error.strerror or error}; make room there, or set {CACHE_VARIABLE} "
            "to a folder that can be written"
        ) from error
