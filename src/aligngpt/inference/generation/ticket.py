"""A request on its way through the loop."""

from collections.abc import Callable
from dataclasses import dataclass

from aligngpt.inference.generation.prompts import Prompt
from aligngpt.inference.requests import Event, Sampling

Listener = Callable[[Event], None]


@dataclass(eq=False)
class Ticket:
    """A request on its way.

    Attributes:
        prompt, sampling, keep: what is asked.
        listener: is called with each event, in the engine's thread; it must return quickly.
        cancelled: whether nobody wants the rest of the answer.
        weights: the gate's weights, once the images were read.
        reused: number of tokens that were kept from an earlier request.
    """

    prompt: Prompt
    sampling: Sampling
    keep: bool
    listener: Listener
    cancelled: bool = False
    weights: tuple[float, ...] | None = None
    reused: int = 0

    def cancel(self) -> None:
        """Stop answering; no further event comes."""
        self.cancelled = True
