"""Alignment's own measures: readers, likelihoods of a real engine, and numbers against direct computation."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aligngpt.data.images.reference import Picture
from aligngpt.evaluation.alignment_measures.caption_sets import (
    SUGARCREPE_KINDS,
    CaptionSet,
    sugarcrepe,
    whatsup,
    winoground,
)
from aligngpt.evaluation.alignment_measures.likelihoods import MeasureError, caption_likelihoods, yes_probabilities
from aligngpt.evaluation.alignment_measures.measures import (
    calibration,
    choices,
    dose_response,
    level_detector,
    yes_by_level,
)
from aligngpt.evaluation.benchmarks.folder import DataError
from aligngpt.inference.engine import Engine, Request


def test_sugarcrepe_is_read_from_its_release(tmp_path: Path) -> None:
    for kind in SUGARCREPE_KINDS:
        record = {"filename": "1.jpg", "caption": "a dog", "negative_caption": "a cat"}
        (tmp_path / f"{kind}.json").write_text(json.dumps({"0": record}))
    sets = sugarcrepe(tmp_path)
    assert [one.kind for one in sets] == list(SUGARCREPE_KINDS) and sets[0].captions == ("a dog", "a cat")
    assert sets[0].pictures[0].path == tmp_path / "val2017/1.jpg"
    (tmp_path / "add_att.json").write_text(json.dumps({"0": {"filename": "1.jpg", "caption": "a dog"}}))
    with pytest.raises(DataError, match="negative_caption"):
        sugarcrepe(tmp_path)


def test_winoground_and_whatsup_are_read_from_their_releases(tmp_path: Path) -> None:
    row = {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "a b", "caption_1": "b a"}
    (tmp_path / "examples.jsonl").write_text(json.dumps(row))
    (one,) = winoground(tmp_path)
    assert [picture.path.name for picture in one.pictures if picture.path] == ["ex_0_img_0.png", "ex_0_img_1.png"]
    for kind in ("controlled_images", "controlled_clevr"):
        rows = [{"image_path": f"data/{kind}/x.jpeg", "caption_options": ["on", "under"]}]
        (tmp_path / f"{kind}_dataset.json").write_text(json.dumps(rows))
    (tmp_path / "controlled_images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "controlled_images/x.jpeg")
    first, _ = whatsup(tmp_path)
    assert first.pictures[0].path == tmp_path / "controlled_images/x.jpeg" and first.captions == ("on", "under")


def test_likelihoods_are_those_of_the_engine(assembled: Callable, pictures: list, tmp_path: Path) -> None:
    pictures[0].save(tmp_path / "a.png")
    pictures[1].save(tmp_path / "b.png")
    one = CaptionSet("0", "", tuple(Picture(n, tmp_path / n) for n in ("a.png", "b.png")), ("a red circle", "two"))
    with Engine(*assembled()) as engine:
        (table,) = caption_likelihoods(engine, [one], [1, None], "describe please")
        assert table.shape == (2, 2, 2)
        direct = engine.likelihood(Request.ask("describe please", pictures[1], level=1), ["two"])[0][0]
        assert table[0, 1, 1] == pytest.approx(direct.log_probability, abs=1e-4)
        said = yes_probabilities(engine, [("is it red ?", one.pictures[0])], [None])
        yes, no = engine.likelihood(Request.ask("is it red ?", pictures[0]), ["Yes", "No"])[0]
        both = np.exp([yes.log_probability, no.log_probability])
        assert said[0, 0] == pytest.approx(both[0] / both.sum(), abs=1e-4)


def test_winogrounds_three_scores() -> None:
    tables = [
        np.array([[2.0, 1.0], [0.0, 3.0]]),
        np.array([[2.0, 1.0], [5.0, 6.0]]),
        np.array([[1.0, 1.0], [0.0, 2.0]]),
    ]
    found = choices(tables, ["a", "b", "c"])
    assert found.image is not None and found.group is not None
    assert [found.text.value, found.image.value, found.group.value] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    single = choices([np.array([[0.0, -1.0, -2.0]]), np.array([[0.0, 0.0]])], ["a", "b"])
    assert single.text.value == 0.5 and single.image is None
    with pytest.raises(MeasureError, match="measure them apart"):
        choices([tables[0], np.array([[1.0, 0.0]])], ["a", "b"])
    with pytest.raises(MeasureError, match="not a number"):
        choices([np.array([[np.nan, -1.0]])], ["a"])


def test_levels_as_detector_and_dose_response() -> None:
    found = level_detector([3, 0, 2, 1], [0, 0, 0, 0], [True, False, False, True], list("abcd"))
    assert found.auc.value == pytest.approx(3 / 4)
    with pytest.raises(MeasureError, match="not finite"):
        level_detector([float("-inf"), 0], [0, 0], [True, False], ["a", "b"])
    response = dose_response([np.array([[[-1.0, -3.0]], [[-0.5, -5.0]]]), np.array([[[-3.0, -5.0]], [[-1.5, -7.0]]])])
    assert [tuple(one) for one in response] == [(-2.0, -4.0), (-1.0, -6.0)]


def test_yes_by_level_and_calibration() -> None:
    counts = yes_by_level(np.array([[0.9, 0.8], [0.9, 0.1]]), [True, False])
    assert [one.yes_ratio for one in counts] == [1.0, 0.5] and counts[1].f1 == 1.0
    assert counts[0].f1 == pytest.approx(2 / 3)
    found = calibration([0.95, 0.92, 0.15, 1.0], [True, False, False, True])
    assert found.ece == pytest.approx((abs(0.95 + 0.92 + 1.0 - 2) + 0.15) / 4)
    assert found.brier == pytest.approx((0.05**2 + 0.92**2 + 0.15**2) / 4)
    with pytest.raises(MeasureError, match="between 0 and 1"):
        calibration([1.5], [True])
