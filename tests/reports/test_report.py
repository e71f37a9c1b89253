import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aligngpt.reports import report as module
from aligngpt.reports.report import ReportData, build_report
from aligngpt.reports.sections import (
    AccuracyRow,
    AnswerExample,
    DifferenceRow,
    GateSection,
    LevelExample,
    LevelsSection,
    LossCurve,
    TimingRow,
)

HOSTILE = "</td><script>alert('x')</script><img src=x onerror=alert(1)>{{ 7*7 }} $x_ & \" ' \x00 \ud83d"
INVITING = {
    "script",
    "iframe",
    "object",
    "embed",
    "link",
    "base",
    "form",
    "a",
    "audio",
    "video",
    "foreignobject",
}


class Page(HTMLParser):
    """The page as a browser parses it: elements with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def full_report(folder: Path, text: str = "plain") -> ReportData:
    Image.new("RGB", (64, 64), "teal").save(folder / "here.png")
    return ReportData(
        title=f"Title {text}",
        accuracies=[
            AccuracyRow.from_counts(f"AlignGPT {text}", 460, 500, note=text),
            AccuracyRow.from_counts("text only", 190, 500, baseline=True),
        ],
        levels=LevelsSection(
            scores=[0.05 * i for i in range(20)],
            borders=[0.3, 0.6],
            counts_per_level=[6, 6, 8],
            examples=[
                LevelExample(3, Path("here.png"), text, 0.9),
                LevelExample(1, "gone.png", f"worst {text}", 0.1, note=text),
            ],
            wrong_share=[0.5, 0.25, 0.0],
            auc=0.875,
        ),
        curves=[LossCurve(f"pretrain {text}", [1, 2, 3], [3.0, 2.0, 1.5])],
        gate=GateSection([f"colour {text}"], [[0.25, 0.75]], [40], "adaptive"),
        answers=[
            AnswerExample("here.png", f"What? {text}", f"expected {text}", f"answer {text}", False, kind=text),
            AnswerExample(None, "1 + 1?", "2", "2", True),
        ],
        timings=[TimingRow(f"score {text}", 3725.0, 4000, 1.25), TimingRow("chat", 2.5)],
        facts={f"Model {text}": text},
    )


def built(report: ReportData, folder: Path) -> str:
    build_report(report, folder / "out" / "report.html", image_root=folder)
    return (folder / "out" / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plain")
    return built(full_report(folder), folder)


def test_every_section_is_on_the_page(page: str) -> None:
    words = " ".join(Page(page).words.split())
    for expected in (
        "AlignGPT plain answers 92.0% of 500 questions right; the best baseline, text only, 38.0%.",
        "460 of 500",
        "in 87.5% of comparisons",
        "0.300 – 0.600",
        "Loss of pretrain plain.",
        "Level 3 is always added with weight 1. Equal weights would all be 0.50.",
        "✗ wrong answer plain",
        "expected: expected plain",
        "1 h 02 min",
        "1.2 GiB",
    ):
        assert expected in words
    assert words.index("worst plain") < words.index("score 0.900"), "the worst aligned pairs come first"


def test_the_first_row_is_the_total_and_kinds_are_smaller(tmp_path: Path) -> None:
    rows = [
        AccuracyRow.from_counts("all", 8, 10),
        AccuracyRow.from_counts("shape", 4, 5, part=True),
        AccuracyRow.from_counts("a" * 60, 4, 5, part=True),
        AccuracyRow.from_counts("text", 2, 10, baseline=True),
    ]
    page = Page(built(ReportData(accuracies=rows), tmp_path))
    classes = [a.get("class") for tag, a in page.elements if tag == "tr"]
    assert classes == [None, None, "part", "part", None]
    heads = [a.get("class") for tag, a in page.elements if tag == "th" and a.get("scope") == "row"]
    assert heads == ["own", None, "long", None]


def test_intervals_by_picture_are_said_to_be_so(tmp_path: Path) -> None:
    row = AccuracyRow.from_counts("all", 8, 10, interval=(0.5, 0.9), by_picture=True)
    words = " ".join(Page(built(ReportData(accuracies=[row]), tmp_path)).words.split())
    assert "95% interval, by picture: several questions" in words and "50.0 – 90.0" in words
    plain = " ".join(Page(built(ReportData(accuracies=[AccuracyRow.from_counts("a", 1, 2)]), tmp_path)).words.split())
    assert "95% interval." in plain and "by picture" not in plain


def test_differences_and_notes_are_sentences(tmp_path: Path) -> None:
    report = ReportData(
        accuracies=[AccuracyRow.from_counts("ours", 8, 10)],
        differences=[DifferenceRow("text", -0.05, -0.1, 0.02, 1500, by_picture=True)],
        notes=["nothing <b>here</b>"],
    )
    words = " ".join(Page(built(report, tmp_path)).words.split())
    assert (
        "On the 1,500 questions that both answered, ours is right more often than text by −5.0 percentage points "
        "(95% interval, by picture: −10.0 to +2.0)." in words
    )
    assert "Notes nothing <b>here</b>" in words


def test_the_paired_share_comes_before_the_auc_and_an_empty_level_is_a_dash(tmp_path: Path) -> None:
    section = LevelsSection(
        scores=[0.1, 0.9],
        borders=[0.4, 0.6],
        counts_per_level=[1, 0, 1],
        wrong_share=[1.0, math.nan, 0.0],
        wrong_intervals=[(0.2, 1.0), (0.0, 1.0), (0.0, 0.8)],
        auc=0.875,
        auc_interval=(0.8, 0.925),
        paired=(0.95, 0.9, 0.975),
        paired_pictures=1200,
    )
    page = Page(built(ReportData(levels=section), tmp_path))
    words = " ".join(page.words.split())
    paired = (
        "Of 1,200 pictures with both, the right caption scores higher than the wrong one of the same picture for 95.0%"
    )
    assert words.index(paired) < words.index("in 87.5% of comparisons (AUC; 95% interval, by picture, 80.0 – 92.5)")
    assert "100.0%20.0 – 100.0" in words and "nan" not in words
    labels = [attributes.get("aria-label") for _, attributes in page.elements]
    assert "Share of wrong captions. level 1: 100%; level 2: empty; level 3: 0%." in labels


def test_an_example_may_have_an_image_root_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "own" / "a.png")
    answers = [
        AnswerExample("a.png", "What?", "red", "red", True, image_root=root) for root in (tmp_path / "own", None)
    ]
    page = built(ReportData(answers=answers), tmp_path)
    assert page.count("data:image/png;base64,") == 1 and page.count("no such file") == 2


def test_page_makes_no_request_and_runs_nothing(page: str) -> None:
    for tag, attributes in Page(page).elements:
        assert tag not in INVITING
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert str(value).startswith(("data:image/", "#"))
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page


def test_hostile_text_stays_text(tmp_path: Path, page: str) -> None:
    hostile = Page(built(full_report(tmp_path, HOSTILE), tmp_path))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in Page(page).elements]
    assert "<script>alert('x')</script>" in hostile.words
    assert "{{ 7*7 }}" in hostile.words and "49 $" not in hostile.words
    assert "\x00" not in hostile.words


def test_pictures_are_inlined_and_a_missing_one_says_why(page: str) -> None:
    elements = Page(page).elements
    assert [attributes["alt"] for tag, attributes in elements if tag == "img"] == ["Image here.png"] * 2
    assert "no such file" in Page(page).words and "gone.png" in Page(page).words


def test_figures_tell_those_who_cannot_see_them(page: str) -> None:
    labels = [attributes.get("aria-label") or "" for _, attributes in Page(page).elements]
    assert "Share of wrong captions. level 1: 50%; level 2: 25%; level 3: 0%." in labels
    assert any("colour plain: level 2 (0.75)" in label for label in labels)
    assert any("from 3.00 to 1.50" in label for label in labels)


def test_no_id_occurs_twice(page: str) -> None:
    ids = [attributes["id"] for _, attributes in Page(page).elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_bars_and_whiskers_are_as_long_as_the_numbers_say(page: str) -> None:
    low, high = (f"{100 * share:.1f}%" for share in (0.8929, 0.9408))
    bars = [attributes.get("width") for tag, attributes in Page(page).elements if tag == "rect"]
    assert "92.0%" in bars and "38.0%" in bars
    assert any((a.get("x1"), a.get("x2")) == (low, high) for tag, a in Page(page).elements if tag == "line")


def test_same_data_give_the_same_page(tmp_path: Path, page: str) -> None:
    assert built(full_report(tmp_path), tmp_path) == page


def test_sections_may_be_left_out(tmp_path: Path) -> None:
    assert "Nothing has been measured yet." in built(ReportData(), tmp_path)
    whole = full_report(tmp_path)
    headings = {
        "levels": "Alignment levels",
        "curves": "Training",
        "gate": "What the gate chooses",
        "answers": "Answers",
        "timings": "Time and memory",
        "accuracies": "Right answers",
        "facts": "Model plain",
    }
    for section in headings:
        words = Page(built(ReportData(**{section: getattr(whole, section)}), tmp_path)).words
        assert [name for name, heading in headings.items() if heading in words] == [section]


def test_a_levels_section_needs_neither_examples_nor_known_wrong_captions(tmp_path: Path) -> None:
    words = Page(built(ReportData(levels=LevelsSection([0.1, 0.2], [], [2])), tmp_path)).words
    assert "Wrong" not in words and "comparisons" not in words and "Pairs," not in words


def test_numbers_of_numpy_are_taken(tmp_path: Path) -> None:
    scores = np.linspace(0, 1, 6, dtype=np.float32)
    section = LevelsSection(scores, [np.float32(0.5)], np.array([3, 3]), auc=np.float64(0.5))  # type: ignore[arg-type]
    row = AccuracyRow.from_counts("a", np.int64(1), np.int64(2))
    assert section.counts_per_level == [3, 3]
    words = Page(built(ReportData(levels=section, accuracies=[row]), tmp_path)).words
    assert "50.0% of comparisons" in words and "1 of 2" in words


def test_sections_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 counts_per_level for 2 borders, found 1"):
        LevelsSection([0.1], [0.2, 0.3], [1])
    with pytest.raises(ValueError, match="expected a level in 1…2, found 3"):
        LevelsSection([0.1], [0.2], [1, 0], [LevelExample(3, "a.png", "a", 0.1)])
    with pytest.raises(ValueError, match="expected a loss for each of 2 steps, found 1"):
        LossCurve("a", [1, 2], [0.5])
    with pytest.raises(ValueError, match="expected rows of equal, non-zero length"):
        GateSection(["a", "b"], [[1.0], [0.5, 0.5]], [1, 1])
    with pytest.raises(ValueError, match="low ≤ accuracy"):
        AccuracyRow("a", 0.5, 1, 2, 0.6, 0.9)


def test_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old")

    def fail(*_: object) -> None:
        raise RuntimeError("drawing failed")

    monkeypatch.setattr(module, "loss_curve", fail)
    with pytest.raises(RuntimeError):
        build_report(ReportData(curves=[LossCurve("a", [1], [1.0])]), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_no_picture_is_read_from_outside_the_image_root(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    for path in (tmp_path / "secret.png", root / "near.png"):
        Image.new("RGB", (4, 4), "red").save(path)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    Image.new("RGB", (4, 4), "red").save(root / "other.jpg", "EPS")
    names = [tmp_path / "secret.png", "../secret.png", "link.png", "other.jpg", "near.png", root / "near.png"]
    answers = [AnswerExample(str(name), "What?", "red", "red", True) for name in names]
    page = built(ReportData(answers=answers), root)
    assert page.count("outside the image folder") == 2 * 3
    assert page.count("data:image/png;base64,") == 2
