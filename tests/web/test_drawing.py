"""What is drawn: the bars' lengths, the colours' places, and the picture as the model sees it."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from aligngpt.inference.engine import Engine, Request
from aligngpt.web.drawing import gate_bars, highlighted, seen_by_model


def test_bars_are_as_long_as_their_weights() -> None:
    html = gate_bars([0.5, 0.25, 0.25], True)
    assert re.findall(r'bar" style="width:([\d.]+)%', html) == ["100.00", "50.00", "50.00"]
    assert "left:66.67%" in html and "Level 4 (the whole image)" in html
    assert "whole image" not in gate_bars([0.5, 0.5], False)


def test_the_best_match_is_brightest_in_its_place() -> None:
    cosines = np.array([[0.1, 0.1], [0.9, 0.1]], dtype=np.float32)
    drawn = np.asarray(highlighted(Image.new("RGB", (40, 20), "gray"), cosines)).sum(axis=2)
    assert drawn.shape == (192, 384)
    assert drawn[144, 96] > drawn[48, 96] == drawn[48, 288] == drawn[144, 288]
    assert np.ptp(np.asarray(highlighted(Image.new("RGB", (8, 8)), np.ones((2, 2))))[..., 0]) == 0


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_the_drawn_picture_is_what_the_model_gets(assembled: Callable, tower: str) -> None:
    half = Image.new("RGB", (32, 32), "red")
    half.paste("blue", (16, 0, 32, 32))
    with Engine(*assembled(tower=tower)) as engine:
        seen = np.asarray(seen_by_model(engine, Request.ask("what ?", half))).astype(int)
    assert abs(seen - np.asarray(half).astype(int)).max() <= 2
