"""Tables whose fields are separated by tabs or semicolons."""

from pathlib import Path

import pytest

from aligngpt.data.records.pairs import Pair, Unusable, open_pairs
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import read_samples
from aligngpt.data.sources.base import SourceError


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "between", "said"), [("a.tsv", "\t", "tabs"), ("a.csv", "\t", "tabs"), ("a.csv", ";", "semicolons")]
)
def test_the_delimiter_is_found_from_the_header_and_said(name: str, between: str, said: str, tmp_path: Path) -> None:
    rows = [("filepath", "title"), ("0.png", "a cat, and a dog"), ("1.png", f'"one{between}two"'), ("2.png", '"a\nb"')]
    pairs = open_pairs(written(tmp_path / name, "".join(between.join(row) + "\n" for row in rows)), shard_size=1)
    found = [one for shard in pairs.shards() for one in pairs.read(shard)]
    texts = [one.caption for one in found if isinstance(one, Pair)]
    assert texts == ["a cat, and a dog", f"one{between}two", "a\nb"]
    assert f"separated by {said}" in (pairs.remark() or "")


def test_commas_in_a_tsv_file_and_no_remark(tmp_path: Path) -> None:
    pairs = open_pairs(written(tmp_path / "a.tsv", "image,caption\n0.png,x\n"))
    assert pairs.remark() is None and len(list(pairs.read(pairs.shards()[0]))) == 1


def test_named_columns_decide_the_delimiter(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "pic;alt;a,b\n0.png;x;1\n")
    pairs = open_pairs(path, image_column="pic", caption_column="alt")
    (one,) = pairs.read(pairs.shards()[0])
    assert isinstance(one, Pair) and one.caption == "x"


def test_a_header_that_fits_two_delimiters_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "image;caption;x,image,caption\n")
    with pytest.raises(SourceError, match="may be separated by comma or semicolon"):
        open_pairs(path)


def test_missing_columns_are_told_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no column for the caption: .* found url, alt, x"):
        open_pairs(written(tmp_path / "a.tsv", "url\talt\tx\n"))


def test_a_row_of_another_width_names_the_delimiter(tmp_path: Path) -> None:
    pairs = open_pairs(written(tmp_path / "a.tsv", "image\tcaption\n0.png\ta\tb\n1.png\tgood\n"))
    bad, good = pairs.read(pairs.shards()[0])
    assert isinstance(bad, Unusable) and "quote texts that contain tabs" in bad.detail and isinstance(good, Pair)


def test_training_reads_rows_with_their_levels(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.csv", "image,caption,level,score\n0.png,one,3,0.25\n,two,1,0\n2.png,,1,0\n3.png,four,x,\n"
    )
    rejects = Rejects(None, max_share=1.0)
    (sample,) = (one for one, _ in read_samples(path, rejects) if one.level is not None)
    assert (sample.images, sample.caption, sample.level) == (("0.png",), "one", 3)
    assert rejects.by_reason["no_picture"] == 1 and rejects.by_reason["empty_text"] == 1


def test_a_table_of_questions_is_read_as_records(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "image,question,answer,question_id\n0.png,what?,a cat,q1\n,how many?,two,q2\n")
    samples = [one for one, _ in read_samples(path, Rejects(None, max_share=0.0))]
    assert [(one.id, one.images, one.turns[0].text) for one in samples] == [
        ("q1", ("0.png",), "what?"),
        ("q2", (), "how many?"),
    ]


def test_quoted_names_are_read_with_each_delimiter(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", '"image";"caption";"a, ""b"" c"\n"0.png";"one, two";"x"\n')
    pairs = open_pairs(path)
    (one,) = pairs.read(pairs.shards()[0])
    assert isinstance(one, Pair) and one.caption == "one, two"
