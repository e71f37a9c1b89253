"""The turns of a record in any supported layout; each layout is read in a module of its own.

Every layout is read into the same form: turns with `<image>` for each image, and the image paths.
"""

from collections.abc import Mapping
from typing import Any

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.finevision import user_and_assistant
from aligngpt.data.records.instructions import instruction_layout
from aligngpt.data.records.pair import pair
from aligngpt.data.records.tags import check_tags
from aligngpt.data.records.tool_turns import with_tool_turns
from aligngpt.data.records.turns import Said, turn_of
from aligngpt.data.sources.fields import is_given

TURN_FIELDS = ("conversations", "messages", "texts")
SYSTEM_FIELDS = ("system", "system_prompt")


def what_is_said(record: Mapping[str, Any]) -> list[Said]:
    """The turns of a record as written, with any roles in any order.

    Read are `conversations` and `messages`, each a list of turns with `from` and `value` or with `role` and `content`;
    `texts`, a list of turns with `user` and `assistant`; an instruction with its output (see `InstructionLayout`); and
    pairs: a question (`question`, or `text` beside an answer or a `question_id`) with its `answer`, `answers` or
    `label`, or a `caption` or `text` alone. A `system` or `system_prompt` beside them is the system turn.

    Raises:
        RecordError: a turn has no text or an unknown role, a part of it cannot be used, a question has no answer, the
            turns of tools are in an impossible order, or the record contradicts itself.
    """
    found: dict[str, list[Said]] = {}
    for field in TURN_FIELDS:
        turns = record.get(field)
        if turns is None:
            continue
        if not isinstance(turns, list):
            raise RecordError("no_conversation", f"`{field}` must be a list, found {turns!r:.80}")
        read = user_and_assistant if field == "texts" else turn_of
        found[field] = [one for number, turn in enumerate(turns, start=1) for one in read(turn, number)]
    filled = {field: said for field, said in found.items() if said} or found
    if any(said != next(iter(filled.values())) for said in filled.values()):
        raise RecordError("two_conversations", f"{' and '.join(f'`{field}`' for field in filled)} differ; keep one")
    if any(filled.values()) or (layout := instruction_layout(record)) is None:
        said = next(iter(filled.values())) if filled else pair(record)
    else:
        said = layout.said(record)
    for turn in said:
        check_tags(turn.text, turn.speaker)
    return _with_system(record, with_tool_turns(said))


def _with_system(record: Mapping[str, Any], said: list[Said]) -> list[Said]:
    """The turns, with the system prompt from a separate field, if there is one, as the first turn."""
    told = {field: record[field] for field in SYSTEM_FIELDS if is_given(record.get(field))}
    for field, text in told.items():
        if not isinstance(text, str):
            raise RecordError("system", f"the field `{field}` must be a string, found {text!r:.80}")
    texts = list(told.values())
    if said and said[0].speaker == "system" and said[0].text.strip():
        texts.append(said[0].text)
    if len({text.strip() for text in texts}) > 1:
        raise RecordError("system", "the record has two different system prompts; keep one of them")
    if not told:
        return said
    system = Said("system", texts[0])
    check_tags(system.text, system.speaker)
    return [system, *(said[1:] if said and said[0].speaker == "system" else said)]
