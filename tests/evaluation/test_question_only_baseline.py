"""Tests of the text-only baseline: the most frequent answer to the question, or to questions that start like it."""

from aligngpt.data.records.sample import Sample, Turn
from aligngpt.evaluation.question_only_baseline import AnswerPrior


def sample(question: str, answer: str) -> Sample:
    return Sample("", (Turn("user", question), Turn("assistant", answer)), ("picture.png",))


def prior(*pairs: tuple[str, str]) -> AnswerPrior:
    return AnswerPrior.fit([sample(*pair) for pair in pairs])


def test_a_known_question_gets_its_most_frequent_answer() -> None:
    fitted = prior(
        ("What colour is it?", "Red."),
        ("what colour is it", "red"),
        ("What colour is it?", "blue"),
        ("What colour is the sky?", "blue"),
        ("What colour is the sea?", "blue"),
    )
    assert fitted.predict("What colour is it?") == "red"
    assert fitted.predict("WHAT COLOUR IS IT") == "red"


def test_an_unknown_question_is_answered_by_its_first_words() -> None:
    fitted = prior(
        ("is it red", "yes"),
        ("is it a circle", "yes"),
        ("is there water", "no"),
        ("is there fire", "no"),
        ("is there one more", "no"),
        ("how many dogs", "two"),
    )
    assert fitted.predict("is it blue") == "yes"  # two words
    assert fitted.predict("is anybody here") == "no"  # one word
    assert fitted.predict("how many dogs bark") == "two"  # three words
    assert fitted.predict("where am I") == "no"  # no words in common: the most frequent answer overall


def test_a_question_counts_once_for_what_it_begins_with() -> None:
    fitted = prior(("what", "this"), ("what is it", "that"), ("what are they", "that"))
    assert fitted.predict("what else") == "that"
    assert fitted.predict("nothing") == "that"


def test_equals_are_told_apart_by_the_alphabet_and_not_by_order() -> None:
    pairs = [("which", "b"), ("which", "c"), ("which", "d")]
    assert prior(*pairs).predict("which") == prior(*reversed(pairs)).predict("which") == "b"


def test_nothing_fitted_answers_nothing() -> None:
    assert prior().predict("what is it") == ""


def test_the_last_turn_of_a_conversation_is_what_counts() -> None:
    turns = [Turn("user", "is it red"), Turn("assistant", "yes"), Turn("user", "how many"), Turn("assistant", "two")]
    fitted = AnswerPrior.fit([Sample("", tuple(turns))])
    assert fitted.predict("how many") == "two"
    assert fitted.right_records([Sample("", tuple(turns), record=7)]) == [7]


def test_right_answers_are_counted_as_an_evaluation_does() -> None:
    fitted = prior(("is it red", "yes"), ("how many", "two"))
    tested = [sample("is it red", "Yes."), sample("is it red", "no"), sample("how many", "the two")]
    assert len(fitted.right_records(tested)) == 2
    assert fitted.right_records([]) == []
