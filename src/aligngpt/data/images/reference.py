"""A reference to an encoded image that another process or machine can open later."""

import io
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from aligngpt.data.images.opening import HEADER, ImageError, check_image, instead_of, open_image, remote_bytes
from aligngpt.data.sources.remote import RemotePath


@dataclass(frozen=True, slots=True)
class Picture:
    """Location of an image: a file, a byte range of a file (a tar member), or bytes from the record. Picklable.

    Attributes:
        name: display name for messages.
        path: the file it is in; None if `content` is given.
        offset: first byte of the image in the file.
        length: size in bytes; None means the whole file.
        content: the encoded image itself, if it came with the record.
    """

    name: str
    path: Path | None = None
    offset: int = 0
    length: int | None = None
    content: bytes | None = None

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            ImageError: it is missing, empty, truncated or unreadable.
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
        """Decode the image: upright, RGB, of a bounded size.

        Raises:
            ImageError: as `read`, or the content cannot be decoded (see `open_image`).
        """
        if self.path is not None and self.length is None and self.content is None:
            return open_image(self.path)
        return open_image(_NamedStream(self.read(), self.name))

    def check(self) -> None:
        """Check the header only, as `check_image` does.

        Raises:
            ImageError: see `check_image`.
        """
        if self.path is not None and self.length is not None and self.length > HEADER:
            # For a tar member, the first bytes usually suffice.
            with suppress(ImageError):
                check_image(replace(self, length=HEADER).read())
                return
        whole_file = self.path is not None and self.length is None and self.content is None
        check_image(self.path if whole_file and self.path else _NamedStream(self.read(), self.name))

    def _stored(self) -> bytes:
        if self.content is not None:
            return self.content
        if self.path is None:
            raise ImageError("missing", f"{self.name} has neither a file nor content")
        if isinstance(self.path, RemotePath):
            return remote_bytes(self.path, self.offset, self.length)
        try:
            with self.path.open("rb") as file:
                if self.length is None:
                    return file.read()
                # `read` allocates the requested size, which a damaged header may overstate, so limit it to the file.
                left = max(0, file.seek(0, io.SEEK_END) - self.offset)
                file.seek(self.offset)
                return file.read(min(self.length, left))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ImageError("missing", f"{self.path} does not exist{instead_of(self.path)}") from error
        except IsADirectoryError as error:
            raise ImageError("not_an_image", f"{self.path} is a folder") from error
        except (OSError, ValueError) as error:
            raise ImageError("unreadable", f"{str(self.path)!r} cannot be read: {error}") from error


class _NamedStream(io.BytesIO):
    """Bytes with a name for error messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name
