"""The part of a replaced image file is scored again; that of a copy of the same file is not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from aligngpt.cli import app
from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.rejects import TooManyRejects
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import ScoreSummary, read_scores, score_source
from aligngpt.scoring.picture_marks import ABSENT, mark_of, mark_of_file
from aligngpt.scoring.reject_share import RejectLimit
from aligngpt.scoring.score_files import ScoresError

SHARD_SIZE = 3


@pytest.fixture
def score(clip_scorer: PairScorer, tmp_path: Path) -> Callable[..., ScoreSummary]:
    def call(pairs: Path, out: str = "out", **options: object) -> ScoreSummary:
        source = open_pairs(pairs, shard_size=SHARD_SIZE)
        settings = {"batch_size": 2, "workers": 0, "max_reject_share": 0.5} | options
        return score_source(source, clip_scorer, tmp_path / out, **settings)

    return call


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("part-*")}


def draw(path: Path, colour: str = "red") -> None:
    Image.new("RGB", (40, 36), colour).save(path)


@pytest.mark.parametrize("finished", [True, False])
def test_the_part_of_a_picture_that_was_replaced_is_scored_again(
    finished: bool,
    score: Callable,
    write_pairs: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pairs = write_pairs(7)
    score(pairs, shard=None if finished else (1, 3))
    before = written(tmp_path / "out")
    old = parts(tmp_path / "out")["part-00001.parquet"]
    times = (tmp_path / "4.png").stat()
    draw(tmp_path / "4.png")
    os.utime(tmp_path / "4.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    capsys.readouterr()
    assert score(pairs).finished
    told = capsys.readouterr().err
    assert "1 image of" in told and "1 part of" in told and "scored again" in told
    score(pairs, "fresh")
    assert parts(tmp_path / "out") == parts(tmp_path / "fresh")
    assert parts(tmp_path / "out")["part-00001.parquet"] != old
    after = written(tmp_path / "out")
    assert {name for name in before if after[name] != before[name]} == {"part-00001.parquet"}


def test_parts_that_wait_to_be_scored_again_are_not_read(
    score: Callable, write_pairs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_pairs(7)
    score(pairs)
    for number in (0, 4, 6):
        draw(tmp_path / f"{number}.png")

    def stop(_: RejectLimit) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # Called after each part.
        patch.setattr(RejectLimit, "check_certain", stop)
        score(pairs)
    remaining = parts(tmp_path / "out")
    with pytest.raises(ScoresError, match="is not finished; run the same `aligngpt score` command again"):
        read_scores(tmp_path / "out")
    score(pairs, shard=(0, 2))
    assert score(pairs, shard=(1, 2)).finished
    score(pairs, "fresh")
    fresh = parts(tmp_path / "fresh")
    assert parts(tmp_path / "out") == fresh
    # The next shards may have been finished, too, but no part of before was left.
    assert "part-00000.parquet" in remaining and remaining.items() <= fresh.items()


def test_a_copy_of_the_pictures_with_other_times_is_not_scored_again(
    score: Callable, write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = write_pairs(7)
    score(pairs)
    before = written(tmp_path / "out")
    for picture in tmp_path.glob("*.png"):
        shutil.copyfile(picture, tmp_path / "copy")
        os.replace(tmp_path / "copy", picture)
        os.utime(picture, (1, 1))
    assert score(pairs).finished
    assert written(tmp_path / "out") == before


def test_a_picture_that_came_is_scored_and_one_that_is_gone_keeps_its_score(
    score: Callable, write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = write_pairs(7)
    (tmp_path / "1.png").rename(tmp_path / "away")
    assert score(pairs).reasons == {"missing": 1}
    (tmp_path / "away").rename(tmp_path / "1.png")
    (tmp_path / "6.png").unlink()
    assert score(pairs) == ScoreSummary(7, 0, {}, finished=True)
    assert len(read_scores(tmp_path / "out")) == 7


def test_the_command_scores_a_replaced_picture_again(
    write_pairs: Callable[..., Path], scorer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    pairs = write_pairs(4)
    command = ["score", str(pairs), "--model", str(scorer_folder("clip")), "--workers", "0", "--device", "cpu"]
    for out in ("out", "out", "fresh"):
        found = CliRunner().invoke(app, [*command, "--out", str(tmp_path / out)])
        assert found.exit_code == 0, found.output
        draw(tmp_path / "2.png", "green")
    assert read_scores(tmp_path / "out").equals(read_scores(tmp_path / "fresh"))


def test_a_mark_is_that_of_the_content_wherever_it_is_read(tmp_path: Path) -> None:
    marks = set()
    for content in (b"a", b"a" * 3000, b"a" * 2999 + b"b", b"a" * 1500 + b"b" + b"a" * 1499, b"b" + b"a" * 2999):
        (tmp_path / "file").write_bytes(content)
        assert mark_of_file(tmp_path / "file") == mark_of(content) != ABSENT
        marks.add(mark_of(content))
    assert len(marks) == 5
    (tmp_path / "file").write_bytes(b"")
    assert mark_of_file(tmp_path / "file") == mark_of_file(tmp_path / "gone") == mark_of_file(tmp_path) == ABSENT


@pytest.mark.parametrize("shards", [1, 2])
def test_a_wrong_image_root_ends_the_job_at_the_first_pictures(
    shards: int, clip_scorer: PairScorer, write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = write_pairs(0)
    count = 800
    pairs.write_text("".join(f'{{"image": "deep/{n}.png", "caption": "a red circle"}}\n' for n in range(count)))
    source = open_pairs(pairs, shard_size=count // shards)
    with pytest.raises(TooManyRejects, match=rf"{tmp_path}/deep/0\.png.*image root is {tmp_path}\)"):
        score_source(source, clip_scorer, tmp_path / "out", workers=0, max_reject_share=0.9)
    assert parts(tmp_path / "out").keys() <= {"part-00000.parquet", "rejects-00000.parquet"}
    # One image exists after all, so the share of rejects decides.
    (tmp_path / "deep").mkdir()
    draw(tmp_path / "deep" / f"{count // 2 + 5}.png")
    assert score_source(source, clip_scorer, tmp_path / "out", workers=0, max_reject_share=0.999).scored == 1


def test_all_pictures_may_be_missing_where_every_record_may_be_rejected(
    clip_scorer: PairScorer, write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = write_pairs(1)
    lines = [f'{{"image": "deep/{n}.png", "caption": "a red circle"}}\n' for n in range(350)]
    pairs.write_text("".join([*lines, pairs.read_text()]))
    source = open_pairs(pairs, shard_size=350)
    assert score_source(source, clip_scorer, tmp_path / "out", workers=0, max_reject_share=1).scored == 1
