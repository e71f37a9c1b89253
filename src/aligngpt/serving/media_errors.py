"""Why a picture that a client sent cannot be used, in our own words."""

from typing import Literal

from aligngpt.errors import AlignGPTError

Code = Literal[
    "empty_image_file",
    "failed_to_download_image",
    "image_file_too_large",
    "image_parse_error",
    "image_too_large",
    "invalid_base64_image",
    "invalid_image_url",
    "too_many_images",
    "unsupported_image_media_type",
]
STATUS: dict[Code, int] = {
    "image_file_too_large": 413,
    "image_too_large": 413,
    "too_many_images": 413,
    "unsupported_image_media_type": 415,
}
"""The HTTP status of each code; 400 where none is given."""


class MediaError(AlignGPTError):
    """A picture of a request cannot be used.

    Attributes:
        code: the code for OpenAI's error body.
        status: the HTTP status, 400, 413 or 415.
        message: for the client. It has nothing from a decoder, the network or the file system; those are in
            `__cause__`, for the log.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = STATUS.get(code, 400)
        self.message = message
