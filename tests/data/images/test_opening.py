"""Every kind of image found in the wild becomes RGB, or raises an error that names it."""

import io
import os
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin, features

from aligngpt.data.images.opening import FORMATS, IMAGE_REASONS, ImageError, check_image, open_image, resolve_image

WHITE = (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    return Image.effect_noise(size, 80).convert(mode)


def reason_of(open_it: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        open_it()
    assert caught.value.reason in IMAGE_REASONS
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_rgb_picture_of_every_format_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encoded(Image.new("RGB", (7, 5), (200, 100, 50)), kind))
    for source in (path, path.read_bytes(), path.open("rb")):
        image = open_image(source)
        assert (image.mode, image.size) == ("RGB", (7, 5))
        np.testing.assert_allclose(image.getpixel((3, 2)), (200, 100, 50), atol=3)
    check_image(path)


def test_a_format_nobody_means_is_no_picture() -> None:
    assert reason_of(lambda: open_image(encoded(noise(), "EPS")))[0] == "not_an_image"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot read AVIF")
def test_avif_is_read_where_pillow_can() -> None:
    assert "AVIF" in FORMATS


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000"),
        (b"\xff\x4f\xff\x51\0", "a JPEG 2000"),
        (b"\0\0\0\x18ftypheic", "a HEIC"),
        (b"\0\0\0\x0cJXL \r\n", "a JPEG XL"),
        (b"%PDF-1.7", "a PDF"),
        (b"<svg xmlns", "an SVG"),
    ],
)
def test_an_unsupported_format_is_named_with_what_to_do(content: bytes, what: str) -> None:
    reason, message = reason_of(lambda: open_image(content + bytes(100)))
    assert reason == "not_an_image"
    assert message.endswith(f"is {what} image, which is not supported; convert it to PNG or JPEG")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot read AVIF")
def test_an_avif_is_unsupported_only_where_it_is_not_read() -> None:
    whole = encoded(noise(), "AVIF")
    assert "is an AVIF image, which is not supported" in reason_of(lambda: open_image(whole, formats=["PNG"]))[1]
    assert "not supported" not in reason_of(lambda: open_image(whole[:200]))[1]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_opened_in_its_colours(kind: str) -> None:
    image = open_image(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), kind))
    assert image.mode == "RGB"
    np.testing.assert_allclose(image.getpixel((4, 4)), (0, 255, 255), atol=3)


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 90, 90), ("1", 1, 255), ("P", 0, 0)])
def test_greyscale_bilevel_and_palette_are_opened(mode: str, value: int, expected: int) -> None:
    image = open_image(encoded(Image.new(mode, (3, 3), value)))
    assert (image.mode, image.getpixel((1, 1))) == ("RGB", (expected,) * 3)


@pytest.mark.parametrize(("mode", "ink"), [("LA", (0, 0)), ("RGBA", (0, 0, 0, 0))])
def test_transparent_parts_become_white(mode: str, ink: tuple[int, ...]) -> None:
    picture = Image.new(mode, (4, 4), ink)
    picture.putpixel((1, 1), (*ink[:-1], 255))
    image = open_image(encoded(picture))
    assert (image.mode, image.getpixel((0, 0)), image.getpixel((1, 1))) == ("RGB", WHITE, (0, 0, 0))


def test_half_transparent_parts_are_half_white() -> None:
    assert open_image(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_becomes_white(kind: str) -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 0)
    image = open_image(encoded(picture, kind, transparency=1))
    assert (image.mode, image.getpixel((0, 0)), image.getpixel((3, 3))) == ("RGB", (255, 0, 0), WHITE)


@pytest.mark.parametrize(("mode", "key"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_colour_becomes_white(mode: str, key: Any) -> None:
    picture = Image.new(mode, (4, 4), key)
    picture.putpixel((1, 1), 0)
    image = open_image(encoded(picture, transparency=key))
    assert (image.getpixel((0, 0)), image.getpixel((1, 1))) == (WHITE, (0, 0, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    image = open_image(encoded(Image.fromarray(values), kind))
    assert image.mode == "RGB"
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 100, 255]


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        image = open_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert (image.mode, image.getpixel((3, 3))) == ("RGB", (255, 0, 0)), kind


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (5, 3)), (6, (3, 0)), (8, (0, 5))])
def test_exif_orientation_is_applied(orientation: int, corner: tuple[int, int]) -> None:
    picture = Image.new("RGB", (6, 4), "black")
    picture.putpixel((0, 0), WHITE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(picture, exif=exif))
    assert image.size == ((4, 6) if orientation > 4 else (6, 4))
    assert image.getpixel(corner) == WHITE
    # Not turned once more by a reader of the opened image.
    assert ImageOps.exif_transpose(image).size == image.size


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag, kind, count) + value.ljust(4, b"\0")


@pytest.mark.parametrize(
    "odd",
    [
        entry(282, 2, 4, b"72\0"),
        entry(530, 2, 4, b"ab\0"),
        entry(296, 5, 1, struct.pack("<L", 38)) + struct.pack("<LLL", 0, 2, 1),
        entry(256, 2, 4, b"60\0"),
    ],
    ids=["a resolution as text", "a sampling as text", "a unit as a ratio", "a width as text"],
)
def test_a_picture_with_a_wrongly_typed_exif_tag_is_opened_upright(odd: bytes) -> None:
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + entry(274, 3, 1, b"\6") + odd
    picture = encoded(noise((60, 40)), "JPEG", exif=exif + bytes(4) * (len(odd) == 12))
    check_image(picture)
    assert open_image(picture).size == (40, 60)


@pytest.mark.parametrize("error", [TypeError, RuntimeError, struct.error, KeyError])
@pytest.mark.parametrize("at", ["open", "load"])
def test_whatever_a_decoder_raises_is_an_image_error(
    error: type[Exception], at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = encoded(noise())

    def broken(*_: object, **__: object) -> None:
        raise error("inside the decoder")

    monkeypatch.setattr(Image if at == "open" else PngImagePlugin.PngImageFile, at, broken)
    reason, message = reason_of(lambda: open_image(picture))
    assert reason == "unreadable"
    assert "inside the decoder" in message


@pytest.mark.parametrize("size", [(1, 1), (200, 1), (1, 200), (16_384, 100)])
def test_extreme_shapes_are_opened(size: tuple[int, int]) -> None:
    assert open_image(encoded(Image.new("RGB", size))).size == size


@pytest.mark.parametrize(
    ("size", "limit"), [((201, 1), "200 times"), ((1, 20_000), "200 times"), ((1_080, 16_385), "may have 16384")]
)
def test_a_shape_that_an_image_processor_blows_up_is_refused(size: tuple[int, int], limit: str, tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    path.write_bytes(encoded(Image.new("1", size)))
    for look in (open_image, check_image):
        reason, message = reason_of(lambda look=look: look(path))
        assert reason == "too_large"
        assert f"{path} has {size[0]} × {size[1]} pixels" in message and limit in message


def test_a_missing_picture_is_rejected_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file.jpg").touch()
    for path in (tmp_path / "gone.jpg", tmp_path / "file.jpg" / "inside.jpg"):
        for look in (open_image, check_image):
            assert reason_of(lambda look=look, path=path: look(path)) == ("missing", f"{path} does not exist")


def test_an_empty_file_is_rejected_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    assert reason_of(lambda: open_image(path)) == ("empty", f"{path} is empty")
    assert reason_of(lambda: check_image(path))[0] == "empty"
    assert reason_of(lambda: open_image(b""))[0] == "empty"


def test_a_text_file_named_jpg_is_rejected_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("no picture at all")
    for look in (open_image, check_image):
        reason, message = reason_of(lambda look=look: look(path))
        assert reason == "not_an_image"
        assert str(path) in message and "JPEG" in message


def test_a_folder_is_rejected_with_its_reason(tmp_path: Path) -> None:
    assert reason_of(lambda: open_image(tmp_path)) == ("not_an_image", f"{tmp_path} is a folder")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "PPM"])
def test_a_truncated_picture_is_rejected_with_its_reason(tmp_path: Path, kind: str) -> None:
    whole = encoded(noise(), kind)
    path = tmp_path / "cut"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    reason, message = reason_of(lambda: open_image(path))
    assert reason == "truncated"
    assert str(path) in message and "cut short" in message


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_a_picture_cut_anywhere_opens_or_is_an_image_error(kind: str) -> None:
    whole = encoded(noise((16, 12)), kind)
    for length in range(0, len(whole), 7):
        try:
            assert open_image(whole[:length]).mode == "RGB"
        except ImageError as error:
            assert "the image" in str(error)


def test_too_large_a_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(encoded(Image.new("1", (100, 81)))[:60])
    for look in (open_image, check_image):
        reason, message = reason_of(lambda look=look: look(path, max_pixels=8000))
        assert reason == "too_large"
        assert message == f"{path} has 100 × 81 pixels; the limit is 8000"
    check_image(path, max_pixels=8100)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    end = b"IDAT"
    path = tmp_path / "bomb.png"
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, end)]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    reason, message = reason_of(lambda: open_image(path))
    assert reason == "too_large"
    assert str(path) in message


def test_a_name_inside_the_root_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert resolve_image("a/../b/c.jpg", tmp_path / "root").resolve() == tmp_path / "real" / "b" / "c.jpg"
    (tmp_path / "real" / "near.jpg").symlink_to("b/c.jpg")
    assert resolve_image("near.jpg", tmp_path / "real") == tmp_path / "real" / "near.jpg"


def test_a_root_that_is_linked_anew_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        root.unlink(missing_ok=True)
        root.symlink_to(tmp_path / name)
        assert resolve_image("a.jpg", root).resolve() == tmp_path / name / "a.jpg"
    for name in ("old", "new"):
        monkeypatch.chdir(tmp_path / name)
        (tmp_path / name / "here").mkdir()
        assert resolve_image("a.jpg", Path("here")).resolve() == tmp_path / name / "here" / "a.jpg"
        assert reason_of(lambda: resolve_image("../a.jpg", Path("here")))[0] == "outside_root"


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "out.jpg", "out/x.jpg", "a\0.jpg", "\ud83d.jpg"]
)
def test_a_name_outside_the_root_is_rejected_with_its_reason(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.jpg").touch()
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "out").symlink_to(tmp_path)
    reason, message = reason_of(lambda: resolve_image(name, root))
    assert reason == "outside_root"
    assert repr(name) in message and str(root) in message


def test_an_absolute_name_below_the_root_is_resolved(tmp_path: Path) -> None:
    assert resolve_image(str(tmp_path / "a.jpg"), tmp_path) == tmp_path / "a.jpg"
    assert resolve_image(str(tmp_path / "a.jpg"), Path("/")) == tmp_path / "a.jpg"
    assert reason_of(lambda: resolve_image(str(tmp_path / "a.jpg"), tmp_path / "b"))[0] == "outside_root"


def test_a_link_that_leads_out_of_the_root_is_named(tmp_path: Path) -> None:
    for name in ("root", "disk"):
        (tmp_path / name).mkdir()
    (tmp_path / "root" / "coco").symlink_to(tmp_path / "disk")
    _, message = reason_of(lambda: resolve_image("coco/0.jpg", tmp_path / "root"))
    assert f"{tmp_path / 'root' / 'coco'} is a symbolic link to {tmp_path / 'disk'}" in message
    assert "symbolic link" not in reason_of(lambda: resolve_image("../disk/0.jpg", tmp_path / "root"))[1]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("<!DOCTYPE html>\n<html>404</html>", "web page"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_was_never_fetched_is_named(content: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text(content)
    for source in (tmp_path / "a.jpg", content.encode()):
        reason, message = reason_of(lambda source=source: check_image(source))
        assert reason == "not_an_image" and found in message


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_dark_16_bit_picture_stays_dark(kind: str) -> None:
    image = open_image(encoded(Image.fromarray(np.full((2, 2), 255, dtype=np.uint16)), kind))
    assert image.getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("white", [1, 255, 65535, 1e6])
def test_floats_are_scaled_by_their_range(white: float) -> None:
    values = np.array([[0, 0.5, 1, np.nan]], dtype=np.float32) * white
    image = open_image(encoded(Image.fromarray(values.astype(np.float32)), "TIFF"))
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 0]


def test_16_bit_grey_is_converted_a_few_rows_at_a_time() -> None:
    content = encoded(Image.fromarray(np.full((1500, 2000), 30_000, dtype=np.uint16)))
    tracemalloc.start()
    try:
        image = open_image(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert image.getpixel((1999, 1499)) == image.getpixel((0, 0)) == (117, 117, 117)
    assert peak < 8 * 1500 * 2000


def test_looking_at_a_picture_leaves_the_warning_filters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    content, before, really_open = encoded(noise((2, 2))), list(warnings.filters), Image.open
    seen = []

    def opened(*args: Any, **options: Any) -> Image.Image:
        # The filters that another thread would see at this moment.
        seen.append(list(warnings.filters))
        return really_open(*args, **options)

    monkeypatch.setattr(Image, "open", opened)
    check_image(content)
    assert seen == [before]


@pytest.mark.parametrize("name", ["x" * 300, "loop", "a\0b", "\udcff\ud83d"])
def test_a_name_no_file_can_have_is_an_image_error(tmp_path: Path, name: str) -> None:
    os.symlink("loop", tmp_path / "loop")
    assert reason_of(lambda: check_image(tmp_path / name))[0] == "unreadable"
    assert reason_of(lambda: open_image(resolve_image(name, tmp_path)))[0] in ("outside_root", "unreadable")
