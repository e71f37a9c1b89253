"""A source without a scored pair is an error, however many rejects are allowed; one of questions causes a remark."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from aligngpt.data.records.pairs import open_pairs
from aligngpt.errors import AlignGPTError
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source


@pytest.mark.parametrize(("names", "found"), [([], "no record at all"), (["README.md"], "unpaired 1")])
def test_a_source_of_which_nothing_is_scored_is_an_error(
    clip_scorer: PairScorer, names: list[str], found: str, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    source = open_pairs(tmp_path / "a.tar")
    with pytest.raises(AlignGPTError, match=f"nothing could be scored.*{found}"):
        score_source(source, clip_scorer, tmp_path / "out", batch_size=2, workers=0, max_reject_share=1)


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        (["Give a short description of the image.\n<image>", "a red circle"], False),
        (["<image>", "a red circle"], False),
        (["<image>\nWhat colour is it?", "red"], True),
        (["<image>\nDescribe it.", "a circle", "More.", "It is red."], True),
    ],
)
def test_questions_with_answers_are_remarked_on(
    turns: list[str],
    told: bool,
    clip_scorer: PairScorer,
    write_pairs: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)]
    images = [f"{place}.png" for place in range(2)]
    write_pairs(2).write_text("".join(json.dumps({"image": image, "conversations": said}) + "\n" for image in images))
    assert score_source(open_pairs(tmp_path / "pairs.jsonl"), clip_scorer, tmp_path / "out", workers=0).scored == 2
    assert ("2 of the first 2 records" in capsys.readouterr().err) == told
