import base64
import io
import os
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from aligngpt.reports.figures import (
    INK,
    Line,
    accuracy_curve,
    gate_heat_map,
    level_colours,
    loss_curve,
    score_histogram,
    to_svg,
    wrong_share_bars,
)
from aligngpt.reports.thumbnails import THUMBNAIL_PIXELS, thumbnail


def opened(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_each_level_has_its_own_colour() -> None:
    assert len(set(level_colours(8))) == 8
    assert len(level_colours(1)) == 1


def test_histogram_is_cut_at_the_borders() -> None:
    scores = np.random.default_rng(0).normal(size=500)
    axes = score_histogram(scores.tolist(), [-0.31, 0.47]).axes[0]
    colours = level_colours(3)
    for bar in bars(axes):
        level = np.searchsorted([-0.31, 0.47], bar.get_x() + bar.get_width() / 2)
        assert bar.get_facecolor()[:3] == pytest.approx(
            tuple(int(colours[level][i : i + 2], 16) / 255 for i in (1, 3, 5))
        )
    assert sorted(float(np.asarray(line.get_xdata())[0]) for line in axes.lines) == [-0.31, 0.47]


@pytest.mark.parametrize("scores", [[], [float("nan")], [0.2] * 9, [float("inf"), 0.1, 0.3]])
def test_histogram_of_odd_scores_is_drawn(scores: list[float]) -> None:
    assert to_svg(score_histogram(scores, [0.15]), "scores", "odd").startswith("<svg")


def test_bars_are_the_shares() -> None:
    axes = wrong_share_bars([0.75, 0.25, 0.0]).axes[0]
    assert [bar.get_height() for bar in bars(axes)] == [0.75, 0.25, 0.0]


def test_loss_curve_smooths_long_runs_only_and_passes_over_gaps() -> None:
    (line,) = loss_curve([1, 2, 3], [3.0, 2.0, 1.0]).axes[0].lines
    assert np.asarray(line.get_ydata()).tolist() == [3.0, 2.0, 1.0]
    losses = [2.0] * 90
    losses[40] = float("nan")
    _, smooth = loss_curve(list(range(90)), losses).axes[0].lines
    assert np.asarray(smooth.get_ydata()) == pytest.approx([2.0] * 90)


def test_a_reference_is_dashed_behind_and_named() -> None:
    for axes in (
        loss_curve([1, 2], [3.0, 2.0], Line([1, 2, 3], [3.5, 2.5, 1.5])).axes[0],
        accuracy_curve([1, 2], [0.3, 0.4], Line([1, 2, 3], [0.2, 0.5, 0.9])).axes[0],
    ):
        behind, own = axes.lines
        assert np.asarray(behind.get_xdata()).tolist() == [1, 2, 3]
        assert (behind.get_linestyle(), own.get_linestyle()) == ("--", "-")
        legend = axes.get_legend()
        assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["reference", "this run"]
    assert loss_curve([1, 2], [3.0, 2.0]).axes[0].get_legend() is None


def test_heat_map_shows_every_weight_and_a_dash_where_there_is_none() -> None:
    nan = float("nan")
    axes = gate_heat_map(["colour", "none"], [[0.7, 0.3], [nan, nan]], [12, 0]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.70", "0.30", "–", "–"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["colour (12)", "none (0)"]


def test_labels_are_text_and_never_formulas_or_markup() -> None:
    hostile = "$\\frac$</svg>&"
    svg = to_svg(gate_heat_map([hostile, "猫"], [[1.0], [1.0]], [1, 1]), "gate", 'say "<b>"')
    root = ElementTree.fromstring(svg)
    words = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {f"{hostile} (1)", "猫 (1)"} <= words
    assert root.get("aria-label") == 'say "<b>"'


def test_svg_has_the_colour_of_its_page_and_ids_of_its_own() -> None:
    svg = to_svg(loss_curve([1, 2], [1.0, 0.5]), "first", "A curve.")
    assert "currentColor" in svg and INK not in svg
    root = ElementTree.fromstring(svg)
    ids = {element.get("id") for element in root.iter()} - {None}
    assert ids and all(str(name).startswith("first-") for name in ids)
    for element in root.iter():
        for value in element.attrib.values():
            if "url(#" in value:
                assert value.partition("url(#")[2].partition(")")[0] in ids
        for key, value in element.attrib.items():
            if key.endswith("href"):
                assert value.removeprefix("#") in ids


def test_thumbnail_is_small_and_keeps_the_shape(tmp_path: Path) -> None:
    Image.effect_noise((800, 400), 60).save(tmp_path / "big.jpg")
    small = thumbnail(tmp_path / "big.jpg")
    assert small.address.startswith("data:image/jpeg;base64,")
    assert (small.width, small.height) == opened(small.address).size == (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS // 2)


def test_thumbnail_of_a_small_picture_is_not_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (9, 5), "red").save(tmp_path / "tiny.png")
    assert opened(thumbnail(tmp_path / "tiny.png").address).size == (9, 5)


def test_transparent_is_white_and_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert opened(thumbnail(tmp_path / "clear.png").address).convert("RGB").getpixel((1, 1)) == (
        255,
        255,
        255,
    )
    Image.fromarray(np.full((4, 4), 60000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert opened(thumbnail(tmp_path / "deep.png").address).convert("RGB").getpixel((1, 1)) == (233, 233, 233)


def test_a_picture_that_cannot_be_opened_becomes_a_reason(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(noise, "png")
    (tmp_path / "cut.png").write_bytes(noise.getvalue()[:900])
    os.mkfifo(tmp_path / "pipe")
    reasons = {
        name: thumbnail(tmp_path / name).problem
        for name in ("text.png", "empty.png", "cut.png", "pipe", "gone.png", "n" * 5000)
    }
    assert reasons["text.png"] == reasons["empty.png"] == "not an image"
    assert reasons["pipe"] == "not a file" and reasons["gone.png"] == "no such file"
    assert reasons["cut.png"].startswith("unreadable") and reasons["n" * 5000].startswith("unreadable")


def test_a_picture_too_large_to_decode_is_left_alone(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert thumbnail(tmp_path / "bomb.png").problem == "too large an image"
