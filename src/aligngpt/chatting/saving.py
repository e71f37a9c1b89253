"""Writes a conversation to a file, as a LLaVA record or as text."""

import json
import os
from pathlib import Path

from aligngpt.chatting.conversation import Conversation, Shown
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.sample import Sample, parse_record, to_record
from aligngpt.data.records.sample import Turn as SampleTurn
from aligngpt.data.records.tags import IMAGE_PLACEHOLDER
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write

TEXT_ENDINGS = (".txt", ".md")


class SaveError(AlignGPTError):
    """A conversation cannot be saved."""


def save(conversation: Conversation, path: Path, *, own: set[Path]) -> list[Path]:
    """Write a conversation.

    Args:
        conversation: with at least one turn.
        path: a `.json` file gets a list of one record in LLaVA's layout, a `.txt` or `.md` file readable text; without
            an ending both are written. Paths of images are relative to the folder of the file if they are inside it,
            else absolute.
        own: files that may be replaced, because this chat wrote them; the new ones are added.

    Returns:
        The written files.

    Raises:
        SaveError: there is nothing to save, the path is a folder, the ending is another one, a file exists already, or
            it cannot be written.
    """
    if not conversation.turns:
        raise SaveError("there is nothing to save yet; ask a question first")
    path = Path(os.path.abspath(path.expanduser()))
    if path.is_dir():
        raise SaveError(f"{path} is a folder; name a file in it")
    ending = path.suffix.lower()
    if ending not in ("", ".json", *TEXT_ENDINGS):
        raise SaveError(f"{path} cannot be written: give it the ending .json, .txt or .md, or none for .json and .txt")
    targets = [path] if ending else [path.with_name(path.name + one) for one in (".json", ".txt")]
    for target in targets:
        if target.is_dir():
            raise SaveError(f"{target} is a folder; name a file in it")
        if target.exists() and target not in own:
            raise SaveError(f"{target} exists already; give another name, or delete it first")
    for target in targets:
        text = as_llava(conversation, target) if target.suffix.lower() == ".json" else as_text(conversation, target)
        try:
            with atomic_write(target) as file:
                file.write(text)
        except OSError as error:
            raise SaveError(f"{target} cannot be written: {error.strerror or error}") from error
        except UnicodeEncodeError as error:
            raise SaveError(
                f"{target} cannot be written: the path of an image is not UTF-8; rename the image"
            ) from error
        own.add(target)
    return targets


def as_llava(conversation: Conversation, target: Path) -> str:
    """The conversation as a JSON list of one record in LLaVA's layout.

    Raises:
        SaveError: a text contains the tag of an image, video or audio, so that the file could not be read again.
    """
    shown = conversation.shown()
    in_front = not any(turn.shown for turn in conversation.turns[1:])
    turns: list[SampleTurn] = []
    for number, turn in enumerate(conversation.turns):
        front = "" if in_front and number == 0 else f"{IMAGE_PLACEHOLDER}\n" * len(turn.shown)
        turns += [SampleTurn("user", front + _written(turn.question)), SampleTurn("assistant", _written(turn.answer))]
    sample = Sample("chat", tuple(turns), images=tuple(_name(one, target) for one in shown))
    record = to_record(sample)
    try:
        parse_record(record)
    except RecordError as error:
        raise SaveError(f"the conversation cannot be saved as JSON: {error}; save it as .txt") from error
    return json.dumps([record], ensure_ascii=False, indent=2) + "\n"


def as_text(conversation: Conversation, target: Path) -> str:
    """The conversation as readable text, a paragraph per image, question and answer."""
    paragraphs: list[str] = []
    for turn in conversation.turns:
        paragraphs += [f"[image: {_name(one, target)}]" for one in turn.shown]
        level = "" if turn.level is None else f" (level {turn.level})"
        paragraphs += [f"You: {turn.question}", f"Model{level}: {turn.answer}"]
    return "\n\n".join(paragraphs) + "\n"


def _written(text: str) -> str:
    # As the model read it: `AlignGPTProcessor.neutral` breaks up special tokens in texts in the same way.
    return text.replace(IMAGE_PLACEHOLDER, f"{IMAGE_PLACEHOLDER[0]}\u2060{IMAGE_PLACEHOLDER[1:]}")


def _name(shown: Shown, target: Path) -> str:
    inside = shown.path.is_relative_to(target.parent)
    return (shown.path.relative_to(target.parent) if inside else shown.path).as_posix()
