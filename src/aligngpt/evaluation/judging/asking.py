"""Asks a judge about the answers to a benchmark and about its reference answers; resumable."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aligngpt.evaluation.benchmarks.folder import DataFolder
from aligngpt.evaluation.benchmarks.frame import Item
from aligngpt.evaluation.judging.prompts import Messages
from aligngpt.evaluation.judging.verdicts import (
    JudgedBenchmark,
    JudgingError,
    Question,
    Verdict,
    facts_of,
    is_foreign,
    without_thinking,
)
from aligngpt.files import atomic_write
from aligngpt.progress import Meter, say
from aligngpt.scoring.judging.endpoint import Endpoint, Unanswered
from aligngpt.scoring.judging.judge import DEFAULT_OPTIONS, OWN_FIELDS
from aligngpt.scoring.judging.replies import SavedReplies, key_of

REPLIES = "judge_replies.jsonl"
"""Every reply as it came, by the content of its request; in the benchmark's folder of results."""


@dataclass(frozen=True)
class AnswerJudge:
    """A language model behind an endpoint that judges answers.

    Attributes:
        client: the endpoint.
        model: the model's name there.
        options: other fields of a request.

    Raises:
        JudgingError: an option is set by this package.
    """

    client: Endpoint
    model: str
    options: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_OPTIONS))

    def __post_init__(self) -> None:
        if taken := sorted(OWN_FIELDS & set(self.options)):
            raise JudgingError(f"the option {taken[0]} of requests is set by this command; omit it in --judge-options")

    def request(self, chat: Messages) -> dict[str, Any]:
        """The request with a chat; a lone surrogate, which JSON parsers refuse, becomes a question mark."""
        messages = [
            {name: text.encode("utf-8", "replace").decode("utf-8") for name, text in one.items()} for one in chat
        ]
        return {**self.options, "model": self.model, "messages": messages}

    def facts(self, benchmark: JudgedBenchmark, rules: str) -> dict[str, str]:
        """What verdicts depend on, without their date."""
        return {
            "judge": self.model,
            "prompt_sha256": benchmark.prompt_hash,
            "options": json.dumps(dict(self.options), sort_keys=True),
            "rules": f"{rules}: {benchmark.scorers[rules]}",
        }


def judge_answers(
    judge: AnswerJudge,
    benchmark: JudgedBenchmark,
    items: Sequence[Item],
    texts: Sequence[str],
    data: DataFolder,
    folder: Path,
    rules: str,
) -> None:
    """Ask a judge about answers and about the reference answers, and write both files of verdicts.

    Every reply is saved as it arrives, so the same call after a stop asks only what has no reply. Answers without a
    reply that can be read are written as not judged.

    Args:
        judge: the judge.
        benchmark: what the answers are to.
        items: the questions.
        texts: the answer to each.
        data: the benchmark's files.
        folder: the benchmark's folder of results.
        rules: the rule set, for the facts.

    Raises:
        JudgeError: the endpoint cannot be used, or does not answer any more.
        JudgingError: no answer got a reply, or `folder` has verdicts from elsewhere.
        DataError: contexts or reference answers are missing, damaged or of other questions.
        OSError: a file cannot be written.
    """
    earlier = _before(benchmark, folder)
    questions = [*benchmark.judge_questions(items, texts, data), *benchmark.judge_questions(items, None, data)]
    before = judge.client.requests
    with SavedReplies(folder / REPLIES) as saved:
        say(
            f"{benchmark.title}: {judge.model} at {judge.client.url} judges {len(items):,} answers and as many "
            f"reference answers; {len(saved):,} replies are saved"
        )
        verdicts = asyncio.run(_Asking(judge, benchmark, saved).run(questions))
    if all(one.problem and not one.reply for one in verdicts):
        raise JudgingError(
            f"the judge {judge.model} at {judge.client.url} answered none of {len(verdicts):,} questions "
            f"({verdicts[0].problem}); check the server and run the same command again"
        )
    facts = judge.facts(benchmark, rules)
    if judge.client.requests > before or earlier != {**facts, "date": earlier.get("date")}:
        facts["date"] = datetime.now(UTC).date().isoformat()
    else:
        facts = earlier
    for name, part in (
        (benchmark.verdicts_file, verdicts[: len(items)]),
        (benchmark.reference_file, verdicts[len(items) :]),
    ):
        with atomic_write(folder / name) as file:
            file.write(benchmark.verdicts_text(part, facts))


def _before(benchmark: JudgedBenchmark, folder: Path) -> dict[str, str]:
    """What the verdicts in a folder depend on; verdicts from elsewhere are kept, since they may have cost money.

    Raises:
        JudgingError: some are from elsewhere.
    """
    facts: dict[str, str] = {}
    for path in (folder / benchmark.reference_file, folder / benchmark.verdicts_file):
        if path.is_file():
            entries = list(benchmark.read_verdicts(path).values())
            if is_foreign(entries):
                raise JudgingError(
                    f"{path} has verdicts from elsewhere; omit --judge-url to use them, or move the file away"
                )
            facts = facts_of(entries)
    return facts


@dataclass
class _Asking:
    """One run over some questions; `_now` has the requests being sent, by key."""

    judge: AnswerJudge
    benchmark: JudgedBenchmark
    saved: SavedReplies
    _now: dict[str, asyncio.Task[str]] = field(default_factory=dict)

    async def run(self, questions: Sequence[Question]) -> list[Verdict]:
        """The verdicts, in order; the client bounds how many requests are open."""
        async with self.judge.client:
            with Meter(f"asking the judge about {self.benchmark.title}", len(questions), unit="answers") as meter:
                tasks = [asyncio.create_task(self._verdict(one, meter)) for one in questions]
                try:
                    return await asyncio.gather(*tasks)
                finally:
                    everything = [*tasks, *self._now.values()]
                    for task in everything:
                        task.cancel()
                    await asyncio.gather(*everything, return_exceptions=True)

    async def _verdict(self, question: Question, meter: Meter) -> Verdict:
        found = Verdict(question, "", "not asked")
        for chat in question.chats:
            try:
                reply = without_thinking(await self._reply(chat))
            except Unanswered as error:
                found = Verdict(question, found.reply, f"{error.reason}: {error}")
                break
            if self.benchmark.can_read(reply):
                found = Verdict(question, reply)
                break
            found = Verdict(question, reply, "the reply cannot be read")
        meter.advance()
        return found

    async def _reply(self, chat: Messages) -> str:
        """The saved reply, that to the same request being sent now, or a new one."""
        request = self.judge.request(chat)
        key = key_of({**request, "benchmark": self.benchmark.name}, "")
        if (known := self.saved.get(key)) is not None:
            return known
        if (task := self._now.get(key)) is None:
            task = self._now[key] = asyncio.create_task(self._new_reply(key, request))
        # Others may wait for the same reply, so that the end of one of them does not end the request.
        return await asyncio.shield(task)

    async def _new_reply(self, key: str, request: Mapping[str, Any]) -> str:
        reply = await self.judge.client.ask(request)
        self.saved.add(key, reply)
        return reply
