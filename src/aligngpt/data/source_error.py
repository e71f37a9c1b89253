"""The error of a file that cannot be read, for all who read files."""

from aligngpt.errors import AlignGPTError


class SourceError(AlignGPTError):
    """A file of records cannot be read at all."""
