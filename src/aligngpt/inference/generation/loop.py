"""The loop that answers requests: between two steps some are read and join, and some have their answer and leave."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from threading import Condition, Thread, current_thread
from typing import Any

import torch

from aligngpt.inference.generation.cache import can_be_pooled
from aligngpt.inference.generation.choosing import Chooser, choose
from aligngpt.inference.generation.conversations import Beginning, Pool
from aligngpt.inference.generation.kept import DEFAULT_BYTES, KeptConversation, KeptConversations
from aligngpt.inference.generation.pictures import Pictures
from aligngpt.inference.generation.pool import pool_for
from aligngpt.inference.generation.text import AnswerText
from aligngpt.inference.generation.ticket import Ticket
from aligngpt.inference.requests import Answer, EngineError, Event, Failed, Finished, TextDelta, TokenChoice
from aligngpt.model.modeling import AlignGPTForConditionalGeneration

THREAD_NAME = "aligngpt engine"
DEFAULT_ROWS = 32
TOKENS_READ_AT_ONCE = 4096
"""Prompt tokens, with padding, that are read together when no answer waits for it."""

TOKENS_READ_BETWEEN_STEPS = 512
"""The same between two steps of answers under way: more would make their streams stutter."""

LONG_PROMPT = 1024
"""Prompts of more tokens are read in pieces of this size, of `TOKENS_READ_BETWEEN_STEPS` while others wait: a request
that comes in the meantime does not wait for the whole."""

NOT_A_NUMBER = (
    "the model's output is not a number: its weights are damaged, or its precision is too low; try --precision float32"
)


@dataclass(eq=False)
class _Row:
    """One answer under way."""

    ticket: Ticket
    index: int
    chooser: Chooser
    text: AnswerText
    tokens: list[int] = field(default_factory=list)
    choices: list[TokenChoice] = field(default_factory=list)


@dataclass(eq=False)
class _Reading:
    """A request whose long prompt is read in pieces; `beginning` is None before the first."""

    ticket: Ticket
    beginning: Beginning | None = None


class Loop:
    """Answers requests in a thread of its own, which ends with `close` or when the process ends.

    Args:
        model: in evaluation mode; nobody else may use it while requests are open.
        tokenizer: decodes answers.
        rows: largest number of answers under way at once; further requests wait in order.
        kept_bytes: bytes of keys and values that are kept for later turns, at most.
        stop: texts that end every answer and do not belong to it, besides those of its sampling.
    """

    def __init__(
        self,
        model: AlignGPTForConditionalGeneration,
        tokenizer: Any,
        *,
        rows: int = DEFAULT_ROWS,
        kept_bytes: int = DEFAULT_BYTES,
        stop: Sequence[str] = (),
    ) -> None:
        self.model, self.tokenizer, self.limit, self.stop = model, tokenizer, rows, stop
        self.pictures = Pictures(model)
        self.kept = KeptConversations(kept_bytes)
        self._reads_in_pieces = can_be_pooled(model.config.get_text_config(decoder=True))
        self._pool: Pool | None = None
        self._rows: list[_Row] = []
        self._reading: _Reading | None = None
        self._joined_last = False
        self._waiting: deque[Ticket] = deque()
        self._jobs: deque[tuple[Callable[[], Any], SimpleQueue[Any]]] = deque()
        self._changed = Condition()
        self._thread: Thread | None = None
        self._process: int | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Number of requests that no answer has begun to."""
        return len(self._waiting) + (self._reading is not None)

    @property
    def running(self) -> int:
        """Number of answers under way."""
        return len(self._rows)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Add requests, all at once.

        Raises:
            EngineError: the loop was closed, or runs in another process.
        """
        self._check_process()
        with self._changed:
            self._check_open()
            self._waiting.extend(tickets)
            self._wake()

    def run(self, job: Callable[[], Any]) -> Any:
        """Do something with the model between two steps, in the engine's thread, and return its result.

        Raises:
            EngineError: the loop was closed, or runs in another process.
        """
        self._check_process()
        done: SimpleQueue[Any] = SimpleQueue()
        with self._changed:
            self._check_open()
            self._jobs.append((job, done))
            self._wake()
        result, error = done.get()
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the thread; requests that are open fail."""
        if self._is_of_another_process():
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not current_thread():
            thread.join()

    def _is_of_another_process(self) -> bool:
        """Whether this is a forked copy, whose thread and locks stayed in the process that it was copied from."""
        return self._process not in (None, os.getpid())

    def _check_process(self) -> None:
        if self._is_of_another_process():
            raise EngineError(
                "the engine first answered in another process and does not work in a forked copy of it; make one in "
                "this process"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine was closed")

    def _wake(self) -> None:
        if self._thread is None:
            self._process = os.getpid()
            self._thread = Thread(target=self._work, name=THREAD_NAME, daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        with torch.inference_mode():
            while True:
                with self._changed:
                    while not (self._closed or self._waiting or self._jobs or self._rows or self._reading):
                        self._changed.wait()
                    if self._closed:
                        break
                    job = self._jobs.popleft() if self._jobs else None
                if job is not None:
                    _do(*job)
                    continue
                group: list[Ticket] = []
                try:
                    group = self._leave_and_choose()
                    self._advance(group)
                except BaseException as error:
                    self._fail([*(row.ticket for row in self._rows), *group], error)
        self._fail([*(row.ticket for row in self._rows), *self._waiting], EngineError("the engine was closed"))
        for _, done in self._jobs:
            done.put((None, EngineError("the engine was closed")))

    def _leave_and_choose(self) -> list[Ticket]:
        """Drop the answers that nobody wants any more; returns the requests to read next."""
        for number in range(len(self._rows) - 1, -1, -1):
            if self._rows[number].ticket.cancelled:
                self._leave(number)
        if self._reading is not None and self._reading.ticket.cancelled:
            self._reading = None
        # In turn with the pieces of a long prompt.
        group = [] if self._reading is not None and self._joined_last else self._next_group()
        self._joined_last = bool(group)
        return group

    def _advance(self, group: Sequence[Ticket]) -> None:
        """Read requests or a piece of one, then give every answer that was under way before another token."""
        before = bool(self._rows)
        if group:
            self._join(group)
        elif self._reading is not None:
            self._read_on(self._reading)
        if before and self._rows:
            self._step()

    def _next_group(self) -> list[Ticket]:
        """The requests to read next, in the order they came; one with a long prompt becomes the one read in pieces."""
        tokens = TOKENS_READ_BETWEEN_STEPS if self._rows else TOKENS_READ_AT_ONCE
        group: list[Ticket] = []
        longest, rows = 0, len(self._rows)
        if self._reading is not None:
            rows += self._reading.ticket.sampling.answers
        with self._changed:
            # Also those further back: what nobody wants any more must not stay in memory.
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
            while self._waiting:
                ticket = self._waiting[0]
                rows += ticket.sampling.answers
                full = rows > self.limit and rows > ticket.sampling.answers
                if len(ticket.prompt.ids) > LONG_PROMPT and self._reads_in_pieces:
                    if full or self._reading is not None:
                        break
                    self._reading = _Reading(self._waiting.popleft())
                    continue
                longest = max(longest, len(ticket.prompt.ids))
                if full or (group and longest * (len(group) + 1) > tokens):
                    break
                group.append(self._waiting.popleft())
        return group

    def _the_pool(self) -> Pool:
        if self._pool is None:
            self._pool = pool_for(self.model)
        return self._pool

    def _join(self, group: Sequence[Ticket]) -> None:
        pool = self._the_pool()
        new = []
        for ticket in group:
            kept = self.kept.find(ticket.prompt) if ticket.keep and pool.can_keep else None
            if kept is None:
                new.append(ticket)
            else:
                self._begin([ticket], partial(self._continue, pool, ticket, *kept))
        if new:
            self._begin(new, partial(self._read, pool, new))

    def _continue(self, pool: Pool, ticket: Ticket, kept: KeptConversation, shared: int) -> torch.Tensor:
        beginning = self._begin_kept(pool, ticket, kept, shared)
        pool.read_piece(beginning, len(ticket.prompt.ids))
        return pool.join(beginning, ticket.sampling.answers)

    def _begin_kept(self, pool: Pool, ticket: Ticket, kept: KeptConversation, shared: int) -> Beginning:
        ticket.weights, ticket.reused = kept.weights, shared
        return pool.begin_kept(ticket.prompt, kept, shared)

    def _read_on(self, reading: _Reading) -> None:
        """Read the next piece of a long prompt; after the last one its answers begin."""
        ticket, pool = reading.ticket, self._the_pool()
        try:
            if reading.beginning is None:
                reading.beginning = self._begin_reading(pool, ticket)
            others = self._rows or self._waiting
            pool.read_piece(reading.beginning, TOKENS_READ_BETWEEN_STEPS if others else LONG_PROMPT)
        except Exception as error:
            # It has a cache of its own: the answers under way are unharmed.
            self._reading = None
            self._give_up(ticket, error)
            return
        if reading.beginning.is_read:
            self._begin([ticket], partial(pool.join, reading.beginning, ticket.sampling.answers))
            self._reading = None

    def _begin_reading(self, pool: Pool, ticket: Ticket) -> Beginning:
        kept = self.kept.find(ticket.prompt) if ticket.keep else None
        if kept is not None:
            return self._begin_kept(pool, ticket, *kept)
        (seen,) = self.pictures.look([ticket.prompt])
        ticket.weights = None if seen is None else seen.weights
        return pool.begin(ticket.prompt, seen)

    def _read(self, pool: Pool, tickets: Sequence[Ticket]) -> torch.Tensor:
        seen = self.pictures.look([ticket.prompt for ticket in tickets])
        for ticket, one in zip(tickets, seen, strict=True):
            ticket.weights = None if one is None else one.weights
        return pool.read([ticket.prompt for ticket in tickets], seen, [ticket.sampling.answers for ticket in tickets])

    def _begin(self, tickets: Sequence[Ticket], read: Callable[[], torch.Tensor]) -> None:
        """Read requests; their rows join and get their first tokens."""
        assert self._pool is not None
        logits: torch.Tensor | None
        try:
            logits = read()
        except Exception as error:
            if self._pool.is_damaged or len(self._pool) != len(self._rows):
                raise
            # Nothing joined: the answers under way are unharmed.
            if len(tickets) == 1:
                self._give_up(tickets[0], error)
                return
            logits = None
        if logits is None:
            # Only those that fail by themselves fail. Not in the `except`: its error keeps what was computed in memory.
            for ticket in tickets:
                self._begin([ticket], partial(self._read, self._pool, [ticket]))
            return
        first = len(self._rows)
        for ticket in tickets:
            for index in range(ticket.sampling.answers):
                text = AnswerText(self.tokenizer, (*ticket.sampling.stop, *self.stop))
                self._rows.append(_Row(ticket, index, Chooser(ticket.sampling, index), text))
        places = [place for place, ticket in enumerate(tickets) for _ in range(ticket.sampling.answers)]
        self._take(first, logits if places == list(range(len(logits))) else logits[places])

    def _step(self) -> None:
        assert self._pool is not None
        self._take(0, self._pool.step([row.tokens[-1] for row in self._rows]))

    def _take(self, first: int, logits: torch.Tensor) -> None:
        """Give the rows from `first` on their next tokens; those with a complete answer leave."""
        rows = self._rows[first:]
        tokens, told = choose(logits, [row.chooser for row in rows])
        ends = self._end_tokens()
        for place in range(len(rows) - 1, -1, -1):
            row, token, choice = rows[place], tokens[place], told[place]
            if token is None:
                self._leave(first + place)
                self._give_up(row.ticket, EngineError(NOT_A_NUMBER))
                continue
            if token in ends:
                self._finish(first + place, stopped=True)
                continue
            row.tokens.append(token)
            if choice is not None:
                row.choices.append(choice)
            text = row.text.add(token)
            self._tell(row.ticket, TextDelta(row.index, text, () if choice is None else (choice,)))
            if row.text.stopped or len(row.tokens) == row.ticket.sampling.max_new_tokens:
                self._finish(first + place, stopped=False)

    def _finish(self, number: int, *, stopped: bool) -> None:
        row = self._rows[number]
        ticket = row.ticket
        if rest := row.text.finish():
            self._tell(ticket, TextDelta(row.index, rest))
        answer = Answer(
            text=row.text.text,
            tokens=len(row.tokens),
            # A stop text may end in what was held back.
            stopped=stopped or row.text.stopped,
            alignment_weights=ticket.weights,
            prompt_tokens=len(ticket.prompt.ids),
            reused_tokens=ticket.reused,
            choices=tuple(row.choices),
        )
        self._keep(number)
        self._leave(number)
        self._tell(ticket, Finished(row.index, answer))

    def _keep(self, number: int) -> None:
        """Keep what was computed for a row that a later turn may continue, if there is memory for it."""
        row = self._rows[number]
        ticket = row.ticket
        if not (ticket.keep and self._pool is not None and self._pool.can_keep) or row.index:
            return
        try:
            states = self._pool.copied(number)
        except torch.OutOfMemoryError:
            # The later turn is read from its beginning.
            return
        length = next(state[0].shape[2] for state in states if state is not None)
        # The last token was chosen but not read.
        ids = (*ticket.prompt.ids, *row.tokens)[:length]
        self.kept.add(KeptConversation(ids, ticket.prompt.alignment_key, ticket.weights, states))

    def _leave(self, number: int) -> None:
        assert self._pool is not None
        self._pool.leave(number)
        self._rows[number] = self._rows[-1]
        del self._rows[-1]

    def _tell(self, ticket: Ticket, event: Event) -> None:
        if ticket.cancelled:
            return
        try:
            ticket.listener(event)
        except Exception:  # Who no longer listens must not end the answers of others.
            ticket.cancel()

    def _fail(self, tickets: Sequence[Ticket], error: BaseException) -> None:
        """Give up all answers under way: what they have in common may be damaged. Later requests begin afresh."""
        self._rows, self._pool = [], None
        if self._reading is not None:
            tickets = [*tickets, self._reading.ticket]
            self._reading = None
        for ticket in dict.fromkeys(tickets):
            self._give_up(ticket, error)

    def _give_up(self, ticket: Ticket, error: BaseException) -> None:
        self._tell(ticket, Failed(error))
        ticket.cancel()

    def _end_tokens(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else set() if ends is None else {ends}


def _do(job: Callable[[], Any], done: SimpleQueue[Any]) -> None:
    try:
        done.put((job(), None))
    except BaseException as error:
        done.put((None, error))
