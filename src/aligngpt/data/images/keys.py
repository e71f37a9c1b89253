"""Keys by which images are known to be equal, from their names."""

import hashlib
from collections.abc import Sequence


def plain_name(name: str) -> str:
    """A path without what does not change it: `./` and double slashes. `..` stays, since it may follow a link."""
    parts = "/".join(part for part in name.split("/") if part not in ("", "."))
    return f"/{parts}" if name.startswith("/") else parts


def image_key(names: Sequence[str]) -> int:
    """A signed 64-bit hash of image names; equal for two ways to write the same path, such as `0.png` and `./0.png`."""
    text = "\0".join(plain_name(name) for name in names).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)
