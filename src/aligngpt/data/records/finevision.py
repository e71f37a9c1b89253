"""The layout of FineVision and The Cauldron: `texts`, a list of questions with their answers."""

from collections.abc import Mapping

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.turns import Said, is_learned, with_own_images


def user_and_assistant(turn: object, number: int) -> list[Said]:
    """The two turns in an element of `texts`, as in FineVision and The Cauldron; for other fields see `turn_of`."""
    if not isinstance(turn, Mapping) or not all(isinstance(turn.get(name), str) for name in ("user", "assistant")):
        raise RecordError(
            "no_conversation", f"text {number} needs the strings `user` and `assistant`, found {turn!r:.80}"
        )
    return [
        with_own_images(Said("user", turn["user"]), turn, number),
        Said("assistant", turn["assistant"], learned=is_learned(turn, number)),
    ]
