"""The engine's events → the bodies and stream chunks of OpenAI's interface."""

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aligngpt.inference.requests import Answer, Finished, TextDelta, TokenChoice
from aligngpt.serving.protocol import ChatRequest

LEAST_LOG_PROBABILITY = -9999.0
"""In place of minus infinity, which JSON cannot write; OpenAI's interface does the same."""


def token_text(tokenizer: Any, token: int) -> str:
    """A token as text; parts of a character become U+FFFD.

    Tokenizers of SentencePiece's kind leave out the space before a word when they decode it alone; it is put back.
    """
    text: str = tokenizer.decode([token])
    piece = tokenizer.convert_ids_to_tokens(token)
    return f" {text}" if isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" ") else text


@dataclass
class Writer:
    """Writes the answer to one request.

    Attributes:
        body: the request.
        tokenizer: turns token ids into texts, for log-probabilities.
        fingerprint: names the program and the weights.
    """

    body: ChatRequest
    tokenizer: Any
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The whole body of an answer that is not streamed; `answers` in the order of their indices."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self._logprobs(answer.choices),
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(answers)} | self._weights(answers)

    def roles(self, answers: int) -> Iterable[dict[str, Any]]:
        """The first chunk of each answer."""
        for index in range(answers):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def delta(self, delta: TextDelta) -> dict[str, Any] | None:
        """A chunk with new text; None if there is nothing to tell."""
        if not (delta.text or delta.choices):
            return None
        return self._chunk(delta.index, {"content": delta.text}, choices=delta.choices)

    def last(self, finished: Finished) -> dict[str, Any]:
        """The last chunk of an answer."""
        return self._chunk(finished.index, {}, reason=finished.answer.finish_reason) | self._weights([finished.answer])

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The chunk with the number of tokens, after all answers."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answers)}

    @property
    def counts(self) -> bool:
        """Whether the stream ends with the number of tokens."""
        return self.body.stream_options is not None and bool(self.body.stream_options.include_usage)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.body.model,
            "system_fingerprint": self.fingerprint,
        }

    def _chunk(
        self, index: int, delta: dict[str, Any], *, reason: str | None = None, choices: Sequence[TokenChoice] = ()
    ) -> dict[str, Any]:
        logprobs = self._logprobs(choices) if choices else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return chunk | ({"usage": None} if self.counts else {})

    def _weights(self, answers: Sequence[Answer]) -> dict[str, Any]:
        if not self.body.alignment_weights:
            return {}
        weights = answers[0].alignment_weights
        return {"alignment_weights": None if weights is None else list(weights)}

    def _logprobs(self, choices: Sequence[TokenChoice]) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        told = [
            {
                **self._told(choice.id, choice.log_probability),
                "top_logprobs": [self._told(token, value) for token, value in choice.alternatives],
            }
            for choice in choices
        ]
        return {"content": told, "refusal": None}

    def _told(self, token: int, log_probability: float) -> dict[str, Any]:
        text = token_text(self.tokenizer, token)
        # A part of a character has no text of its own, so its bytes are not told.
        told = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": max(log_probability, LEAST_LOG_PROBABILITY), "bytes": told}


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Number of tokens of a conversation and all its answers."""
    prompt, generated = answers[0].prompt_tokens, sum(answer.tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": answers[0].reused_tokens},
    }
