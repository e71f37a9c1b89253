"""Where the records of a source are written with their levels, unless another place is given."""

from pathlib import Path

from aligngpt.data.sources.remote import written_beside


def levels_file(source: str | Path) -> Path:
    """A JSON or JSON lines file beside the source; in the working directory if the source is at an address.

    Args:
        source: a file or folder of records that are not in an archive.
    """
    # `.` and `..` have no name of their own.
    path = Path(source) if Path(source).name not in ("", "..") else Path(source).resolve()
    plain = path.suffix in (".json", ".jsonl")
    name = f"{path.stem}-levels{path.suffix}" if plain else f"{path.name.partition('.')[0]}-levels.jsonl"
    return written_beside(path, name)
