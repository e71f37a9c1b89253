"""The engine: a loaded model that answers questions about images, in batches or as a stream."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoProcessor,
    BatchFeature,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from aligngpt.device import resolve_device, resolve_dtype
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.model.adapters import is_adapter, load_adapter
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor


class EngineError(AlignGPTError):
    """A model cannot be loaded, or cannot answer a request."""


@dataclass(frozen=True)
class Request:
    """A conversation to answer.

    Attributes:
        messages: in transformers' chat format, with `{"type": "image"}` as placeholder for each image.
        images: the images, in the order of their placeholders.
        level: alignment level 1…N to force; None leaves it to the gate.
    """

    messages: list[dict[str, Any]]
    images: tuple[Image.Image, ...] = ()
    level: int | None = None

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
        temperature: sampling temperature; 0 for greedy decoding.
        top_p: sample from the most likely tokens with this total probability.
        seed: random seed for sampling; the same seed gives the same answers.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for `generate`."""
        if self.temperature == 0:
            # None overrides the model's defaults: greedy decoding does not use them, and transformers would warn.
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False, "temperature": None, "top_p": None}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }


@dataclass(frozen=True)
class Answer:
    """The answer of a model.

    Attributes:
        text: the answer without special tokens.
        tokens: number of generated tokens, without the end token.
        stopped: whether the model ended the answer, rather than `max_new_tokens`.
        alignment_weights: the gate's weights for levels 1…N-1; None if no gate ran.
    """

    text: str
    tokens: int
    stopped: bool
    alignment_weights: tuple[float, ...] | None = field(default=None)


class Engine:
    """A model and its processor, ready to answer.

    An answer does not depend on the rest of the batch (exactly in float32).

    Args:
        model: on its device; it is put into evaluation mode.
        processor: the model's own.
    """

    def __init__(self, model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def load(
        cls, source: str | Path, *, base: str | Path | None = None, device: str = "auto", dtype: str = "auto"
    ) -> "Engine":
        """Load a model folder or hub name, or an adapter folder, which is merged with its base in memory.

        Args:
            source: folder written by `save_pretrained` of model and processor, its name on the hub, or adapter folder.
            base: folder or hub name of an adapter folder's base model; the one named in the adapter when None.
            device: `cpu`, `cuda`, `mps`, or `auto` for the best available.
            dtype: `float32`, `bfloat16`, or `auto` for bfloat16 if it is faster on the device.

        Raises:
            EngineError: the model cannot be loaded or is not an AlignGPT model, or `base` is given for a model that is
                not an adapter.
            AdapterError: an adapter folder or its base cannot be used.
            DeviceError: the device or precision is not available.
        """
        target = resolve_device(device)
        precision = resolve_dtype(dtype, target)
        if is_adapter(source):
            adapted, own_processor = load_adapter(Path(source), base=base, dtype=precision)
            return cls(adapted.to(target), own_processor)
        if base is not None:
            raise EngineError(f"{source} is not an adapter folder and has no base; leave --base out")
        if "/" not in str(source) and not Path(source).is_dir():
            # Avoid several requests to the hub: a model there always has an owner, as in owner/name.
            raise EngineError(
                f"the model {source} cannot be loaded: there is no such folder here. Give a model folder (with "
                "config.json) or a hub name, owner/name"
            )
        local_or_hub(source, "the model", EngineError)
        try:
            config = AutoConfig.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise EngineError(
                f"the model {source} cannot be loaded: {str(error).rstrip('.')}. Give a model folder "
                "(with config.json) or a hub name"
            ) from error
        if not isinstance(config, AlignGPTConfig):
            raise EngineError(f"{source} is a {config.model_type!r} model, expected an AlignGPT model")
        try:
            processor = AutoProcessor.from_pretrained(source)
            model = AlignGPTForConditionalGeneration.from_pretrained(source, dtype=precision)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise EngineError(
                f"the model {source} cannot be loaded: {str(error).rstrip('.')}. One of its files is missing "
                "or damaged; save or download the model again"
            ) from error
        model.to(target)
        return cls(model, processor)

    @property
    def num_levels(self) -> int:
        """N, the number of alignment levels."""
        return self.model.config.num_alignment_levels

    def answer(self, requests: Sequence[Request], sampling: Sampling = Sampling()) -> list[Answer]:
        """Answer a batch of conversations.

        Raises:
            EngineError: the model does not have a forced level, some requests force a level and others do not, a
                conversation is too long for the context, or its images do not match its placeholders.
        """
        if not requests:
            return []
        inputs = self._inputs(requests, sampling)
        weights = self._encode(inputs, requests)
        with self._seeded(sampling), torch.inference_mode():
            sequences = self.model.generate(**inputs, **sampling.arguments())
        ends = set(self._end_tokens())
        answers = []
        for row, sequence in enumerate(sequences[:, inputs["input_ids"].shape[1] :].tolist()):
            end = next((place for place, token in enumerate(sequence) if token in ends), None)
            tokens = sequence if end is None else sequence[:end]
            text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
            answers.append(Answer(text, len(tokens), end is not None, weights[row]))
        return answers

    def stream(self, request: Request, sampling: Sampling = Sampling()) -> Iterator[str]:
        """Yield the answer in pieces as it is generated; closing the iterator stops the generation.

        Raises:
            EngineError: as in `answer`.
        """
        inputs = self._inputs([request], sampling)
        streamer = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=1.0
        )
        cancelled = Event()
        failures: SimpleQueue[BaseException] = SimpleQueue()

        def generate() -> None:
            try:
                with self._seeded(sampling), torch.inference_mode():
                    criteria = StoppingCriteriaList([_Cancelled(cancelled)])
                    self.model.generate(**inputs, **sampling.arguments(), streamer=streamer, stopping_criteria=criteria)
            except BaseException as error:
                failures.put(error)
                streamer.end()

        thread = Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from _stripped(streamer)
        finally:
            cancelled.set()
            thread.join()
        if not failures.empty():
            raise failures.get()

    def alignment_weights(self, requests: Sequence[Request]) -> list[tuple[float, ...] | None]:
        """The gate's weights for levels 1…N-1, per request; the language model's layers are not run.

        None for requests without an image or with a forced level, and for models without a gate.
        """
        return self._encode(self._inputs(requests, Sampling(max_new_tokens=1)), requests)

    def _inputs(self, requests: Sequence[Request], sampling: Sampling) -> BatchFeature:
        texts = [self._render(request) for request in requests]
        images = [image for request in requests for image in request.images]
        bos = self.processor.tokenizer.bos_token
        inputs = self.processor(
            images=images or None,
            text=texts,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        ).to(self.model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        self._check_length(inputs["input_ids"].shape[1], sampling)
        conversations = [self.processor.neutral(request.messages) for request in requests]
        inputs["instruction_mask"] = self.processor.instruction_mask(conversations, inputs["attention_mask"])
        levels = [request.level for request in requests]
        if any(level is not None for level in levels):
            inputs["alignment_level"] = self._levels(levels)
        return inputs

    def _render(self, request: Request) -> str:
        places = sum(
            part["type"] == "image"
            for message in request.messages
            if not isinstance(message["content"], str)
            for part in message["content"]
        )
        if places != len(request.images):
            raise EngineError(f"the messages have placeholders for {places} images, {len(request.images)} were given")
        messages = self.processor.neutral(request.messages)
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _levels(self, levels: Sequence[int | None]) -> torch.Tensor:
        if None in levels:
            raise EngineError(
                "some requests of the batch force an alignment level and others do not; batch them separately"
            )
        for level in levels:
            if level is not None and not 1 <= level <= self.num_levels:
                raise EngineError(f"alignment level {level} is not one of the model's, 1…{self.num_levels}")
        if self.model.model.alignment is None:
            raise EngineError("this model has no alignment module (alignment: none), so it has no levels")
        return torch.tensor(levels, device=self.model.device)

    def _check_length(self, length: int, sampling: Sampling) -> None:
        limit = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if limit is not None and length + sampling.max_new_tokens > limit:
            raise EngineError(
                f"the conversation has {length} tokens and the answer may have {sampling.max_new_tokens}, but the "
                f"model's context is {limit} tokens; shorten one of them"
            )

    def _encode(self, inputs: BatchFeature, requests: Sequence[Request]) -> list[tuple[float, ...] | None]:
        """Replace the pixels in `inputs` with image features and alignment embeddings, as generation does.

        Returns:
            The gate's weights for each request; None if no gate ran.
        """
        body = self.model.model
        if "pixel_values" not in inputs:
            return [None] * len(requests)
        instruction_mask = inputs.pop("instruction_mask", None)
        with torch.inference_mode():
            images = body.get_image_features(inputs.pop("pixel_values"), return_dict=True)
            inputs["mm_encoder_outputs"] = {"image": images}
            if body.alignment is None:
                return [None] * len(requests)
            aligned = body.alignment_embeddings(
                inputs["input_ids"],
                None,
                image_features=images.pooler_output,
                attention_mask=inputs["attention_mask"],
                instruction_mask=instruction_mask,
                alignment_level=inputs.pop("alignment_level", None),
            )
        with_image = [row for row, request in enumerate(requests) if request.images]
        rows = list(aligned.embedding[with_image].split(1))
        inputs["mm_encoder_outputs"]["align"] = BaseModelOutputWithPooling(pooler_output=rows)
        if aligned.weights is None:
            return [None] * len(requests)
        weights = aligned.weights.float().cpu().tolist()
        return [tuple(row) if request.images else None for row, request in zip(weights, requests, strict=True)]

    def _end_tokens(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [] if ends is None else [ends]

    def _seeded(self, sampling: Sampling) -> Any:
        """A context that seeds sampling and restores the global random state, so that other code is unaffected."""
        if sampling.temperature == 0:
            return nullcontext()
        return _Seeded(sampling.seed, self.model.device)


def _stripped(streamer: TextIteratorStreamer) -> Iterator[str]:
    """Yield the pieces of a stream, with the whole text stripped of surrounding white space, like `Answer.text`."""
    begun, held = False, ""
    while True:
        try:
            piece = held + next(streamer)
        except Empty:
            continue
        except StopIteration:
            return
        piece = piece if begun else piece.lstrip()
        shown = piece.rstrip()
        begun, held = begun or bool(shown), piece[len(shown) :]
        yield shown


class _Seeded:
    """A context in which torch's random state starts from `seed`; the outer state is restored at the end."""

    def __init__(self, seed: int, device: torch.device) -> None:
        devices = [device] if device.type == "cuda" else []
        self.seed, self.fork = seed, torch.random.fork_rng(devices=devices)

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


class _Cancelled(StoppingCriteria):
    """Stops a generation whose result is no longer wanted."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)
