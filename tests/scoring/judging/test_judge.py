"""Judging against a server on this machine that follows a script."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from judge_server import DROP, SLOW, Server, caption_in, said

from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.rejects import TooManyRejects
from aligngpt.levels.making import make_levels
from aligngpt.scoring.job import read_scores
from aligngpt.scoring.judging.endpoint import Endpoint
from aligngpt.scoring.judging.job import PROMPT, REPLIES, JudgeSummary, Plan, judge_source
from aligngpt.scoring.judging.judge import Judge
from aligngpt.scoring.judging.questions import JudgeError, Prompt
from aligngpt.scoring.manifest import read_manifest
from aligngpt.scoring.score_files import ScoresError

KEY = "sk-very-secret"


class Run:
    """Judges a source into `out`; `waits` has the seconds waited between attempts."""

    def __init__(self, server: Server, out: Path) -> None:
        self.server, self.out = server, out
        self.waits: list[float] = []

    def __call__(self, source: Path, judge: Judge | None = None, **options: Any) -> JudgeSummary:
        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        client = {name: options.pop(name) for name in ("concurrency", "seconds", "url") if name in options}
        given: dict[str, Any] = {"url": self.server.url, "key": KEY, "concurrency": 2, "seconds": 20.0} | client
        endpoint = Endpoint(**given, sleep=sleep)
        pairs = open_pairs(source, shard_size=3)
        return judge_source(pairs, judge or Judge("eye-1"), options.pop("out", self.out), endpoint, **options)

    def scores(self) -> dict[str, float]:
        table = read_scores(self.out)
        return dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))

    def rejects(self) -> list[dict[str, Any]]:
        return [row for file in sorted(self.out.glob("rejects-*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Run:
    return Run(server, tmp_path / "judged")


@pytest.fixture
def pairs(write_pairs: Callable[..., Path]) -> Path:
    """Five pairs with the captions `c0` to `c4`."""
    return write_pairs(5, **{f"at_{index}": {"caption": f"c{index}"} for index in range(5)})


def test_replies_become_scores_that_levels_reads(run: Run, server: Server, pairs: Path, tmp_path: Path) -> None:
    server.answer = lambda request, _: said(f"{int(caption_in(request)[1]) * 2}/10")
    summary = run(pairs)
    assert (summary.outcome.scored, summary.outcome.rejected, summary.requests) == (5, 0, 5)
    assert run.scores() == {f"pair-{index}": index * 2.0 for index in range(5)}
    made = make_levels(run.out, source=pairs, out=tmp_path / "l.jsonl", num_levels=5)
    assert made.counts.tolist() == [1] * 5 and not made.warnings
    request = server.asked[0]
    assert (request["model"], request["temperature"]) == ("eye-1", 0)
    assert request["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert server.keys == {f"Bearer {KEY}"}
    assert (run.out / PROMPT).read_text().startswith("Rate how well")


def test_the_key_is_written_nowhere(run: Run, server: Server, pairs: Path) -> None:
    server.answer = lambda request, _: (
        (400, {}, f"your key {KEY} may not do this")
        if caption_in(request) == "c4"
        else said(f"{KEY}")
        if caption_in(request) == "c3"
        else said("5")
    )
    run(pairs, max_reject_share=1)
    assert {row["reason"] for row in run.rejects()} == {"refused", "unreadable_reply"}
    for file in run.out.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
    assert all(KEY not in row["detail"] and "***" in row["detail"] for row in run.rejects())
    assert KEY not in repr(Endpoint(server.url, KEY))


@pytest.mark.parametrize(
    ("first", "waits"),
    [
        ((429, {"Retry-After": "7"}, "slow down"), [7.0]),
        ((500, {}, "oops"), [1.0]),
        ((503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "later"), [1.0]),
        ((429, {"Retry-After": "0"}, "slow down"), [1.0]),
        (DROP, [1.0]),
    ],
)
def test_a_failure_that_may_pass_is_retried(
    first: Any, waits: list[float], run: Run, server: Server, pairs: Path
) -> None:
    server.answer = lambda request, number: first if (caption_in(request), number) == ("c1", 0) else said("8")
    summary = run(pairs)
    assert (summary.outcome.scored, summary.requests) == (5, 6)
    assert len(run.waits) == 1 and waits[0] <= run.waits[0] <= waits[0] * 1.25


def test_waits_double(run: Run, server: Server, pairs: Path) -> None:
    server.answer = lambda request, number: (500, {}, "") if caption_in(request) == "c1" and number < 4 else said("8")
    assert run(pairs).outcome.scored == 5
    assert [int(wait) // 2 * 2 or 1 for wait in run.waits] == [1, 2, 4, 8] or len(run.waits) == 4
    assert all(low <= wait <= low * 1.25 for low, wait in zip((1, 2, 4, 8), run.waits, strict=True))


def test_a_slow_reply_is_asked_for_again(run: Run, server: Server, pairs: Path) -> None:
    server.answer = lambda request, number: SLOW if (caption_in(request), number) == ("c0", 0) else said("8")
    assert run(pairs, seconds=0.3).outcome.scored == 5
    assert run.scores()["pair-0"] == 8.0
    assert server.captions().count("c0") == 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (said("I cannot see 3 of these dogs"), "unreadable_reply"),
        (said("11"), "unreadable_reply"),
        (said(""), "no_text"),
        (said(None), "no_text"),
        (said("1", "length"), "no_text"),
        ((413, {}, "too large"), "refused"),
        ((200, {}, "<html>hello"), "unanswered"),
        ((200, {}, '{"choices": []}'), "unanswered"),
        ((200, {}, '{"choices": ["8"]}'), "unanswered"),
        ((200, {}, '{"choices": ' + "[" * 10_000), "unanswered"),
    ],
)
def test_no_number_is_a_reject_with_its_text(
    reply: tuple[int, dict[str, str], str], reason: str, run: Run, server: Server, pairs: Path
) -> None:
    server.answer = lambda request, _: reply if caption_in(request) == "c1" else said("8")
    summary = run(pairs, max_reject_share=0.3, concurrency=1)
    assert dict(summary.outcome.reasons) == {reason: 1}
    (reject,) = run.rejects()
    assert (reject["id"], reject["record"]) == ("pair-1", 1) and "pair-1" not in run.scores()
    text = json.loads(reply[2])["choices"][0]["message"]["content"] if "message" in reply[2] else reply[2]
    assert str(text or "content")[:100] in reject["detail"]


def test_a_pair_without_a_reply_is_asked_about_again(run: Run, server: Server, pairs: Path) -> None:
    server.answer = lambda request, _: (503, {}, "busy") if caption_in(request) == "c4" else said("8")
    assert run(pairs, max_reject_share=0.3).outcome.reasons == {"unanswered": 1}
    server.answer = lambda _, __: (401, {}, "who are you")
    with pytest.raises(JudgeError, match="the key is missing or wrong"):
        run(pairs, max_reject_share=0.3)
    with pytest.raises(ScoresError, match="is not finished; run the same `aligngpt judge` command again"):
        run.scores()
    before = len(server.asked)
    server.answer = lambda _, __: said("2")
    summary = run(pairs, max_reject_share=0.3)
    assert (summary.requests, summary.outcome.scored, server.captions()[before:]) == (1, 5, ["c4"])
    assert run.scores()["pair-4"] == 2.0 and run.scores()["pair-3"] == 8.0
    assert run(pairs).requests == 0


def test_a_stopped_job_resumes_without_asking_twice(run: Run, server: Server, pairs: Path, tmp_path: Path) -> None:
    def refuse_c4(request: dict[str, Any], _: int) -> Any:
        return (401, {}, "who are you") if caption_in(request) == "c4" else said(caption_in(request)[1])

    server.answer = refuse_c4
    with pytest.raises(JudgeError, match=r"the key is missing or wrong \(HTTP 401: 'who are you'\)"):
        run(pairs, concurrency=1)
    # A kill while a reply was being written leaves half a line.
    with (run.out / REPLIES).open("a") as file:
        file.write('{"key": "ab')
    server.answer = lambda request, _: said(caption_in(request)[1])
    run(pairs)
    assert sorted(server.captions()) == ["c0", "c1", "c2", "c3", "c4", "c4"]
    whole = Run(server, tmp_path / "whole")
    whole(pairs, concurrency=4)
    for name in ("part-00000.parquet", "part-00001.parquet", "rejects-00001.parquet", "manifest.json"):
        assert (run.out / name).read_bytes() == (whole.out / name).read_bytes()


@pytest.mark.parametrize("reply", [said(""), said("1", "length")])
def test_a_reply_without_text_is_paid_for_once(
    reply: tuple[int, dict[str, str], str], run: Run, server: Server, pairs: Path
) -> None:
    server.answer = lambda request, _: reply if caption_in(request) == "c0" else said("8")
    with pytest.raises(TooManyRejects):
        run(pairs)
    # Too large a share of the first shard was rejected, so it is judged again.
    assert run(pairs, max_reject_share=0.3).outcome.reasons == {"no_text": 1}
    assert sorted(server.captions()) == ["c0", "c1", "c2", "c3", "c4"]
    (reject,) = run.rejects()
    assert reject["id"] == "pair-0" and ("no text" in reject["detail"] or "was cut off" in reject["detail"])


def test_equal_pairs_are_asked_about_once(run: Run, server: Server, write_pairs: Callable[..., Path]) -> None:
    same = {"image": "0.png", "caption": "c"}
    assert run(write_pairs(4, **{f"at_{index}": same for index in range(4)}), concurrency=4).requests == 1
    assert len(run.scores()) == 4


def test_replies_can_be_shared(run: Run, server: Server, pairs: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared.jsonl"
    plans: list[Plan] = []
    run(pairs, replies=shared)
    assert run(pairs, replies=shared, out=tmp_path / "other", confirm=plans.append).requests == 0
    assert plans == [Plan(5, 5)]
    assert run(pairs, Judge("eye-2"), replies=shared, out=tmp_path / "third").requests == 5
    assert run(pairs, Judge("eye-1", max_side=64), replies=shared, out=tmp_path / "fourth").requests == 5


def test_a_dead_endpoint_stops_the_job(run: Run, server: Server, write_pairs: Callable[..., Path]) -> None:
    server.answer = lambda _, __: (500, {}, "dead")
    with pytest.raises(JudgeError, match=r"did not answer the last 5 requests: HTTP 500: 'dead' \(5 attempts\)"):
        run(write_pairs(40), concurrency=1)
    assert len(server.asked) == 25


def test_nobody_at_the_address_stops_the_job(run: Run, pairs: Path) -> None:
    with pytest.raises(
        JudgeError, match=r"http://127\.0\.0\.1:9/v1 did not answer.*ConnectError.*run the same command"
    ):
        run(pairs, url="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("reply", "said_then"),
    [
        ((404, {}, "no model eye-1"), "or it has no such model.*no model eye-1"),
        ((302, {"Location": "/login"}, ""), "HTTP 302"),
        ((429, {"Retry-After": "3600"}, "quota"), "asks to wait 3600 seconds.*quota"),
    ],
)
def test_what_cannot_pass_stops_at_once(reply: Any, said_then: str, run: Run, server: Server, pairs: Path) -> None:
    server.answer = lambda _, __: reply
    with pytest.raises(JudgeError, match=said_then):
        run(pairs, concurrency=1)
    assert len(server.asked) == 1


def test_an_endpoint_that_has_answered_may_refuse_many(
    run: Run, server: Server, write_pairs: Callable[..., Path]
) -> None:
    server.answer = lambda request, _: said("8") if caption_in(request) == "c0" else (400, {}, "not this image")
    source = write_pairs(9, **{f"at_{index}": {"caption": f"c{index}"} for index in range(9)})
    assert run(source, concurrency=1, max_reject_share=1).outcome.reasons == {"refused": 8}
    with pytest.raises(JudgeError, match="did not answer the last 5 requests: HTTP 400: 'not this image'"):
        run(write_pairs(9, "others.jsonl"), out=run.out / "other", concurrency=1)


def test_a_missing_image_is_not_asked_about(run: Run, server: Server, write_pairs: Callable[..., Path]) -> None:
    source = write_pairs(3, at_1={"image": "gone.png"}, at_2={"caption": ""})
    assert run(source, max_reject_share=0.7).requests == 1
    assert [row["record"] for row in run.rejects()] == [1, 2] and run.rejects()[0]["reason"] == "missing"


def test_too_many_rejects_are_an_error(run: Run, server: Server, pairs: Path) -> None:
    server.answer = lambda _, __: said("fine!")
    with pytest.raises(TooManyRejects, match=r"unreadable_reply.*found 'fine!'"):
        run(pairs)
    assert read_manifest(run.out).finished is None


def test_nothing_is_sent_unless_confirmed(run: Run, server: Server, pairs: Path) -> None:
    def no(plan: Plan) -> None:
        assert plan == Plan(5, 0)
        raise JudgeError("no")

    with pytest.raises(JudgeError):
        run(pairs, confirm=no)
    assert server.asked == []


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (Judge("eye-2"), "model"),
        (Judge("eye-1", Prompt("is it {caption}?")), "meaning of the score"),
        (Judge("eye-1", options={"seed": 1}), "meaning of the score"),
    ],
)
def test_another_question_needs_another_folder(
    other: Judge, differs: str, run: Run, server: Server, pairs: Path
) -> None:
    run(pairs)
    with pytest.raises(ScoresError, match=f"scores of another {differs}"):
        run(pairs, other)


def test_an_image_is_sent_small_and_scored_at_its_size(run: Run, server: Server, pairs: Path) -> None:
    run(pairs, Judge("eye-1", max_side=20))
    part = pq.read_table(run.out / "part-00000.parquet").to_pylist()[0]
    assert (part["width"], part["height"], part["caption_tokens"]) == (40, 36, 1)
