"""Pictures made to crash or exhaust a server: each is decoded or refused with our own words, and nothing else."""

import base64
import gzip
import io
import random
import struct
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aligngpt.serving import media
from aligngpt.serving.media import MediaError, MediaPolicy, pictures_from_urls

POLICY = MediaPolicy()
TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(content: bytes, kind: str = "PNG", policy: MediaPolicy = POLICY) -> Image.Image:
    return pictures_from_urls([f"data:{TYPES[kind]};base64,{base64.b64encode(content).decode()}"], policy)[0]


def refused(content: bytes, kind: str = "PNG") -> MediaError:
    with pytest.raises(MediaError) as caught:
        decode(content, kind)
    return caught.value


def noise(size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of_size(width: int, height: int, body: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 1), (100, 10_000), (10_000, 100), (3, 2)])
@pytest.mark.parametrize("kind", TYPES)
def test_extreme_shapes_are_decoded(size: tuple[int, int], kind: str) -> None:
    assert decode(encoded(Image.new("RGB", size, "red"), kind), kind).size == size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_png_becomes_rgb(mode: str) -> None:
    assert decode(encoded(Image.new(mode, (5, 4)))).mode == "RGB"


def test_cmyk_and_16_bits_keep_their_colours() -> None:
    cmyk = decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), "JPEG")
    np.testing.assert_allclose(cmyk.getpixel((4, 4)), (0, 255, 255), atol=3)
    deep = decode(encoded(Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16))))
    assert deep.getpixel((0, 0)) == (100, 100, 100)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decode(content, kind).getpixel((4, 4)), (255, 0, 0), atol=3)


@pytest.mark.parametrize(
    "size", [(20_000, 10_000), (2**31 - 1, 2**31 - 1), (1, 40_000_000), (10_001, 200), (1, 10_000), (101, 1)]
)
def test_a_header_of_too_many_pixels_is_refused_before_decoding(size: tuple[int, int]) -> None:
    error = refused(png_of_size(*size, zlib.compress(b"")))
    assert (error.status, error.code) == (413, "image_too_large")


def test_a_bomb_takes_no_memory() -> None:
    body = zlib.compress(bytes(3 * 9_000 * 5_000), 9)
    content = png_of_size(9_000, 5_000, body)
    tracemalloc.start()
    try:
        assert refused(content).status == 413
        assert tracemalloc.get_traced_memory()[1] < 10 * len(content)
    finally:
        tracemalloc.stop()


def test_the_canvas_of_webp_is_checked_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    assert content[12:16] == b"VP8X"
    content[24:30] = (16_382).to_bytes(3, "little") * 2

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(media, "open_image", opened)
    assert refused(bytes(content), "WEBP").code == "image_too_large"


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    content = encoded(noise(), "JPEG", progressive=True)
    assert decode(content, "JPEG").size == (40, 30)
    last = content.rindex(b"\xff\xda")
    scan = content[last:-2]
    error = refused(content[:-2] + scan * 2_000 + b"\xff\xd9", "JPEG")
    assert (error.code, "more than 100 scans" in error.message) == ("image_parse_error", True)


def test_what_follows_a_jpeg_is_not_counted_as_scans() -> None:
    assert decode(encoded(noise(), "JPEG") + b"\xff\xda\0\0" * 1_000, "JPEG").size == (40, 30)


def test_a_run_of_fill_bytes_is_read_once() -> None:
    content = b"\xff\xd8" + b"\xff" * 60_000 + b"\0"
    start = time.process_time()
    assert media._scans(content) == 0
    assert time.process_time() - start < 2
    jpeg = encoded(noise(), "JPEG", progressive=True)
    # Fill bytes before a marker are allowed.
    filled = jpeg.replace(b"\xff\xda", b"\xff" * 5 + b"\xda")
    assert media._scans(filled) == media._scans(jpeg) > 1


@pytest.mark.parametrize("kind", TYPES)
def test_a_file_cut_short_is_refused_in_our_own_words(kind: str) -> None:
    content = encoded(noise(), kind)
    error = refused(content[: len(content) // 2], kind)
    assert (error.status, error.code) == (400, "image_parse_error")
    assert error.message == "the image is damaged or cut short and cannot be decoded: save it again as PNG or JPEG"
    assert error.__cause__ is not None


def test_no_message_has_an_address_of_memory() -> None:
    for content in (b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + bytes(50), b"nothing"):
        message = refused(content).message
        assert not any(word in message for word in ("0x", "object at", "BytesIO", "identify"))


@pytest.mark.parametrize(
    "content",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"SIMPLE  =                    T" + bytes(2880),
        gzip.compress(b"SIMPLE  =                    T" + bytes(2880), mtime=0),
        b"II*\0" + bytes(50),
        b"BM" + bytes(60),
        b"P6\n1 1\n255\n\0\0\0",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
        b"\0\0\0\x1cftypavif" + bytes(50),
        b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50),
        b"\0\0\0\x20ftypisom" + bytes(50),
        b"RIFFftypWAVEfmt ",
        b"\x80\x04K\x01.",
        b"PK\x03\x04" + bytes(50),
    ],
)
def test_other_formats_are_refused_whatever_type_is_stated(content: bytes) -> None:
    for kind in TYPES:
        assert refused(content, kind).status == 415


def test_nothing_but_a_media_error_leaves() -> None:
    draw = random.Random(7)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    seeds = [(kind, encoded(noise((12, 9)), kind, **({"exif": exif} if kind != "GIF" else {}))) for kind in TYPES]
    seeds.append(("PNG", encoded(noise((12, 9)).convert("P"), transparency=3)))
    seeds.append(("JPEG", encoded(noise((12, 9)).convert("CMYK"), "JPEG", progressive=True)))
    outcomes = {"decoded": 0, "refused": 0}
    for _ in range(1_500):
        kind, content = draw.choice(seeds)
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(8 if kind == "PNG" else 3, len(damaged))
            match draw.randrange(3):
                case 0:
                    damaged[at] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
                case 1:
                    del damaged[at : at + draw.randint(1, 8)]
                case _:
                    damaged[at:at] = draw.randbytes(draw.randint(1, 8))
            if len(damaged) < 20:
                break
        try:
            picture = decode(bytes(damaged), kind, MediaPolicy(max_pixels=1_000_000))
        except MediaError as error:
            assert error.status in (400, 413, 415)
            outcomes["refused"] += 1
        else:
            assert picture.mode == "RGB"
            outcomes["decoded"] += 1
    for _ in range(300):
        with pytest.raises(MediaError):
            decode(draw.randbytes(draw.randint(1, 200)), draw.choice(list(TYPES)))
    assert min(outcomes.values()) > 50


def test_whatever_a_decoder_raises_is_a_media_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (struct.error("at 0x7f00"), KeyError("secret"), RecursionError(), MemoryError(), AttributeError("x")):

        def raising(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(Image, "open", raising)
        found = refused(b"\x89PNG\r\n\x1a\n" + bytes(50))
        assert found.code == "image_parse_error"
        assert "0x7f00" not in found.message
