"""The engine: a loaded model that answers conversations about images, in batches or as streams, or rates answers."""

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from aligngpt.inference.generation.kept import DEFAULT_BYTES
from aligngpt.inference.generation.likelihood import likelihoods
from aligngpt.inference.generation.loop import DEFAULT_ROWS, Loop
from aligngpt.inference.generation.prompts import PromptWriter
from aligngpt.inference.generation.ticket import Listener, Ticket
from aligngpt.inference.loading import load_model
from aligngpt.inference.requests import (
    Answer,
    EngineError,
    Event,
    Failed,
    Finished,
    Likelihood,
    Request,
    Sampling,
    TextDelta,
    TokenChoice,
)
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor

__all__ = [
    "Answer",
    "Engine",
    "EngineError",
    "Event",
    "Failed",
    "Finished",
    "Likelihood",
    "Request",
    "Sampling",
    "TextDelta",
    "Ticket",
    "TokenChoice",
]

GREEDY = Sampling()


class Engine:
    """A model and its processor, ready to answer.

    Requests are answered together, each joining when it comes and leaving when its answer is complete. An answer does
    not depend on what else is being answered (exactly in float32). The images of a conversation are read once; the gate
    reads them and the text before the first answer, and its result holds for all turns. A request with `keep` is
    continued by a later one without reading again what both have in common.

    All methods may be called from several threads.

    Args:
        model: on its device; it is put into evaluation mode. The engine rearranges the storage of some weights, with
            equal values; do not move or train the model afterwards. On a CPU in float32, it copies the language model's
            weights in another order when it first answers, if there is four times the memory.
        processor: the model's own.
        rows: largest number of answers under way at once.
        kept_bytes: bytes kept for later turns of conversations, at most.
        pin_gate: in models whose gate was trained to read all of the text (`text_pooling: all`, as in the published
            ones), let it read the text before the first answer only. Without it, later turns of such models are read
            again from their beginning.
    """

    def __init__(
        self,
        model: AlignGPTForConditionalGeneration,
        processor: AlignGPTProcessor,
        *,
        rows: int = DEFAULT_ROWS,
        kept_bytes: int = DEFAULT_BYTES,
        pin_gate: bool = False,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.prompts = PromptWriter(self.model, processor, pin_gate=pin_gate)
        stop = (end,) if (end := processor.turn_end()) else ()
        self.loop = Loop(self.model, processor.tokenizer, rows=rows, kept_bytes=kept_bytes, stop=stop)
        # The loop's thread does not hold the engine: it ends when nobody does.
        self._finalizer = weakref.finalize(self, Loop.close, self.loop)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        base: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | None = None,
        bits: Literal[4, 8] | None = None,
        rows: int = DEFAULT_ROWS,
        kept_bytes: int = DEFAULT_BYTES,
        pin_gate: bool = False,
    ) -> "Engine":
        """Load a model folder or hub name, or an adapter folder, which is merged with its base in memory.

        Args:
            source, base, device, dtype, device_map, bits: see `load_model`.
            rows, kept_bytes, pin_gate: see `Engine`.

        Raises:
            EngineError, AdapterError, DeviceError: see `load_model`.
        """
        model, processor = load_model(source, base=base, device=device, dtype=dtype, device_map=device_map, bits=bits)
        return cls(model, processor, rows=rows, kept_bytes=kept_bytes, pin_gate=pin_gate)

    @property
    def num_levels(self) -> int:
        """N, the number of alignment levels."""
        return self.model.config.num_alignment_levels

    def submit(self, request: Request, sampling: Sampling, listener: Listener) -> Ticket:
        """Begin to answer a conversation.

        Args:
            request, sampling: what is asked.
            listener: is called in the engine's thread with each `TextDelta`, with `Finished` for each answer, or once
                with `Failed`; it must return quickly.

        Returns:
            The ticket, by which the request can be cancelled.

        Raises:
            EngineError: the model does not have the forced level, the conversation is too long for the context, its
                images do not match its placeholders, or the chat template refuses it or leaves part of it out.
        """
        ticket = Ticket(self.prompts.write(request, sampling.max_new_tokens), sampling, request.keep, listener)
        self.loop.submit([ticket])
        return ticket

    def answer(self, requests: Sequence[Request], sampling: Sampling = GREEDY) -> list[Answer]:
        """Answer several conversations; with `sampling.answers`, the answers of each follow one another.

        Raises:
            EngineError: see `submit`; nothing is answered then.
        """
        events: SimpleQueue[tuple[int, Event]] = SimpleQueue()
        tickets = [
            Ticket(
                self.prompts.write(request, sampling.max_new_tokens),
                sampling,
                request.keep,
                lambda event, place=number: None if isinstance(event, TextDelta) else events.put((place, event)),  # type: ignore[misc]
            )
            for number, request in enumerate(requests)
        ]
        found: dict[tuple[int, int], Answer] = {}
        try:
            self.loop.submit(tickets)
            while len(found) < len(tickets) * sampling.answers:
                number, event = events.get()
                if isinstance(event, Failed):
                    raise event.error
                assert isinstance(event, Finished)
                found[number, event.index] = event.answer
        finally:
            for ticket in tickets:
                ticket.cancel()
        return [found[place] for place in sorted(found)]

    def stream(self, request: Request, sampling: Sampling = GREEDY) -> Iterator[str]:
        """Yield the text of an answer as it is generated; closing the iterator stops the generation.

        Raises:
            EngineError: see `submit`.
        """
        for event in self.events(request, sampling):
            if isinstance(event, TextDelta) and event.text:
                yield event.text

    def events(self, request: Request, sampling: Sampling = GREEDY) -> Iterator[TextDelta | Finished]:
        """Yield everything that happens to a request; closing the iterator stops the generation.

        Raises:
            EngineError: see `submit`.
        """
        events: SimpleQueue[Event] = SimpleQueue()
        ticket = self.submit(request, sampling, events.put)
        left = sampling.answers
        try:
            while left:
                event = events.get()
                if isinstance(event, Failed):
                    raise event.error
                left -= isinstance(event, Finished)
                yield event
        finally:
            ticket.cancel()

    def likelihood(
        self, request: Request, answers: Sequence[str], *, levels: Sequence[int | None] | None = None
    ) -> list[list[Likelihood]]:
        """How likely given answers to a conversation are, at one or several levels.

        Args:
            request: the conversation before the answers.
            answers: texts, each of which is tokenized as in training and followed by the end of the turn.
            levels: levels 1…N to force one after another, None for the gate; that of the request when None.

        Returns:
            Per level, one entry per answer.

        Raises:
            EngineError: see `submit`; an answer is empty in the chat template; or the model's output is not a number.
        """
        return likelihoods(self.loop, self.prompts, request, answers, [request.level] if levels is None else levels)

    def alignment_weights(self, requests: Sequence[Request]) -> list[tuple[float, ...] | None]:
        """The gate's weights for levels 1…N-1, per request; the language model's layers are not run.

        None for requests without an image or with a forced level, and for models without a gate.
        """
        prompts = [self.prompts.write(request, 1) for request in requests]
        seen = self.loop.run(lambda: self.loop.pictures.look(prompts))
        return [None if one is None else one.weights for one in seen]

    def close(self) -> None:
        """End the engine's thread; requests that are open fail."""
        self._finalizer()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
