"""Scoring a file from end to end: the lines, the rejects and what is an error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aligngpt.data.images import open_image
from aligngpt.data.rejects import TooManyRejects
from aligngpt.data.sources import SourceError
from aligngpt.scoring.encoders import PairScorer, ScorerError
from aligngpt.scoring.score import REJECTS, SCORES, ScoresError, ScoreSummary, read_manifest

Pairs = Callable[..., Path]
COUNT = 23


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_pair_has_a_line_in_the_order_of_the_file(
    write_pairs: Pairs, run: Callable, clip_scorer: PairScorer, tmp_path: Path
) -> None:
    source = write_pairs(COUNT)
    assert run(source) == ScoreSummary(scored=COUNT, rejected=0)
    found = lines(tmp_path / "out" / SCORES)
    assert [(line["record"], line["id"]) for line in found] == [(i, f"pair-{i}") for i in range(COUNT)]
    pictures = [open_image(tmp_path / f"{index}.png") for index in range(COUNT)]
    expected = clip_scorer.score(pictures, [record["caption"] for record in lines(source)])
    assert np.ptp(expected) > 0.1, "the pairs must differ, or the test says nothing"
    np.testing.assert_allclose([line["score"] for line in found], expected, atol=1e-5)
    assert not (tmp_path / "out" / REJECTS).exists()


def test_a_batch_is_a_run_of_records_of_the_file(
    write_pairs: Pairs, run: Callable, clip_scorer: PairScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = clip_scorer.pixel_features
    monkeypatch.setattr(clip_scorer, "pixel_features", lambda pixels: sizes.append(len(pixels)) or encode(pixels))
    run(write_pairs(COUNT, at_5={"image": "gone.png"}))
    assert sizes == [4, 3, 4, 4, 4, 3]


def test_an_array_has_the_scores_of_the_same_lines(write_pairs: Pairs, run: Callable, tmp_path: Path) -> None:
    source = write_pairs(COUNT)
    array = tmp_path / "pairs.json"
    array.write_text(json.dumps(lines(source)), encoding="utf-8")
    run(source, "of_lines")
    run(array, "of_array")
    assert (tmp_path / "of_lines" / SCORES).read_bytes() == (tmp_path / "of_array" / SCORES).read_bytes()


def test_an_image_or_caption_of_a_batch_is_encoded_once(
    write_pairs: Pairs, run: Callable, clip_scorer: PairScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {"image": "1.png", "caption": "a red circle"}
    source = write_pairs(4, at_0=same, at_1=same, at_2={"image": "1.png"}, at_3={"caption": "a red circle"})
    run(source, "each", batch_size=1)
    pictures: list[int] = []
    texts: list[list[str]] = []
    encode_pixels, encode_texts = clip_scorer.pixel_features, clip_scorer.text_features
    monkeypatch.setattr(clip_scorer, "pixel_features", lambda p: pictures.append(len(p)) or encode_pixels(p))
    monkeypatch.setattr(clip_scorer, "text_features", lambda t: texts.append(list(t)) or encode_texts(t))
    run(source)
    assert pictures == [2]
    assert texts == [["a red circle", lines(source)[2]["caption"]]]
    found, alone = ([line["score"] for line in lines(tmp_path / out / SCORES)] for out in ("out", "each"))
    assert found[0] == found[1]
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert len(set(found)) == 3


def test_bad_images_are_rejected_and_change_no_other_score(write_pairs: Pairs, run: Callable, tmp_path: Path) -> None:
    source = write_pairs(COUNT)
    run(source, "all")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "3.png").write_text("no picture")
    (tmp_path / "9.png").unlink()
    (tmp_path / "22.png").write_bytes(b"")
    assert run(source, "some") == ScoreSummary(scored=COUNT - 4, rejected=4)
    rejects = lines(tmp_path / "some" / REJECTS)
    assert [(reject["record"], reject["id"], reject["reason"]) for reject in rejects] == [
        (2, "pair-2", "truncated"),
        (3, "pair-3", "not_an_image"),
        (9, "pair-9", "missing"),
        (22, "pair-22", "empty"),
    ]
    before = {line["record"]: line["score"] for line in lines(tmp_path / "all" / SCORES)}
    after = {line["record"]: line["score"] for line in lines(tmp_path / "some" / SCORES)}
    assert list(after) == [index for index in range(COUNT) if index not in (2, 3, 9, 22)]
    np.testing.assert_allclose(list(after.values()), [before[index] for index in after], atol=1e-5)


def test_a_picture_the_model_cannot_take_is_rejected(
    write_pairs: Pairs, run: Callable, clip_scorer: PairScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = clip_scorer.pixel_values

    def refuse(images: list) -> torch.Tensor:
        if images[0].size == (7, 7):
            raise ValueError("no such shape")
        return prepare(images)

    source = write_pairs(4)
    open_image(tmp_path / "1.png").resize((7, 7)).save(tmp_path / "1.png")
    monkeypatch.setattr(clip_scorer, "pixel_values", refuse)
    assert run(source) == ScoreSummary(scored=3, rejected=1)
    reject = lines(tmp_path / "out" / REJECTS)[0]
    assert reject["reason"] == "unreadable"
    assert "no such shape" in reject["detail"]


def test_what_is_no_pair_is_rejected_and_keeps_its_number(write_pairs: Pairs, run: Callable, tmp_path: Path) -> None:
    changes = {"at_1": {"image": ["0.png", "2.png"]}, "at_2": {"image": None, "question": "what?"}}
    source = write_pairs(6, at_4={"caption": " "}, at_5={"image": "../5.png"}, **changes)
    text = source.read_text(encoding="utf-8").splitlines()
    source.write_text("\n".join([text[0], "{broken", *text[1:]]), encoding="utf-8")
    assert run(source) == ScoreSummary(scored=2, rejected=5)
    assert [line["record"] for line in lines(tmp_path / "out" / SCORES)] == [0, 4]
    reasons = {reject["record"]: reject["reason"] for reject in lines(tmp_path / "out" / REJECTS)}
    assert reasons == {1: "broken_line", 2: "image_count", 3: "image_count", 5: "empty_text", 6: "outside_root"}


def test_too_many_rejects_end_the_job_and_more_may_be_allowed(
    write_pairs: Pairs, run: Callable, tmp_path: Path
) -> None:
    source = write_pairs(COUNT, **{f"at_{index}": {"image": "gone.png"} for index in (1, 12, 13)})
    run(source, "whole")
    with pytest.raises(TooManyRejects, match=r"3 of 23 .*missing 3; .*rejects.jsonl names each"):
        run(source, max_reject_share=2.5 / COUNT)
    assert read_manifest(tmp_path / "out").finished is None
    assert run(source, max_reject_share=3 / COUNT) == ScoreSummary(scored=COUNT - 3, rejected=3)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_too_many_rejects_end_the_job_at_once(write_pairs: Pairs, run: Callable, tmp_path: Path) -> None:
    source = write_pairs(COUNT, **{f"at_{index}": {"image": "gone.png"} for index in (4, 5)})
    with pytest.raises(TooManyRejects):
        run(source, max_reject_share=0.05)
    assert [line["record"] for line in lines(tmp_path / "out" / SCORES)] == [0, 1, 2, 3]


def test_images_are_looked_for_in_the_image_root(write_pairs: Pairs, run: Callable, tmp_path: Path) -> None:
    source = write_pairs(4)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = source.rename(elsewhere / source.name)
    with pytest.raises(TooManyRejects):
        run(moved)
    assert run(moved, image_root=tmp_path).scored == 4
    with pytest.raises(ScoresError, match="nowhere is not a folder"):
        run(moved, image_root=tmp_path / "nowhere")


def test_a_missing_file_and_an_impossible_batch_are_errors(write_pairs: Pairs, run: Callable, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        run(tmp_path / "none.jsonl")
    with pytest.raises(ScoresError, match="at least 1, got 0"):
        run(write_pairs(2), batch_size=0)
    assert not (tmp_path / "out").exists()


def test_a_score_that_is_no_number_names_its_record(
    write_pairs: Pairs, run: Callable, clip_scorer: PairScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = clip_scorer.text_features

    def damaged(texts: list[str]) -> np.ndarray:
        features = encode(texts)
        features[[text == "no is no" for text in texts]] = np.nan
        return features

    monkeypatch.setattr(clip_scorer, "text_features", damaged)
    with pytest.raises(ScorerError, match=r"record 6 \(id pair-6\) is not a finite number"):
        run(write_pairs(10, at_6={"caption": "no is no"}))
