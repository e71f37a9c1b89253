"""The page of a study's findings."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import simulated_study as simulated

from aligngpt.study.analysis.analysing import Analysis, analyse
from aligngpt.study.analysis.student import Estimate
from aligngpt.study.analysis.words import interval, mean_and_interval, number, p_value, table
from aligngpt.study.page import ANSWER_BEGIN, ANSWER_END, BEGIN, END, write_findings
from aligngpt.study.pairs import StudyError

ABOUT = simulated.questions()


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    many = simulated.rows(ABOUT, simulated.Truth({("adaptive", 0.6): 0.1}), seeds=4, random=2)
    return analyse(simulated.write(tmp_path_factory.mktemp("study") / "results", ABOUT, many))


@pytest.fixture(scope="module")
def written(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_findings(analysis, tmp_path_factory.mktemp("page"))


def generated(page: Path) -> str:
    return page.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()


def test_the_first_sentence_is_the_answer(written: Path) -> None:
    first = generated(written).splitlines()[0]
    assert first.startswith(
        "Compared with `none` and `placebo`, `adaptive` helps at 60% of bad captions and neither clearly helps nor "
        "harms at 0% of bad captions. At 60% of bad captions, `adaptive` − `none` is +0."
    )


def test_numbers_of_the_page_are_those_of_the_analysis(written: Path, analysis: Analysis) -> None:
    text = generated(written)
    for one in analysis.primary:
        assert mean_and_interval(one.log_probability.estimate, decimals=3, signed=True) in text
        assert mean_and_interval(one.accuracy.estimate, factor=100, decimals=2, signed=True) in text
    assert "A run takes 60 seconds of processor time (median of 24), a pre-training 60 (median of 24)" in text
    assert "Runs and pre-trainings together took 0.8 core-hours." in text
    assert "all conditions have the same number of seeds" in text


def test_every_table_has_rows_of_one_width(written: Path) -> None:
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", generated(written), flags=re.MULTILINE)
    assert len(blocks) == 11
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1 and len(block.splitlines()) > 2


def test_every_figure_is_there_and_is_readable_alone(written: Path) -> None:
    linked = re.findall(r"!\[([^]]+)\]\(([^)]+)\)", generated(written))
    assert [Path(address).name for _, address in linked] == [
        "findings-forest.svg",
        "findings-noise.svg",
        "findings-dose.svg",
        "findings-detectors.svg",
        "findings-gate-adaptive.svg",
        "findings-gate-placebo.svg",
    ]
    for _, address in linked:
        text = (written.parent / address).read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "currentColor" not in text


def test_the_answer_stands_where_the_page_wants_it(analysis: Analysis, tmp_path: Path) -> None:
    page = tmp_path / "findings.md"
    page.write_text(f"# Levels\n\n{ANSWER_BEGIN}\nstale\n{ANSWER_END}\n\nThe text.\n\n{BEGIN}\nstale\n{END}\n")
    for _ in range(2):
        text = write_findings(analysis, tmp_path).read_text(encoding="utf-8")
        assert text.startswith(f"# Levels\n\n{ANSWER_BEGIN}\nCompared with `none`") and "stale" not in text
        assert text.count("Compared with `none`") == 1 and "The text." in text
        assert generated(page).startswith("## Primary contrasts")
    page.write_text(f"{ANSWER_END}\n{ANSWER_BEGIN}\n{BEGIN}\n{END}\n")
    with pytest.raises(StudyError, match=r"answer: end --> once, in this order, or neither"):
        write_findings(analysis, tmp_path)


def test_written_twice_it_is_the_same_to_the_byte(written: Path, analysis: Analysis, tmp_path: Path) -> None:
    files = {path.relative_to(written.parent): path.read_bytes() for path in written.parent.rglob("*.*")}
    write_findings(analysis, tmp_path)
    write_findings(analysis, tmp_path)
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")} == files


def test_what_a_person_wrote_is_left_alone(analysis: Analysis, tmp_path: Path) -> None:
    before, after = "# Our study\n\nWritten *before* the run.\n\n", "\n\n## Discussion\n\nBy a person.\n"
    page = tmp_path / "study.md"
    page.write_text(f"{before}{BEGIN}\noutdated result\n{END}{after}", encoding="utf-8")
    assert write_findings(analysis, tmp_path, "study.md") == page
    text = page.read_text(encoding="utf-8")
    assert text.startswith(before + BEGIN) and text.endswith(END + after) and "outdated result" not in text
    assert "images/study-forest.svg" in text


@pytest.mark.parametrize("text", ["no markers", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_its_markers_is_refused_and_kept(analysis: Analysis, tmp_path: Path, text: str) -> None:
    page = tmp_path / "findings.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match="once, in this order"):
        write_findings(analysis, tmp_path)
    assert page.read_text(encoding="utf-8") == text and not (tmp_path / "images").exists()


def test_a_quick_study_says_that_it_is_too_small(analysis: Analysis, tmp_path: Path) -> None:
    text = generated(write_findings(replace(analysis, quick=True), tmp_path))
    assert text.startswith("This study is too small to conclude anything; in it, compared with `none`")
    assert "**Too small to conclude.**" in text


def test_one_seed_and_no_probe_captions_make_a_page(tmp_path: Path) -> None:
    about = replace(ABOUT, probe=None)
    many = simulated.rows(ABOUT, simulated.Truth(), arms=("none", "adaptive"), noises=(0.6,), seeds=1)
    runs = [row for row in many if "test_right" in row]
    found = analyse(simulated.write(tmp_path / "results", about, runs), pairs=[("adaptive", "none")])
    text = generated(write_findings(found, tmp_path / "page"))
    assert text.startswith("Nothing can be concluded")
    assert "(no interval)" in text and "nan" not in text and "inf" not in re.sub("information", "", text)
    assert "Telling right captions" not in text


def test_numbers_in_words() -> None:
    assert number(-0.0123, 1, factor=100, signed=True) == "−1.2"
    assert number(-0.0001, 2, signed=True) == "+0.00" and number(float("nan"), 2) == "–"
    assert interval((-1.0, 2.0), decimals=1) == "−1.0 to 2.0" and interval((-float("inf"), 2.0), decimals=1) == "–"
    assert p_value(0.0004) == "< 0.001" and p_value(0.04) == "0.040" and p_value(float("nan")) == "–"
    unknown = Estimate(0.5, -float("inf"), float("inf"), 1.0, float("nan"), 1)
    assert mean_and_interval(unknown, decimals=1) == "0.5 (no interval)"


def test_text_cannot_break_a_table() -> None:
    assert table(["a"], [["x|y\n<b>"]]).splitlines() == ["| a |", "| --- |", "| x\\|y &lt;b> |"]
