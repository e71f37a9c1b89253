"""The scoring rules give what the published scorers gave, and follow the written rules where no numbers exist."""

import json
from pathlib import Path
from typing import Any

import pytest

from aligngpt.evaluation.scoring_rules import judged, letters, mme, pope, short_answers, vqa

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
LMMS: dict[str, Any] = json.loads((GOLDEN / "lmms_cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES["vqa_normalise"], ids=lambda case: repr(case["text"]))
def test_vqa_normalisation_is_llavas(case: dict[str, str]) -> None:
    assert vqa.normalise_llava(case["text"]) == case["expected"]


def test_textvqa_accuracy_is_llavas() -> None:
    for case in CASES["textvqa_accuracy"]:
        assert vqa.textvqa_accuracy(case["prediction"], case["answers"]) == pytest.approx(case["expected"]), case


def test_pope_answers_are_read_as_llava_reads_them() -> None:
    assert {c["text"]: pope.read_answer(c["text"]) for c in CASES["pope_parse"]} == {
        c["text"]: c["expected"] for c in CASES["pope_parse"]
    }


def test_pope_measures_are_llavas() -> None:
    rows, expected = CASES["pope_metrics"]["rows"], CASES["pope_metrics"]["expected"]
    counts = pope.count_answers([pope.read_answer(row["text"]) for row in rows], [row["label"] for row in rows])
    for name in ("f1", "accuracy", "precision", "recall", "yes_ratio"):
        assert round(getattr(counts, name), expected["decimals"]) == expected[name], name


def test_pope_by_lmms_takes_only_the_bare_word() -> None:
    said = [pope.read_answer_lmms(text) for text in ("Yes", " no ", "Yes.", "no, sir")]
    assert said == ["yes", "no", None, None]
    counts = pope.count_answers(said, ["yes", "no", "yes", "no"])
    # Unread answers are wrong, but neither positive nor negative.
    assert (counts.accuracy, counts.precision, counts.recall, counts.f1) == (0.5, 1.0, 1.0, 1.0)


def test_pope_without_a_yes_has_no_f1() -> None:
    assert pope.count_answers(["no"], ["yes"]).f1 == 0.0


@pytest.mark.parametrize("case", CASES["scienceqa_parse"], ids=lambda case: repr(case["text"]))
def test_science_qa_letters_are_llavas(case: dict[str, str]) -> None:
    assert (letters.science_qa_letter(case["text"]) or "FAILED") == case["expected"]


def test_science_qa_letter_beyond_the_choices_is_wrong() -> None:
    assert letters.science_qa_correct("B", 2, 1)
    assert not letters.science_qa_correct("C", 2, 2)
    assert not letters.science_qa_correct("The answer is C", 3, 2)
    assert not letters.science_qa_correct("The answer is Z.", 5, 4)


@pytest.mark.parametrize("case", LMMS["scienceqa"], ids=lambda case: repr(case["text"]))
def test_science_qa_by_lmms_is_that_of_lmms(case: dict[str, Any]) -> None:
    assert letters.science_qa_correct_lmms(case["text"], case["answer"]) == bool(case["expected"])


def test_science_qa_by_llava_does_not_accept_a_dot_after_the_letter() -> None:
    assert letters.science_qa_correct_lmms("B.", 1) and not letters.science_qa_correct("B.", 3, 1)


def test_mme_answers_are_read_as_lmms_reads_them() -> None:
    for case in CASES["mme_parse"]:
        assert mme.read_answer_lmms(case["text"]) == case["expected"], case


def test_mme_scores_are_those_of_lmms() -> None:
    rows = CASES["mme"]["rows"]
    scores = mme.score_categories(
        [
            mme.Asked(
                row["category"], row["question_id"], row["answer"].lower(), mme.read_answer_lmms(row["prediction"])
            )
            for row in rows
        ]
    )
    assert mme.perception(scores) == pytest.approx(CASES["mme"]["expected"]["mme_perception_score"])
    assert mme.cognition(scores) == pytest.approx(CASES["mme"]["expected"]["mme_cognition_score"])


@pytest.mark.parametrize(
    ("text", "calculation", "lmms"),
    [
        ("Yes", "yes", "yes"),
        ("y", "other", "yes"),
        ("N", "other", "no"),
        ("N.o", "other", "no"),
        (" yes", "yes", "yes"),
        ("  yes", "other", "yes"),
        ("know", "no", "no"),
        ("Not sure", "no", "no"),
        ("It is yes", "other", "other"),
    ],
)
def test_mme_by_calculation_reads_the_first_four_characters(text: str, calculation: str, lmms: str) -> None:
    assert (mme.read_answer(text), mme.read_answer_lmms(text)) == (calculation, lmms)


def test_mme_pairs_need_both_answers() -> None:
    asked = [mme.Asked("OCR", 1, "yes", "yes"), mme.Asked("OCR", 1, "no", "no"), mme.Asked("OCR", 2, "yes", "yes")]
    assert mme.score_categories(asked)["OCR"].both_right == 0.5


def test_gqa_ignores_only_dots_at_the_end_and_case() -> None:
    assert short_answers.gqa_correct("Dog.", "dog")
    assert not any(short_answers.gqa_correct(text, "dog") for text in ("a dog", "dog,", "dog ", "dogs"))


def test_seed_by_llava_needs_the_bare_letter() -> None:
    assert letters.seed_correct("A", "A") and not letters.seed_correct("A.", "A")


@pytest.mark.parametrize("case", LMMS["seedbench"], ids=lambda case: repr(case["text"]))
def test_seed_by_lmms_is_that_of_lmms(case: dict[str, Any]) -> None:
    assert letters.seed_correct_lmms(case["text"], case["letter"]) == bool(case["expected"])


@pytest.mark.parametrize("case", LMMS["vizwiz"], ids=lambda case: repr(case["text"]))
def test_vizwiz_by_lmms_is_that_of_lmms(case: dict[str, Any]) -> None:
    assert vqa.vizwiz_accuracy_lmms(case["text"], case["answers"]) == pytest.approx(case["expected"])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("(B)", "B"),
        ("B. cat", "B"),
        ("The answer is C.", "C"),
        ("A or B", None),
        ("A long answer with many words", None),
        ("it is certainly A", "A"),
        ("none", None),
        ("Z", "Z"),
        ("I can't process this file.", "Z"),
    ],
)
def test_mmbench_letter_stands_alone_near_the_end(text: str, letter: str | None) -> None:
    assert letters.mmbench_letter(text, "ABCD") == letter


def test_mmbench_option_may_be_named_by_its_text() -> None:
    options = {"A": "a red cat", "B": "a dog"}
    assert letters.mmbench_option("It is a Dog", options) == "B"
    assert letters.mmbench_option("a red cat and a dog", options) is None
    assert letters.mmbench_option("a dog " * 9, options) is None


def test_circular_needs_every_shift_and_vanilla_the_first() -> None:
    rows = [(1, True), (1_000_001, True), (2, True), (1_000_002, False), (3, False), (1_000_003, True)]
    assert letters.circular_score(rows) == (1 / 3, 2 / 3, 3)
    with pytest.raises(ValueError, match="at least one row"):
        letters.circular_score([])


def test_official_vqa_rule_differs_from_llavas() -> None:
    # LLaVA removes commas and question marks first and parts the possessive.
    assert (vqa.normalise_llava("the tv's"), vqa.normalise_official("the tv's")) == ("tv 's", "tv's")
    assert (vqa.normalise_llava("1,000 a-b"), vqa.normalise_official("1,000 a-b")) == ("1000 b", "1000 ab")


def test_official_vqa_rule_compares_unchanged_texts_where_all_answers_agree() -> None:
    assert vqa.vqa_accuracy("Two", ["two"] * 10) == 0.0
    assert vqa.vqa_accuracy("two\n", ["two"] * 10) == 1.0
    assert vqa.vqa_accuracy("Two", ["2"] * 2 + ["3"] * 8) == pytest.approx(0.6)
    assert vqa.vqa_accuracy_lmms("Two", ["two"] * 10) == 1.0


def test_at_most_32_dots_are_removed_as_published() -> None:
    assert vqa.normalise_official("a." * 33) == "a" * 32 + "a."


def test_textvqa_needs_ten_answers() -> None:
    with pytest.raises(ValueError, match="10 human answers"):
        vqa.textvqa_accuracy("x", ["x"] * 9)


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 7\nBecause", (8.0, 7.0)),
        ("8,7", (8.0, 7.0)),
        ("8.5 9", (8.5, 9.0)),
        ("8, 7", None),
        ("Assistant 1: 8", None),
        ("nan 7", None),
        ("-1 -1", None),
        ("", None),
    ],
)
def test_a_review_is_two_numbers_or_unread(reply: str, scores: tuple[float, float] | None) -> None:
    assert judged.read_review(reply) == scores


def test_relative_score_is_the_ratio_of_sums() -> None:
    reviews = [judged.ReviewScores(10, 5), judged.ReviewScores(6, 7)]
    assert judged.relative_score(reviews) == (75.0, 80.0, 60.0)
    with pytest.raises(ValueError, match="have points"):
        judged.relative_score([])


def test_mm_vet_questions_count_for_each_capability() -> None:
    figures = judged.mm_vet_scores({"a": 1.0, "b": 0.5}, {"a": ["ocr", "math"], "b": ["ocr"]})
    assert figures == {"math": 100.0, "ocr": 75.0, "total": 75.0}
    with pytest.raises(ValueError, match="expected 0…1"):
        judged.mm_vet_scores({"a": -1.0}, {"a": ["ocr"]})
