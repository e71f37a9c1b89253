"""Where a picture is, said so that another process or machine can open it later."""

import io
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from aligngpt.data.images.opening import ImageError, check_image, open_image

HEADER = 1 << 16
"""Bytes among which the header of most pictures is."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a picture is: a file, a stretch of a file (a tar member), or bytes that came with the record. Picklable.

    Attributes:
        name: as people know it, for messages.
        path: the file it is in; None when `content` is given.
        offset: first byte of the picture in the file.
        length: its bytes; None means the whole file.
        content: the encoded picture itself, where it came with the record.
    """

    name: str
    path: Path | None = None
    offset: int = 0
    length: int | None = None
    content: bytes | None = None

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            ImageError: it is missing, empty, cut short or unreadable.
        """
        found = self._stored()
        if not found:
            raise ImageError("empty", f"{self.name} is empty")
        if self.length is not None and len(found) < self.length:
            raise ImageError(
                "truncated", f"{self.name}: expected {self.length} bytes in {self.path}, found {len(found)}"
            )
        return found

    def open(self) -> Image.Image:
        """The decoded picture: upright, RGB, of a bounded size.

        Raises:
            ImageError: as `read`, or what it holds cannot be decoded (see `open_image`).
        """
        if self.path is not None and self.length is None and self.content is None:
            return open_image(self.path)
        return open_image(_NamedStream(self.read(), self.name))

    def check(self) -> None:
        """Look at its header only, as `check_image` does.

        Raises:
            ImageError: see `check_image`.
        """
        if self.path is not None and self.length is not None and self.length > HEADER:
            # Of what is read from a tar file, the beginning mostly does.
            with suppress(ImageError):
                check_image(replace(self, length=HEADER).read())
                return
        whole_file = self.path is not None and self.length is None and self.content is None
        check_image(self.path if whole_file and self.path else _NamedStream(self.read(), self.name))

    def _stored(self) -> bytes:
        if self.content is not None:
            return self.content
        if self.path is None:
            raise ImageError("missing", f"{self.name} has neither a file nor a content")
        try:
            with self.path.open("rb") as file:
                if self.length is None:
                    return file.read()
                # Asked for more than there is, `read` would set aside memory for what a damaged header claims.
                left = max(0, file.seek(0, io.SEEK_END) - self.offset)
                file.seek(self.offset)
                return file.read(min(self.length, left))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ImageError("missing", f"{self.path} does not exist") from error
        except IsADirectoryError as error:
            raise ImageError("not_an_image", f"{self.path} is a folder") from error
        except (OSError, ValueError) as error:
            raise ImageError("unreadable", f"{str(self.path)!r} cannot be read: {error}") from error


class _NamedStream(io.BytesIO):
    """Bytes with the name that error messages give them."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name
