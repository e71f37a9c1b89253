"""What a data: URL must be, and that its picture is the one that training would see."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aligngpt.data.images.opening import open_image
from aligngpt.errors import AlignGPTError
from aligngpt.serving.media import MediaError, MediaPolicy, pictures_from_urls

POLICY = MediaPolicy()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def data_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def refused(url: str, policy: MediaPolicy = POLICY) -> MediaError:
    with pytest.raises(MediaError) as caught:
        pictures_from_urls([url], policy)
    assert caught.value.message == str(caught.value)
    return caught.value


def colourful(mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("JPEG", "image/jpg"), ("WEBP", "IMAGE/WEBP"), ("GIF", "image/gif")],
)
def test_each_format_is_decoded_as_in_training(kind: str, media_type: str) -> None:
    content = encoded(colourful(), kind)
    picture = pictures_from_urls([data_url(content, media_type).replace("data:", "Data:")], POLICY)[0]
    assert (picture.mode, picture.size) == ("RGB", (9, 6))
    np.testing.assert_array_equal(picture, open_image(content))


def test_orientation_and_transparency_are_as_in_training() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pictures_from_urls([data_url(encoded(colourful(), "JPEG", exif=exif), "image/jpeg")], POLICY)[0]
    assert turned.size == (6, 9)
    clear = pictures_from_urls([data_url(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0))))], POLICY)[0]
    palette = pictures_from_urls([data_url(encoded(Image.new("P", (2, 2), 0), transparency=0))], POLICY)[0]
    assert clear.getpixel((0, 0)) == palette.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "url",
    [
        "", "/etc/passwd", "picture.png", "./picture.png", "file:///etc/passwd", "FILE:/etc/passwd", "ftp://a.org/b.png",
        "http://a.org/b.png", "https://a.org/b.png", "//a.org/b.png", "gopher://a.org", "blob:x", "s3://bucket/key",
        "javascript:1", " data:image/png;base64,AAAA", "\0", "\ud800", "database",
    ],
)  # fmt: skip
def test_only_data_urls_by_default(url: str) -> None:
    error = refused(url)
    assert (error.status, error.code) == (400, "invalid_image_url")
    assert "data:" in error.message


@pytest.mark.parametrize("url", ["data:", "data:,AAAA", "data:image/png,AAAA", "data:image/png;charset=x;base64,AAAA"])
def test_a_data_url_has_a_type_and_base64(url: str) -> None:
    error = refused(url)
    assert error.code == "invalid_image_url"
    assert "data:TYPE;base64" in error.message


@pytest.mark.parametrize(
    "payload", ["A", "AAA", "AA=A", "AAAA====", "AA AA", "AAAA\n", "AAAA,AAAA", "AA-_", "é===", "\ud800AAA", "="]
)
def test_base64_is_read_strictly(payload: str) -> None:
    error = refused(f"data:image/png;base64,{payload}")
    assert (error.status, error.code) == (400, "invalid_base64_image")


@pytest.mark.parametrize(
    "media_type", ["", "text/html", "image/svg+xml", "application/pdf", "video/jpeg", "image/avif"]
)
def test_other_media_types_are_refused(media_type: str) -> None:
    error = refused(data_url(encoded(colourful()), media_type))
    assert (error.status, error.code) == (415, "unsupported_image_media_type")


def test_the_media_type_must_not_contradict_the_content() -> None:
    error = refused(data_url(encoded(colourful()), "image/jpeg"))
    assert error.status == 415
    assert "stated to be image/jpeg but its content is PNG" in error.message


def test_an_empty_file_is_named() -> None:
    assert refused("data:image/png;base64,").code == "empty_image_file"


def test_bytes_are_limited_exactly_and_before_decoding() -> None:
    content = encoded(colourful())
    for spare in range(4):
        pictures_from_urls([data_url(content)], MediaPolicy(max_bytes=len(content) + spare))
        assert refused(data_url(content), MediaPolicy(max_bytes=len(content) - 1 - spare)).status == 413
    # The text is not base64, which would be the error if it had been decoded.
    error = refused("data:image/png;base64," + "!" * 200, MediaPolicy(max_bytes=100))
    assert (error.status, error.code) == (413, "image_file_too_large")
    assert "100 bytes" in error.message


def test_pixels_sides_and_pictures_are_limited_for_a_request() -> None:
    url = data_url(encoded(colourful()))
    assert len(pictures_from_urls([url, url], MediaPolicy(max_pixels=108))) == 2
    assert refused(url, MediaPolicy(max_pixels=53)).code == "image_too_large"
    assert refused(url, MediaPolicy(max_side=8)).status == 413
    with pytest.raises(MediaError, match="together") as caught:
        pictures_from_urls([url, url], MediaPolicy(max_pixels=107))
    assert caught.value.status == 413
    with pytest.raises(MediaError, match="has 3 images; the limit is 2") as caught:
        pictures_from_urls(["broken"] * 3, MediaPolicy(max_pictures=2))
    assert (caught.value.status, caught.value.code) == (413, "too_many_images")


@pytest.mark.parametrize(
    "host", ["", "*", "*.a.org", "A.org", "a.org:443", "https://a.org", "127.0.0.1", "127.1", "::1", "a b"]
)
def test_a_policy_takes_plain_host_names_only(host: str) -> None:
    with pytest.raises(AlignGPTError, match="cannot be allowed as a host"):
        MediaPolicy(allow_hosts=(host,))


def test_limits_must_be_positive() -> None:
    with pytest.raises(AlignGPTError, match="max_bytes must be more than 0, not 0"):
        MediaPolicy(max_bytes=0)
