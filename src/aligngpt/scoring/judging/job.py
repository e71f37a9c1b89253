"""Asks a judge about every pair of a source and writes its numbers as parts of scores; resumable."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aligngpt.data.images.reference import Picture
from aligngpt.data.records.pairs import Pair, PairSource
from aligngpt.data.sources.base import Shard
from aligngpt.progress import Meter
from aligngpt.scoring.finishing import finish_job
from aligngpt.scoring.judging.endpoint import NO_TEXT, UNANSWERED, Endpoint, Unanswered
from aligngpt.scoring.judging.judge import Judge
from aligngpt.scoring.judging.pictures import NotShown, Shown, shown_picture
from aligngpt.scoring.judging.questions import UnreadableReply, read_score
from aligngpt.scoring.judging.replies import SavedReplies, key_of
from aligngpt.scoring.manifest import before_rescoring, claim
from aligngpt.scoring.picture_marks import has_file
from aligngpt.scoring.reject_share import RejectLimit
from aligngpt.scoring.resuming import kept_parts
from aligngpt.scoring.score_files import PartSummary, Reject, part_table, write_part, write_whole
from aligngpt.scoring.shares import owned_share

REPLIES, PROMPT = "replies.jsonl", "prompt.txt"
PREPARED_PER_REQUEST = 2
"""Number of pairs that are being prepared or asked about, per simultaneous request."""


class JudgeSummary(NamedTuple):
    """The outcome of `judge_source`: the numbers of pairs with and without a score, and of requests sent now."""

    outcome: PartSummary
    requests: int


class Plan(NamedTuple):
    """What a job is about to do: at most this many requests, and how many replies are saved already."""

    requests: int
    saved: int


def judge_source(
    source: PairSource,
    judge: Judge,
    out: Path,
    endpoint: Endpoint,
    *,
    replies: Path | None = None,
    max_reject_share: float = 0.05,
    confirm: Callable[[Plan], None] = lambda _: None,
) -> JudgeSummary:
    """Ask a judge about every pair of a source, or resume an interrupted call with the same arguments.

    Writes the same files into `out` as `score_source`, so that levels can be made of them, and the prompt. Every reply
    is saved as it arrives, and its question is not asked again. Pairs without a reply are asked about again, and those
    that were refused, if their shard is not done or has too many rejects.

    Args:
        source: see `open_pairs`.
        judge: the model and the question.
        out: folder of the scores.
        endpoint: the client.
        replies: file of the saved replies, which several folders may share; `replies.jsonl` in `out` if None.
        max_reject_share: maximum share of records without a score, 0…1.
        confirm: called before the first request; raises to prevent it.

    Raises:
        JudgeError: the endpoint cannot be used.
        FolderInUse: another process is scoring into `out`.
        ScoresError: `out` holds other scores, the source changed, or nothing could be scored.
        TooManyRejects: too large a share of the records has no score.
        OSError: a file cannot be written.
    """
    with owned_share(out, None):
        manifest = claim(out, judge.manifest(source, endpoint.url))
        write_whole(out / PROMPT, (judge.prompt.template + "\n").encode())
        shards = source.shards()
        done = kept_parts(source, out, shards, finished=manifest.finished is not None, max_share=max_reject_share)
        done = {index: summary for index, summary in done.items() if UNANSWERED not in summary.reasons}
        todo = [shard for shard in shards if shard.index not in done]
        limit = RejectLimit(out, shards, max_reject_share)
        limit.add(done)
        if todo:
            with SavedReplies(replies or out / REPLIES) as saved:
                pairs = sum(isinstance(item, Pair) for shard in todo for item in source.read(shard))
                confirm(Plan(pairs, len(saved)))
                before_rescoring(out, todo)
                asking = _Asking(source, judge, out, saved)
                asyncio.run(asking.run(endpoint, todo, done, limit))
        finish_job(out, manifest, done, source, max_reject_share, rescored=bool(todo))
    return JudgeSummary(sum(done.values(), PartSummary()), endpoint.requests)


@dataclass
class _Asked:
    """A pair without its image, and the outcome of asking about it: a score, or why there is none."""

    pair: Pair
    picture: Shown | NotShown
    score: float | None = None
    reason: str = ""
    detail: str = ""


@dataclass
class _Asking:
    """One run over the shards; `_now` has the questions being asked, by key."""

    source: PairSource
    judge: Judge
    out: Path
    saved: SavedReplies
    _now: dict[str, asyncio.Task[str]] = field(default_factory=dict)

    async def run(
        self, endpoint: Endpoint, todo: list[Shard], done: dict[int, PartSummary], limit: RejectLimit
    ) -> None:
        """Ask about the pairs of some shards, write their parts and add their outcomes to `done`."""
        counts = [shard.records for shard in todo]
        total = None if None in counts else sum(count or 0 for count in counts)
        async with endpoint as client:
            with Meter("asking the judge", total, unit="pairs") as meter:
                for shard in todo:
                    done[shard.index] = await self._shard(client, shard, meter)
                    limit.add({shard.index: done[shard.index]})
                    limit.check_certain()

    async def _shard(self, client: Endpoint, shard: Shard, meter: Meter) -> PartSummary:
        asked: list[_Asked] = []
        rejects: list[Reject] = []
        marks: dict[Picture, bytes] = {}
        tasks: deque[asyncio.Task[_Asked]] = deque()

        def take(one: _Asked) -> None:
            if has_file(one.pair.picture):
                marks.setdefault(one.pair.picture, one.picture.mark)
            # The content of embedded images would stay in memory until the end of the shard.
            one.pair = replace(one.pair, picture=Picture(one.pair.picture.name))
            if one.score is None:
                rejects.append(Reject(one.pair.record, one.pair.id, one.reason, one.detail))
            else:
                asked.append(one)
            meter.advance()

        try:
            for item in self.source.read(shard):
                if not isinstance(item, Pair):
                    rejects.append(Reject(item.record, item.id, item.reason, item.detail))
                    meter.advance()
                    continue
                tasks.append(asyncio.create_task(self._pair(client, item)))
                if len(tasks) >= PREPARED_PER_REQUEST * client.concurrency:
                    take(await tasks.popleft())
            while tasks:
                take(await tasks.popleft())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._write(shard, asked, rejects, b"".join(marks.values()))

    def _write(self, shard: Shard, asked: list[_Asked], rejects: list[Reject], marks: bytes) -> PartSummary:
        pictures = [one.picture for one in asked if isinstance(one.picture, Shown)]
        table = part_table(
            record=[one.pair.record for one in asked],
            id=[one.pair.id for one in asked],
            score=np.array([one.score for one in asked], dtype=np.float32),
            # The tokenizer of the judge is unknown.
            caption_tokens=[len(one.pair.caption.split()) for one in asked],
            size=[picture.size for picture in pictures],
            image_hash=[picture.hash for picture in pictures],
        )
        return write_part(self.out, shard.index, table, sorted(rejects, key=lambda reject: reject.record), marks)

    async def _pair(self, client: Endpoint, pair: Pair) -> _Asked:
        picture = await asyncio.to_thread(shown_picture, pair.picture, self.judge.max_side)
        if isinstance(picture, NotShown):
            return _Asked(pair, picture, reason=picture.reason, detail=picture.detail)
        try:
            score = read_score(await self._reply(client, pair.caption, picture), self.judge.scale)
        except Unanswered as error:
            return _Asked(pair, picture._replace(url=""), reason=error.reason, detail=str(error))
        except UnreadableReply as error:
            return _Asked(pair, picture._replace(url=""), reason="unreadable_reply", detail=str(error))
        return _Asked(pair, picture._replace(url=""), score)

    async def _reply(self, client: Endpoint, caption: str, picture: Shown) -> str:
        """The saved reply, that to the same question being asked now, or a new one."""
        # A lone surrogate, which JSON parsers refuse, becomes a question mark.
        caption = caption.encode("utf-8", "replace").decode("utf-8")
        key = key_of(self.judge.question(caption), f"{picture.hash} {self.judge.max_side}")
        if (known := self.saved.get(key)) is not None:
            return known
        if (detail := self.saved.without_text(key)) is not None:
            raise Unanswered(NO_TEXT, detail)
        if (task := self._now.get(key)) is not None:
            return await task
        task = self._now[key] = asyncio.create_task(client.ask(self.judge.request(caption, picture.url)))
        try:
            reply = await task
        except Unanswered as error:
            if error.reason == NO_TEXT:
                self.saved.add_without_text(key, str(error))
            raise
        finally:
            del self._now[key]
        self.saved.add(key, reply)
        return reply
