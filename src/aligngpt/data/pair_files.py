"""What the sources of several files have in common."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from aligngpt.data.sources import SourceError


def files_fingerprint(files: Sequence[Path], folder: Path) -> str:
    """A hexadecimal number of the names, sizes and times of change of files, wherever their folder is.

    Raises:
        SourceError: a file is gone.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
        line = f"{path.relative_to(folder).as_posix()}\t{status.st_size}\t{status.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()
