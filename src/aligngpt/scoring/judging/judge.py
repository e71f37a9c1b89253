"""A judge: a model behind an endpoint, with all that its scores depend on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aligngpt.data.records.pairs import PairSource
from aligngpt.scoring.first_pairs import FirstPairs
from aligngpt.scoring.judging.questions import JudgeError, Prompt, Scale, shown
from aligngpt.scoring.manifest import JUDGED, Manifest

DEFAULT_OPTIONS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 1024}
OWN_FIELDS = {"model", "messages", "stream", "n"}
"""Fields of a request that are set by us."""


@dataclass(frozen=True)
class Judge:
    """A judge and its question.

    Attributes:
        model: the model's name at the endpoint.
        prompt: the question.
        scale: the range of the scores.
        options: other fields of a request.
        max_side: largest width and height of the images that are sent, in pixels.

    Raises:
        JudgeError: an option is one of `OWN_FIELDS`.
    """

    model: str
    prompt: Prompt = field(default_factory=Prompt)
    scale: Scale = field(default_factory=Scale)
    options: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_OPTIONS))
    max_side: int = 1024

    def __post_init__(self) -> None:
        if taken := sorted(OWN_FIELDS & set(self.options)):
            raise JudgeError(f"the option {taken[0]} of requests is set by this command; omit it in --options")

    def question(self, caption: str) -> dict[str, Any]:
        """The fields of a request about a caption, with the text of the question in `text` in place of messages."""
        return {**self.options, "model": self.model, "text": self.prompt.filled(caption, self.scale)}

    def request(self, caption: str, url: str) -> dict[str, Any]:
        """The request about a caption and an image."""
        fields = self.question(caption)
        parts = [{"type": "text", "text": fields.pop("text")}, {"type": "image_url", "image_url": {"url": url}}]
        return fields | {"messages": [{"role": "user", "content": parts}]}

    def manifest(self, source: PairSource, endpoint: str) -> Manifest:
        """The manifest of a new job. The endpoint is noted, but not compared when the job is resumed."""
        shards = source.shards()
        cut = json.dumps([(shard.index, shard.name, shard.records) for shard in shards])
        asked = json.dumps([self.prompt.template, dict(self.options)], sort_keys=True)
        return Manifest(
            source={"kind": source.kind, "fingerprint": source.fingerprint()},
            shards=len(shards),
            cut=hashlib.sha256(cut.encode()).hexdigest(),
            model=f"{self.model} at {endpoint}",
            model_fingerprint=hashlib.sha256(self.model.encode()).hexdigest(),
            preprocessing={"max_side": self.max_side},
            dtype="float32",
            batch_size=1,
            embeddings=False,
            score=(
                f"{JUDGED} on a scale of {self.scale}, prompt and options "
                f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
            ),
            reading=source.settings(),
            limit=source.limit if isinstance(source, FirstPairs) else None,
        )


def parse_options(text: str | None) -> dict[str, Any]:
    """The options of requests in a JSON object; they are added to `DEFAULT_OPTIONS`, and null removes one.

    Raises:
        JudgeError: it is not a JSON object.
    """
    try:
        given = json.loads(text or "{}")
    except ValueError as error:
        raise JudgeError(
            f'the options must be JSON such as {{"max_tokens": 100}}, found {shown(text or "")}'
        ) from error
    if not isinstance(given, dict):
        raise JudgeError(f'the options must be a JSON object such as {{"max_tokens": 100}}, found {shown(text or "")}')
    return {name: value for name, value in {**DEFAULT_OPTIONS, **given}.items() if value is not None}
