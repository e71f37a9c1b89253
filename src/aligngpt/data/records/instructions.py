"""An instruction with its output in fields of their own, as in Alpaca, ms-swift and TRL."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.turns import Said, turn_of
from aligngpt.data.sources.fields import is_given


class InstructionLayout(NamedTuple):
    """The fields of a layout.

    Attributes:
        asked: the field of the instruction, or of the last question.
        answered: the field of its output.
        more: the fields that complete it: text that is added to the instruction, and earlier questions with answers.
    """

    asked: str
    answered: str
    more: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields of the layout."""
        return (self.asked, self.answered, *self.more)

    def said(self, record: Mapping[str, Any]) -> list[Said]:
        """The turns of a record in this layout, earlier ones first.

        Raises:
            RecordError: a field holds anything other than texts (or, in TRL's layout, turns), there is no output, or
                the record has a question, answer or caption beside it.
        """
        for field in ("question", "answer", "answers", "caption"):
            if is_given(record.get(field)):
                raise RecordError(
                    "two_conversations",
                    f"the record has `{field}` beside `{self.asked}` and `{self.answered}`; keep one",
                )
        if not is_given(record.get(self.answered)):
            raise RecordError(
                "unanswered", f"`{self.asked}` is a question without an answer: `{self.answered}` is empty"
            )
        asked, answered = record[self.asked], record[self.answered]
        if self.asked == "prompt" and isinstance(record.get("label"), bool):
            raise RecordError(
                "preference_data",
                "`label` says whether `completion` is good or bad: preference data is not read; leave out the bad "
                "completions, and `label` in the others",
            )
        if self.asked == "prompt" and isinstance(asked, list) and isinstance(answered, list):
            turns = enumerate([*asked, *answered], start=1)
            return [one for number, turn in turns for one in turn_of(turn, number)]
        question = _text(record, self.asked)
        if "input" in self.more and is_given(record.get("input")):
            question = f"{question}\n{_text(record, 'input')}"
        history = _history(record["history"]) if "history" in self.more and _has_history(record) else []
        return [*history, Said("user", question), Said("assistant", _text(record, self.answered))]


INSTRUCTION_LAYOUTS = (
    InstructionLayout("instruction", "output", ("input", "history")),
    InstructionLayout("query", "response", ("history",)),
    InstructionLayout("prompt", "completion"),
)
"""The layouts of Alpaca (and LLaMA-Factory), of ms-swift, and of TRL."""

INSTRUCTION_FIELDS = tuple(dict.fromkeys(field for layout in INSTRUCTION_LAYOUTS for field in layout.fields))


def instruction_layout(record: Mapping[str, Any]) -> InstructionLayout | None:
    """The layout of a record: the one whose instruction is given and whose output is a field of the record.

    Raises:
        RecordError: the record is in several of these layouts.
    """
    found = [one for one in INSTRUCTION_LAYOUTS if is_given(record.get(one.asked)) and one.answered in record]
    answered = [one for one in found if is_given(record.get(one.answered))] or found
    if len(answered) > 1:
        named = " and ".join(f"`{one.asked}`" for one in answered)
        raise RecordError("two_conversations", f"{named} both have an answer; keep one of them")
    return next(iter(answered), None)


def _has_history(record: Mapping[str, Any]) -> bool:
    # LLaMA-Factory's files write an empty list as a string.
    return is_given(record.get("history")) and record["history"] != "[]"


def _history(found: object) -> list[Said]:
    turns: list[Said] = []
    for one in found if isinstance(found, list) else [found]:
        if not isinstance(one, list | tuple) or len(one) != 2 or not all(isinstance(text, str) for text in one):
            raise RecordError(
                "no_conversation",
                f"`history` must be a list of pairs of texts, each a question with its answer; found {one!r:.80}",
            )
        turns += [Said("user", one[0]), Said("assistant", one[1])]
    return turns


def _text(record: Mapping[str, Any], field: str) -> str:
    found = record[field]
    if not isinstance(found, str):
        raise RecordError("no_conversation", f"`{field}` must be a string, found {found!r:.80}")
    return found.strip()
