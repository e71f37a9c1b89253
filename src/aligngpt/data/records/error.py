"""What is wrong with a record."""

from aligngpt.errors import AlignGPTError


class RecordError(AlignGPTError):
    """A record is no sample; `reason` is a short name of why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
