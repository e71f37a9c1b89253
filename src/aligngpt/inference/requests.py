"""What is asked of a model and what it answers: conversations, how tokens are chosen, answers and their parts."""

from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from aligngpt.errors import AlignGPTError

FinishReason = Literal["stop", "length"]

GREEDY_BELOW = 1e-3
"""Smaller temperatures are greedy: the logits divided by them would overflow."""


class EngineError(AlignGPTError):
    """A model cannot be loaded, or cannot answer a request."""


@dataclass(frozen=True)
class Request:
    """A conversation to answer.

    Attributes:
        messages: in transformers' chat format, with `{"type": "image"}` as placeholder for each image.
        images: the images, in the order of their placeholders; the model reads them upright (EXIF) and as RGB.
        level: alignment level 1…N to force; None leaves it to the gate.
        keep: keep what was computed, for a later request that continues this conversation.

    Raises:
        EngineError: an image is not a PIL image.
    """

    messages: list[dict[str, Any]]
    images: tuple[Image.Image, ...] = ()
    level: int | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        several = isinstance(self.images, (list, tuple))
        if not several or not all(isinstance(image, Image.Image) for image in self.images):
            raise EngineError(
                f"the images of a request must be a tuple of PIL images, got {str(self.images)[:80]}; open a file with "
                "aligngpt.data.images.opening.open_image"
            )

    @classmethod
    def ask(cls, question: str, *images: Image.Image, level: int | None = None) -> "Request":
        """One question about any number of images."""
        parts = [{"type": "image"} for _ in images]
        return cls([{"role": "user", "content": [*parts, {"type": "text", "text": question}]}], images, level)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: maximum number of generated tokens.
        temperature: sampling temperature; 0, or anything below `GREEDY_BELOW`, for greedy decoding.
        top_p: sample from the most likely tokens with this total probability.
        top_k: sample from this many most likely tokens; 0 for all.
        seed: random seed of this request; the same seed gives the same answer, whatever else is being answered.
        stop: the answer ends before the first of these texts; one text or several.
        answers: number of answers to draw; answer i is drawn with `seed + i`.
        log_probabilities: number of most likely tokens to report with each token; 0 reports the chosen one alone; None
            reports nothing.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    stop: tuple[str, ...] | str = ()
    answers: int = 1
    log_probabilities: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        problems = {
            "max_new_tokens must be at least 1": self.max_new_tokens < 1,
            "temperature must be a number from 0 up": not 0 <= self.temperature < float("inf"),
            "top_p must be above 0 and at most 1": not 0 < self.top_p <= 1,
            "top_k must be at least 0": self.top_k < 0,
            "answers must be at least 1": self.answers < 1,
            "log_probabilities must be at least 0": (self.log_probabilities or 0) < 0,
            "a stop text must not be empty": "" in self.stop,
        }
        for problem, found in problems.items():
            if found:
                raise EngineError(f"{problem}, in {self}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken each time, whatever the seed."""
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True)
class TokenChoice:
    """A generated token and how likely it was.

    Attributes:
        id: token id.
        log_probability: natural logarithm of its probability, before temperature, top-p and top-k.
        alternatives: id and log-probability of the most likely tokens, most likely first.
    """

    id: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """The answer of a model.

    Attributes:
        text: the answer without special tokens and without white space around it.
        tokens: number of generated tokens, without the end token.
        stopped: whether the model, or a stop text, ended the answer, rather than `max_new_tokens`.
        alignment_weights: the gate's weights for levels 1…N-1; None if no gate ran.
        prompt_tokens: number of tokens of the conversation.
        reused_tokens: how many of these were kept from an earlier request.
        choices: the tokens with their probabilities, if asked for.
    """

    text: str
    tokens: int
    stopped: bool
    alignment_weights: tuple[float, ...] | None = field(default=None)
    prompt_tokens: int = field(default=0, compare=False)
    reused_tokens: int = field(default=0, compare=False)
    choices: tuple[TokenChoice, ...] = ()

    @property
    def finish_reason(self) -> FinishReason:
        return "stop" if self.stopped else "length"


@dataclass(frozen=True)
class Likelihood:
    """How likely a given answer is.

    Attributes:
        log_probability: natural logarithm of the probability of the answer's tokens, with the end of the turn.
        token_log_probabilities: the same per token.
        greedy: whether each token is the most likely one.
    """

    log_probability: float
    token_log_probabilities: tuple[float, ...]
    greedy: bool


@dataclass(frozen=True)
class TextDelta:
    """A part of an answer that has just been generated.

    Attributes:
        index: which of the request's answers.
        text: the new text; may be empty.
        choices: the new tokens with their probabilities, if asked for.
    """

    index: int
    text: str
    choices: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True)
class Finished:
    """An answer is complete.

    Attributes:
        index: which of the request's answers.
        answer: the whole answer.
    """

    index: int
    answer: Answer


@dataclass(frozen=True)
class Failed:
    """A request cannot be answered.

    Attributes:
        error: why.
    """

    error: BaseException


Event = TextDelta | Finished | Failed
