"""A scoring job that goes on: the same bytes whatever interrupted it, and never the scores of something else."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.score import MANIFEST, REJECTS, SCORES, ScoresError, ScoreSummary, read_manifest

Pairs = Callable[..., Path]
COUNT, BATCH = 23, 4


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def unfinish(out: Path) -> None:
    """Make the manifest what it is while a job runs."""
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    (out / MANIFEST).write_text(json.dumps(manifest | {"finished": None}), encoding="utf-8")


@pytest.mark.parametrize("finished", [False, True], ids=["stopped", "damaged_later"])
def test_a_cut_at_any_byte_ends_in_the_same_bytes(
    write_pairs: Pairs, run: Callable, tmp_path: Path, finished: bool
) -> None:
    source = write_pairs(COUNT, **{f"at_{index}": {"image": "gone.png"} for index in (0, 7, 8, 9, 10, 11, 22)})
    out = tmp_path / "out"
    summary, whole = run(source), content(out)
    ends = [0, *np.cumsum([len(line) for line in whole[SCORES].splitlines(keepends=True)]).tolist()]
    cuts = {0, 1, ends[1] - 1, ends[1], ends[3], ends[3] + 1, ends[6], ends[7] + 20, ends[-2], ends[-1] - 1, ends[-1]}
    for cut in sorted(cuts):
        (out / SCORES).write_bytes(whole[SCORES][:cut])
        (out / REJECTS).write_text("what an earlier run left")
        if not finished:
            unfinish(out)
        assert run(source) == summary
        assert content(out) == whole, f"cut at byte {cut}"


def test_a_torn_line_in_the_middle_is_mended(write_pairs: Pairs, run: Callable, tmp_path: Path) -> None:
    source, out = write_pairs(COUNT), tmp_path / "out"
    run(source)
    whole = content(out)
    middle = len(whole[SCORES]) // 2
    (out / SCORES).write_bytes(whole[SCORES][:middle] + b"\0" * 30 + whole[SCORES][middle + 30 :])
    run(source)
    assert content(out) == whole


def test_a_second_call_encodes_nothing(
    write_pairs: Pairs, run: Callable, clip_scorer: PairScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_pairs(COUNT, at_3={"image": "gone.png"})
    summary, whole = run(source), content(tmp_path / "out")
    for name in ("pixel_values", "pixel_features", "text_features"):
        monkeypatch.delattr(PairScorer, name)
    assert run(source) == summary
    assert content(tmp_path / "out") == whole


def test_scores_of_another_file_model_or_batch_size_are_kept_apart(
    write_pairs: Pairs, run: Callable, scorer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    source, out = write_pairs(8), tmp_path / "out"
    run(source)
    whole = content(out)
    other = PairScorer.load(scorer_folder("siglip"), device="cpu", dtype="float32")
    half = PairScorer.load(scorer_folder("clip"), device="cpu", dtype="bfloat16")
    longer = write_pairs(9, "longer.jsonl")
    for match, name, options in [
        ("another file of pairs;", longer, {}),
        ("another model or precision;", source, {"scorer": other}),
        ("another model or precision;", source, {"scorer": half}),
        ("another batch size;", source, {"batch_size": BATCH + 1}),
        ("another file of pairs and another batch size;", longer, {"batch_size": 1}),
    ]:
        with pytest.raises(ScoresError, match=match):
            run(name, **options)
        assert content(out) == whole


DAMAGED = [
    "",
    "{",
    "[]",
    "7",
    "{}",
    '{"finished": null}',
    '{"finished": 3}',
    '{"source": "", "finished": null, "x": 1}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_manifest_is_an_error_and_nothing_is_lost(
    write_pairs: Pairs, run: Callable, tmp_path: Path, text: str
) -> None:
    source, out = write_pairs(4), tmp_path / "out"
    run(source)
    (out / MANIFEST).write_text(text)
    before = content(out)
    with pytest.raises(ScoresError, match=r"manifest.json is damaged"):
        run(source)
    assert content(out) == before


def test_scores_without_a_manifest_are_not_taken_over(write_pairs: Pairs, run: Callable, tmp_path: Path) -> None:
    source = write_pairs(4)
    run(source)
    (tmp_path / "out" / MANIFEST).unlink()
    with pytest.raises(ScoresError, match=r"no manifest.json"):
        run(source)


def test_an_image_that_appears_later_is_scored(write_pairs: Pairs, run: Callable, tmp_path: Path) -> None:
    source = write_pairs(COUNT)
    run(source, "from_the_start")
    late = [tmp_path / f"{index}.png" for index in (6, 13, 14, 21)]
    kept = [path.rename(path.with_suffix(".later")) for path in late]
    assert run(source) == ScoreSummary(scored=COUNT - 4, rejected=4)
    for path, hidden in list(zip(late, kept, strict=True))[1:]:
        hidden.rename(path)
    assert run(source) == ScoreSummary(scored=COUNT - 1, rejected=1)
    assert [reject["id"] for reject in lines(tmp_path / "out" / REJECTS)] == ["pair-6"]
    kept[0].rename(late[0])
    assert run(source) == ScoreSummary(scored=COUNT, rejected=0)
    assert content(tmp_path / "out") == content(tmp_path / "from_the_start")


def test_a_job_begun_anew_for_late_images_is_unfinished_until_its_end(
    write_pairs: Pairs, run: Callable, clip_scorer: PairScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, first = write_pairs(COUNT), tmp_path / "0.png"
    hidden = first.rename(tmp_path / "0.later")
    run(source)
    hidden.rename(first)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        calls = iter([clip_scorer.text_features] * 3)

        def stopped(texts: list[str]) -> np.ndarray:
            encode = next(calls, None)
            if encode is None:
                raise KeyboardInterrupt
            return encode(texts)

        patch.setattr(clip_scorer, "text_features", stopped)
        run(source)
    assert read_manifest(tmp_path / "out").finished is None
    assert len(lines(tmp_path / "out" / SCORES)) == 3 * BATCH
    assert run(source).scored == COUNT


CHILD = """
import sys, time
from pathlib import Path
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.score import score_file

model, source, out, batch_size = sys.argv[1:]
scorer = PairScorer.load(model, device="cpu", dtype="float32")
encode = scorer.text_features
def slowly(texts):
    time.sleep(0.1)
    return encode(texts)
scorer.text_features = slowly
score_file(Path(source), scorer, Path(out), batch_size=int(batch_size))
"""


@pytest.mark.medium
def test_a_killed_process_leaves_what_the_next_one_finishes(
    write_pairs: Pairs, run: Callable, scorer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    source, scores = write_pairs(200), tmp_path / "killed" / SCORES
    run(source, "whole")
    arguments = [scorer_folder("clip"), source, scores.parent, BATCH]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *map(str, arguments)])
    try:
        give_up = time.monotonic() + 60
        while not scores.exists() or scores.stat().st_size < 700:
            assert child.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() < give_up
            time.sleep(0.01)
    finally:
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert 0 < len(scores.read_bytes().splitlines()) < 200
    assert read_manifest(scores.parent).finished is None
    assert run(source, "killed") == ScoreSummary(scored=200, rejected=0)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
