"""Conversations in which the assistant calls tools, as alternating turns of user and assistant.

ShareGPT has `function_call` and `observation`, OpenAI `tool` and `function`, ms-swift `tool_call` and `tool_response`.
A call is the assistant's turn; what the tool returns is read as the user's turn is, and not learned from.
"""

from collections.abc import Sequence

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.turns import Said


def with_tool_turns(said: Sequence[Said]) -> list[Said]:
    """The turns, with what belongs to one turn joined by line breaks.

    Joined are a call with the assistant's text or the call before it, and a result with the result before it, as when
    several tools are called at once. A conversation without tools is returned as it is.

    Raises:
        RecordError: `tool_order`, no conversation can have its calls and results in this order; `turn_loss`, only part
            of a joined turn counts in the loss.
    """
    turns: list[Said] = []
    for number, turn in enumerate(said, start=1):
        before = turns[-1] if turns else Said("system", "")
        if turn.tool and turn.speaker == "user":
            if before.speaker == "assistant":
                turns.append(turn)
            elif before.tool:
                turns[-1] = _joined(before, turn, number)
            else:
                raise _wrong_order(number, "is a tool's result", "the assistant's turn before it")
        elif turn.tool:
            if before.speaker == "system":
                raise _wrong_order(number, "calls a tool", "a question before it")
            if before.speaker == "assistant":
                turns[-1] = _joined(before, turn, number)
            else:
                turns.append(turn)
        elif before.tool and before.speaker == turn.speaker:
            missing = "the tool's result" if turn.speaker == "assistant" else "the assistant's answer"
            raise _wrong_order(number, f"is the {turn.speaker}'s", f"{missing} before it")
        else:
            turns.append(turn)
    return turns


def _wrong_order(number: int, found: str, needed: str) -> RecordError:
    return RecordError("tool_order", f"turn {number} {found}, which needs {needed}; put the turns in order")


def _joined(first: Said, second: Said, number: int) -> Said:
    if first.speaker == "assistant" and first.learned != second.learned:
        raise RecordError(
            "turn_loss",
            f"turn {number} is one answer together with the turn before it, but only one of them counts in the loss; "
            "give both the same `loss` or `weight`",
        )
    return first._replace(
        text=f"{first.text}\n{second.text}",
        parts=first.parts + second.parts,
        images=first.images + second.images,
        picks=first.picks + second.picks,
        tool=True,
    )
