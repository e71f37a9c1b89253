"""What a client may ask: the request of `/v1/chat/completions`. What is not supported is refused, never ignored."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from aligngpt.serving.errors import ApiError

MAX_ANSWERS = 8
MAX_STOPS = 4
MAX_STOP_LENGTH = 1_000
"""Characters of a stop text. After each token, all its beginnings are looked for, while all clients wait."""
MAX_VALUES = 50_000
"""Values in a request, each text, number, list and object counted. Checking more would keep all clients waiting."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields of OpenAI's interface that are not supported, and the values besides null that ask for nothing."""

EMPTY_IN_ANSWERS = ("annotations", "audio", "function_call", "refusal", "tool_calls")
"""Fields that clients send back, empty, with an earlier answer."""


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "surrogate", "the text has half of a surrogate pair, which is no character"
        ) from error
    return text


def _check_count(values: dict[str, Any]) -> None:
    left, waiting = MAX_VALUES, list[Any]([values])
    while waiting:
        value = waiting.pop()
        left -= len(value)
        if left < 0:
            raise ApiError(
                400,
                f"the request has more than {MAX_VALUES} values; send fewer messages, or fewer parts in them",
                code="too_many_values",
            )
        children = value.values() if isinstance(value, dict) else value
        waiting.extend(child for child in children if isinstance(child, dict | list))


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticCustomError("number", "give a number, without quotation marks")
    return value


def _form(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


def _kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return {"text": "<text>", "image_url": "<image>"}.get(kind) if isinstance(kind, str) else None


TAGS = ("<text>", "<list>", "<image>")
"""Stand in the places that pydantic's errors name, though the client wrote no such field."""

Text = Annotated[str, AfterValidator(_utf8)]
Stop = Annotated[str, Field(max_length=MAX_STOP_LENGTH), AfterValidator(_utf8)]
Number = BeforeValidator(_number)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Strict):
    """A part of a message that is text."""

    type: Literal["text"]
    text: Text


class ImageUrl(_Strict):
    """Where an image is. `detail` is accepted and has no effect: the model has one resolution."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Strict):
    """A part of a message that is an image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image>")],
    Discriminator(
        _kind,
        custom_error_type="part",
        custom_error_message='a part is {"type": "text", "text": …} or {"type": "image_url", "image_url": {"url": …}}; '
        "others are not supported",
    ),
]


class Message(_Strict):
    """A message; images may stand in those of users."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[list[Part], Field(min_length=1), Tag("<list>")],
        Discriminator(_form, custom_error_type="content", custom_error_message="give a text or a list of parts"),
    ]

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if name not in EMPTY_IN_ANSWERS or value}


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: StrictBool | None = None


class ChatRequest(_Strict):
    """The body of `/v1/chat/completions`.

    `alignment_level`, `alignment_weights` and `top_k` are extensions: the level 1…N to use instead of the gate's mix,
    whether to return the weights of that mix, and to sample from this many most likely tokens (0: all).
    """

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Number, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Number, Field(ge=1)] | None = None
    temperature: Annotated[float, Number, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Number, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Number, Field(ge=0, lt=2**31)] | None = None
    seed: Annotated[int, Number, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Number, Field(ge=1, le=MAX_ANSWERS)] | None = None
    stop: (
        Annotated[
            Annotated[Stop, Tag("<text>")] | Annotated[list[Stop], Field(max_length=MAX_STOPS), Tag("<list>")],
            Discriminator(_form, custom_error_type="stop", custom_error_message="give a text or a list of texts"),
        ]
        | None
    ) = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Number, Field(ge=0, le=20)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    alignment_level: Annotated[int, Number, Field(ge=1)] | None = None
    alignment_weights: StrictBool | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_unsupported(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        _check_count(values)
        for name, allowed in NEUTRAL.items():
            value = values.get(name)
            if value is not None and value not in allowed:
                raise ApiError(400, f"{name} is not supported; leave it out", param=name, code="unsupported_parameter")
        return {name: value for name, value in values.items() if name not in NEUTRAL}

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def answer_tokens(self) -> int | None:
        """Largest number of tokens of an answer, if given."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def check(self) -> None:
        """Check what concerns several fields.

        Raises:
            ApiError: two fields contradict each other.
        """
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ApiError(400, "max_tokens and max_completion_tokens differ; give one of them", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")
        if "" in self.stops:
            raise ApiError(400, "a stop text must not be empty", param="stop")
