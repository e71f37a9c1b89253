"""The layout of FineVision and The Cauldron: `texts`, a list of questions with their answers."""

from collections.abc import Mapping

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.turns import Said


def user_and_assistant(turn: object, number: int) -> list[Said]:
    """The two turns in an element of `texts`, as in FineVision and The Cauldron."""
    if not isinstance(turn, Mapping) or not all(isinstance(turn.get(name), str) for name in ("user", "assistant")):
        raise RecordError(
            "no_conversation", f"text {number} needs the strings `user` and `assistant`, found {turn!r:.80}"
        )
    return [Said("user", turn["user"]), Said("assistant", turn["assistant"])]
