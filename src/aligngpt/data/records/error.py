"""The error for an invalid record."""

from aligngpt.errors import AlignGPTError


class RecordError(AlignGPTError):
    """A record is not a valid sample; `reason` is the short name of the reject."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
