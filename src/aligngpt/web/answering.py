"""What the page does with a picture and a question, independent of gradio: streamed answers that can be stopped."""

import io
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

from PIL import Image

from aligngpt.data.images.opening import FORMATS, MAX_PIXELS, MAX_RATIO, MAX_SIDE, ImageError, open_image
from aligngpt.errors import AlignGPTError
from aligngpt.inference.engine import Engine, Failed, Finished, Request, Sampling, TextDelta
from aligngpt.inference.requests import Event
from aligngpt.inference.similarity_map import similarity_map
from aligngpt.web.drawing import gate_bars, highlighted, seen_by_model

_log = logging.getLogger(__name__)

MAX_QUESTION = 4000
"""Characters of a question."""

NO_PICTURE = "There is no picture yet: paste or upload one."
NO_QUESTION = "The question is empty: type what you want to know about the picture."
LONG_QUESTION = f"The question is too long: the limit is {MAX_QUESTION} characters. Shorten it."
FAULT = "The model failed to answer. The terminal in which the page was started shows why."
STOPPED = "Stopped."
PICTURE_FAULTS = {
    "empty": "The file is empty: upload another one.",
    "too_large": (
        f"The picture is too large: the limit is {MAX_PIXELS // 1_000_000} million pixels, {MAX_SIDE} along a side, "
        f"and one side {MAX_RATIO} times as long as the other. Make it smaller, or cut it into parts."
    ),
    "truncated": "The picture is damaged or was cut short: upload it again.",
    "not_an_image": f"The file is not a picture that can be read. Upload one of {', '.join(FORMATS)}.",
}


@dataclass(frozen=True)
class Shown:
    """What the page shows at one moment.

    Attributes:
        answer: the answer with the gate's own mix of levels, as far as it has been generated.
        compared: the answer with the chosen level; empty without one.
        gate: the gate's weights as HTML; empty if no gate ran.
        matches: the picture as the model sees it, the parts that match the question bright; None without a map.
        matches_note: what the colours mean.
        status: what happened, as text; empty while all is well.
    """

    answer: str = ""
    compared: str = ""
    gate: str = ""
    matches: Image.Image | None = None
    matches_note: str = ""
    status: str = ""


@dataclass
class _Visit:
    """The question of one visitor that is being answered: its events, and whether the visitor stopped it."""

    events: SimpleQueue[tuple[int, Event | None]] = field(default_factory=SimpleQueue)
    stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        self.stopped.set()
        self.events.put((0, None))


class Answering:
    """Answers the questions of all visitors of the page with one engine.

    Args:
        engine: answers.
        max_new_tokens: maximum length of an answer.
    """

    def __init__(self, engine: Engine, max_new_tokens: int = 256) -> None:
        self.engine = engine
        self.sampling = Sampling(max_new_tokens=max_new_tokens)
        self._visits: dict[str, _Visit] = {}
        self._lock = threading.Lock()

    @property
    def has_levels(self) -> bool:
        """Whether the model has alignment levels to choose from."""
        return self.engine.model.model.alignment is not None

    def ask(self, visitor: str, picture: str | None, question: str | None, level: int = 0) -> Iterator[Shown]:
        """Answer a question about a picture; errors become the status, without a trace.

        A question of the same visitor that is still being answered is stopped. Closing the iterator stops the
        generation.

        Args:
            visitor: identifies the visitor, for `stop`.
            picture: path of the uploaded file; None if there is none.
            question: the question.
            level: alignment level 1…N whose answer is given too; 0 for none.

        Yields:
            What the page shows, each time it changes.
        """
        visit = _Visit()
        with self._lock:
            before, self._visits[visitor] = self._visits.get(visitor), visit
        if before is not None:
            before.stop()
        shown = Shown()
        try:
            for shown in self._answers(visit, picture, question, level):
                yield shown
        except ImageError as error:
            yield replace(
                shown, status=PICTURE_FAULTS.get(error.reason, "The picture cannot be read: try another one.")
            )
        except AlignGPTError as error:
            yield replace(shown, status=str(error))
        except Exception:
            _log.exception("a question could not be answered")
            yield replace(shown, status=FAULT)
        finally:
            with self._lock:
                if self._visits.get(visitor) is visit:
                    del self._visits[visitor]

    def stop(self, visitor: str) -> None:
        """Stop the answers to the question of a visitor; nothing happens if there is none."""
        with self._lock:
            visit = self._visits.get(visitor)
        if visit is not None:
            visit.stop()

    def _answers(self, visit: _Visit, picture: str | None, question: str | None, level: int) -> Iterator[Shown]:
        if not picture:
            yield Shown(status=NO_PICTURE)
            return
        if not question or not question.strip():
            yield Shown(status=NO_QUESTION)
            return
        # The limit of the page's text field holds in the browser only.
        if len(question) > MAX_QUESTION:
            yield Shown(status=LONG_QUESTION)
            return
        image = _opened(Path(picture))
        request = Request.ask(question.strip(), image)
        requests = [request, replace(request, level=level)] if level else [request]
        tickets = []
        try:
            for number, one in enumerate(requests):
                listener = _Listener(visit, number)
                tickets.append(self.engine.submit(one, self.sampling, listener))
            shown = self._explained(request)
            yield shown
            yield from self._streamed(visit, shown, len(tickets))
        finally:
            for ticket in tickets:
                ticket.cancel()

    def _streamed(self, visit: _Visit, shown: Shown, open_answers: int) -> Iterator[Shown]:
        texts, remarks = ["", ""], ""
        while open_answers:
            number, event = visit.events.get()
            if visit.stopped.is_set():
                yield replace(shown, status=STOPPED)
                return
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                open_answers -= 1
                texts[number] = event.answer.text or "(the model answered with nothing)"
                if not event.answer.stopped:
                    remarks = f"An answer was cut off after {event.answer.tokens} tokens (--max-new-tokens)."
            elif isinstance(event, TextDelta):
                if not event.text:
                    continue
                texts[number] += event.text
            shown = replace(shown, answer=texts[0], compared=texts[1], status=remarks)
            yield shown

    def _explained(self, request: Request) -> Shown:
        """The gate's weights and the parts of the picture that match, for models that have them."""
        if not self.has_levels:
            return Shown()
        (weights,) = self.engine.alignment_weights([request])
        gate = "" if weights is None else gate_bars(weights, self.engine.model.config.alignment == "adaptive")
        try:
            cosines = similarity_map(self.engine, request)
        except AlignGPTError as error:
            return Shown(gate=gate, matches_note=str(error))
        picture = highlighted(seen_by_model(self.engine, request), cosines)
        note = f"Cosine of each part and the question: {cosines.min():.3f} (dark) to {cosines.max():.3f} (bright)."
        return Shown(gate=gate, matches=picture, matches_note=note)


@dataclass(frozen=True)
class _Listener:
    """Puts the events of one of a visitor's answers into the queue that is shown."""

    visit: _Visit
    number: int

    def __call__(self, event: Event) -> None:
        self.visit.events.put((self.number, event))


def _opened(path: Path) -> Image.Image:
    """An uploaded picture; read through its bytes, so that messages do not name a path of this machine."""
    try:
        return open_image(io.BytesIO(path.read_bytes()))
    except OSError as error:
        raise ImageError("unreadable", "the upload is gone") from error
