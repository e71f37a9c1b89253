"""A pair: an image with its caption, or a question with its answers."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.turns import Said
from aligngpt.data.sources.fields import is_given

ANSWER_FIELDS = ("answer", "answers", "label")

# A list of texts or objects, as JSON and Python write it. A list of numbers may be an answer, such as a box.
_LIST_AS_TEXT = re.compile(r"""\[\s*['"{].*\]""", re.DOTALL)


def question_field(record: Mapping[str, Any]) -> str | None:
    """The field that holds a pair's question; None if it has a caption instead.

    Beside an answer or a `question_id`, `text` is a question, as in LLaVA's question files.
    """
    if record.get("question") is not None:
        return "question"
    if record.get("caption") is not None or record.get("text") is None:
        return None
    marks = (*ANSWER_FIELDS, "question_id")
    # Tables have every field in every record: if `question` is one of them, an empty answer means nothing.
    asks = any(field in record for field in marks) if "question" not in record else False
    return "text" if asks or any(is_given(record.get(field)) for field in marks) else None


def caption_field(record: Mapping[str, Any]) -> str | None:
    """The field that holds a pair's caption; None if there is none."""
    return next((field for field in ("caption", "text") if record.get(field) is not None), None)


def pair(record: Mapping[str, Any]) -> list[Said]:
    """The question and the answer of a pair; the question of a caption is empty.

    Raises:
        RecordError: the record is no pair, or its question or answer is missing or not a text.
    """
    asked, caption = question_field(record), caption_field(record)
    given = [field for field in ANSWER_FIELDS if is_given(record.get(field))]
    if asked is None and caption is not None:
        # A label may accompany a caption, because both describe the image.
        if answers := [field for field in given if field != "label"]:
            raise RecordError("no_question", f"`{answers[0]}` is an answer, but there is no `question`")
        return [Said("user", ""), Said("assistant", _text(record, caption).strip())]
    if asked is None:
        raise RecordError(
            "no_conversation",
            "the record needs `conversations`, `messages`, `texts`, `caption`, or `question` and `answer`; "
            f"found {', '.join(f'`{field}`' for field in record) or 'nothing'}",
        )
    question = Said("user", _text(record, asked).strip())
    # `answer` is the answer to give; `answers` are all that count as correct.
    used = [field for field in ("answer", "answers") if field in given] or given[:1]
    listed = [_answers(record[field], field) for field in used]
    if not listed and asked == "question" and caption is not None and record.get("question_id") is None:
        listed = [[_text(record, caption).strip()]]
    if not listed and "answer" in record and isinstance(record["answer"], str):
        listed = [[record["answer"].strip()]]
    if not listed:
        raise RecordError(
            "unanswered",
            f"`{asked}` is a question without an answer: expected `answer`, `answers` or `label`, found "
            f"{', '.join(f'`{field}`' for field in record)}",
        )
    best = Counter(listed[0]).most_common(1)[0][0]
    accepted = tuple(dict.fromkeys([best, *(answer for answers in listed for answer in answers)]))
    return [question, Said("assistant", best, accepted=accepted if len(accepted) > 1 else ())]


def _text(record: Mapping[str, Any], field: str) -> str:
    found = record[field]
    if not isinstance(found, str):
        raise RecordError("no_conversation", f"`{field}` must be a string, found {found!r:.80}")
    return found


def _answers(found: object, field: str) -> list[str]:
    """The answers in a field: a string, a list of strings, or VQA's list of objects with an `answer` each."""
    if field == "answers" and isinstance(found, str) and _LIST_AS_TEXT.fullmatch(found.strip()):
        raise RecordError(
            "unanswered", f"`answers` is a list written as text, {found!r:.80}; save the records as JSON lines"
        )
    listed = found if isinstance(found, list) else [found]
    texts = [one.get("answer") if isinstance(one, Mapping) else one for one in listed]
    answers = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    if not answers or not all(isinstance(text, str) for text in texts):
        raise RecordError("unanswered", f"`{field}` must be a string or a list of strings, found {found!r:.80}")
    return answers
