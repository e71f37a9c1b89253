"""Judging the answers to LLaVA-Bench and MM-Vet, against a server on this machine that follows a script."""

import hashlib
import json
import re
import threading
from pathlib import Path
from typing import Any

import benchmark_layouts as layouts
import pytest
from judge_server import DROP, Server, said
from judged_folders import COUNT, FOLDERS, answers, asked_of, content, fair, llava_bench

from aligngpt.data.images.reference import Picture
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.benchmarks.folder import DataError
from aligngpt.evaluation.benchmarks.frame import Item
from aligngpt.evaluation.benchmarks.registry import all_benchmarks
from aligngpt.evaluation.benchmarks.results import BenchmarkResult
from aligngpt.evaluation.benchmarks.runner import run_benchmarks
from aligngpt.evaluation.judging import prompts
from aligngpt.evaluation.judging.asking import REPLIES, AnswerJudge
from aligngpt.evaluation.judging.verdicts import JudgingError
from aligngpt.evaluation.scoring_rules.judged import read_grade, read_review
from aligngpt.scoring.judging.endpoint import Endpoint
from aligngpt.scoring.judging.questions import JudgeError


class Judging:
    """Judges answers below `root`; `waits` has the seconds waited between attempts."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server, self.root = server, root
        self.waits: list[float] = []
        server.answer = fair

    def __call__(self, *names: str, **changes: Any) -> list[BenchmarkResult]:
        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        given = changes.pop("given", None) or {name: FOLDERS[name](self.root) for name in names}
        client = Endpoint(self.server.url, "sk-very-secret", concurrency=4, seconds=20, sleep=sleep)
        judge = AnswerJudge(client, changes.pop("model", "judge-1"), **changes)
        return run_benchmarks(None, names, self.root, self.root / "out", answers=given, judge=judge)

    def again(self, name: str, given: Path) -> BenchmarkResult:
        """Score again without a judge."""
        return run_benchmarks(None, [name], self.root, self.root / "out", answers={name: given})[0]


@pytest.fixture
def judging(server: Server, tmp_path: Path) -> Judging:
    return Judging(server, tmp_path)


def test_prompts_are_those_of_the_published_programs() -> None:
    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    assert digest(prompts.GRADE) == "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"
    assert digest(prompts.REVIEW) == "2ce22b562d6008864970ea863ac8a4d385ea6f2e64ab1313a23f825202a9529d"
    (chat,) = prompts.grade_messages("Q?", "a<OR>b", "c")
    assert chat["content"] == f"{prompts.GRADE}\nQ? | a <OR> b | c | "
    (chat,) = prompts.grade_messages("Q?", "a", "c", again=True)
    assert chat["content"].endswith("Q? | a | c | \nPredict the correctness of the answer (digit): ")
    system, user = prompts.review_messages("C", "Q", "R", "A")
    assert system == {"role": "system", "content": prompts.REVIEWER}
    assert user["content"] == (
        "[Context]\nC\n\n[Question]\nQ\n\n[Assistant 1]\nR\n\n[End of Assistant 1]\n\n[Assistant 2]\nA\n\n"
        f"[End of Assistant 2]\n\n[System]\n{prompts.REVIEW}\n\n"
    )


def test_two_benchmarks_are_judged_and_calibrated(judging: Judging, server: Server) -> None:
    llava, vet = judging("llava-bench", "mm-vet")
    assert llava.figure == pytest.approx(75) and vet.figure == pytest.approx(50)
    assert llava.parts["reference answers against themselves"] == 100 and llava.parts["reference answers"] == 80
    assert vet.parts == {"ocr": 50, "math": 50, "ground truth": 100}
    assert any(note.startswith("calibration: against themselves") and "100.0%" in note for note in llava.notes)
    assert any(note.startswith("calibration: the judge gives the ground truth itself 100.0%") for note in vet.notes)
    for result in (llava, vet):
        assert result.judge["judge"] == "judge-1" and result.judge["prompt_sha256"] in str(
            all_benchmarks()[result.name].prompt_hash  # type: ignore[attr-defined]
        )
        assert result.judge["rules"].startswith("published: ") and re.fullmatch(
            r"\d{4}-\d\d-\d\d", result.judge["date"]
        )
    assert llava.judge["prompt_sha256"] != vet.judge["prompt_sha256"]
    assert len(server.asked) == 4 * COUNT
    assert all(one["temperature"] == 0 and one["model"] == "judge-1" for one in server.asked)
    assert "[Context]\nA green room.\n\n[Question]\nTell 7\n\n[Assistant 1]\nreference 7\n\n" in "".join(
        map(content, server.asked)
    )
    saved = "".join(path.read_text() for path in judging.root.rglob("out/**/*") if path.is_file())
    assert "sk-very-secret" not in saved and server.keys == {"Bearer sk-very-secret"}


def test_a_harsh_judge_is_seen(judging: Judging, server: Server) -> None:
    server.answer = lambda _, __: said("0.4")
    (vet,) = judging("mm-vet")
    assert vet.figure == pytest.approx(40) and vet.parts["ground truth"] == pytest.approx(40)


def test_scoring_again_needs_no_judge_and_no_request(judging: Judging, server: Server) -> None:
    (first,) = judging("mm-vet")
    sent = len(server.asked)
    given = judging.root / "vet.jsonl"
    assert judging("mm-vet")[0] == first and judging.again("mm-vet", given).figure == first.figure
    assert judging.again("mm-vet", given).judge == first.judge and len(server.asked) == sent


def test_another_judge_or_answer_is_asked_anew(judging: Judging, server: Server) -> None:
    judging("mm-vet")
    assert judging("mm-vet", model="judge-2")[0].judge["judge"] == "judge-2" and len(server.asked) == 4 * COUNT
    texts = [f"x = {n}" for n in range(COUNT)]
    other = answers(judging.root, "other.jsonl", ["x = 99", *texts[1:]])
    judging("mm-vet", model="judge-2", given={"mm-vet": other})
    assert len(server.asked) == 4 * COUNT + 1
    with pytest.raises(
        DataError, match=r"v1_0 judges another answer than the one scored here; judge again with --judge"
    ):
        judging.again("mm-vet", judging.root / "vet.jsonl")


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_an_unreadable_reply_is_not_judged_instead_of_zero(name: str, judging: Judging, server: Server) -> None:
    unread = {3}
    server.answer = lambda request, number: (
        said("I would rather not say.") if asked_of(request) in {(n, False) for n in unread} else fair(request, number)
    )
    (result,) = judging(name)
    called = {"llava-bench": "3", "mm-vet": "v1_3"}
    assert result.figure == pytest.approx({"llava-bench": 75, "mm-vet": 50}[name])
    assert any(f"39 of {COUNT} answers" in note for note in result.notes)
    assert any(note.endswith(f"and in no figure: {called[name]}") for note in result.notes)
    # MM-Vet's program asks once more, with another request; LLaVA's does not.
    assert sum(asked_of(one) == (3, False) for one in server.asked) == {"llava-bench": 1, "mm-vet": 2}[name]
    unread |= {4, 5}
    (judging.root / "out" / name / REPLIES).unlink()
    (result,) = judging(name)
    assert result.figure is None and any("no figure below 95%" in note for note in result.notes)


def test_the_second_request_of_mm_vet_can_be_read(judging: Judging, server: Server) -> None:
    server.answer = lambda request, number: (
        fair(request, number) if "(digit)" in content(request) else said("Correctness: it depends")
    )
    (vet,) = judging("mm-vet")
    assert vet.figure == pytest.approx(50) and len(server.asked) == 4 * COUNT


def test_a_block_of_thinking_is_left_out(judging: Judging, server: Server) -> None:
    def think(request: dict[str, Any], number: int) -> object:
        status, headers, body = fair(request, number)  # type: ignore[misc]
        return status, headers, body.replace('"content": "', '"content": "<think>1 1\\n</think>\\n\\n')

    server.answer = think
    llava, vet = judging("llava-bench", "mm-vet")
    assert llava.figure == pytest.approx(75) and vet.figure == pytest.approx(50)


def test_passing_errors_are_asked_again(judging: Judging, server: Server) -> None:
    server.answer = lambda request, number: [
        (429, {"Retry-After": "7"}, "slow down"),
        (500, {}, "oops"),
        fair(request, number),
    ][min(number, 2)]
    (llava,) = judging("llava-bench")
    assert llava.figure == pytest.approx(75) and len(server.asked) == 3 * 2 * COUNT and 7.0 in judging.waits


def test_an_answer_that_never_comes_is_not_judged_and_asked_about_again(judging: Judging, server: Server) -> None:
    server.answer = lambda request, number: (
        (503, {}, "later") if asked_of(request) == (3, False) else fair(request, number)
    )
    (vet,) = judging("mm-vet")
    assert any(note == "not graded, and in no figure: v1_3" for note in vet.notes)
    entry = json.loads((judging.root / "out/mm-vet/grades.json").read_text())["v1_3"]
    assert entry["score"] == [-1] and "HTTP 503" in entry["problem"]
    sent = len(server.asked)
    server.answer = fair
    (vet,) = judging("mm-vet")
    assert len(server.asked) == sent + 1 and f"{COUNT} of {COUNT} answers have a grade" in vet.notes


def test_a_dead_judge_ends_with_what_to_do_and_keeps_the_replies(judging: Judging, server: Server) -> None:
    lock, answered = threading.Lock(), []

    def die(request: dict[str, Any], number: int) -> object:
        with lock:
            if len(answered) < 20:
                answered.append(1)
                return fair(request, number)
        return DROP

    server.answer = die
    with pytest.raises(JudgeError, match=r"did not answer the last 5 requests.*run the same command again"):
        judging("llava-bench")
    assert not (judging.root / "out/llava-bench/reviews.jsonl").exists()
    kept = len((judging.root / "out/llava-bench/judge_replies.jsonl").read_text().splitlines())
    # A reply that is on its way when the run ends may be lost.
    assert 10 <= kept <= 20
    server.answer, sent = fair, len(server.asked)
    assert judging("llava-bench")[0].figure == pytest.approx(75)
    # Told apart, not counted: a request of the first run may still be on its way.
    assert len({json.dumps(asked) for asked in server.asked[sent:]}) == 2 * COUNT - kept


def test_a_judge_that_refuses_everything_is_an_error(judging: Judging, server: Server) -> None:
    server.answer = lambda _, __: said(None)
    with pytest.raises(
        JudgingError, match=r"judge-1 at http.* answered none of 80 questions \(no_text: .*same command"
    ):
        judging("mm-vet")


def test_verdicts_from_elsewhere_are_kept(judging: Judging, server: Server) -> None:
    path = judging.root / "out/mm-vet/grades.json"
    layouts.whole(path, {"v1_0": {"score": [1.0], "model": ["gpt-4-0613"]}})
    before = path.read_bytes()
    with pytest.raises(JudgingError, match="has verdicts from elsewhere; omit --judge-url to use them"):
        judging("mm-vet")
    assert path.read_bytes() == before and not server.asked


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("context.jsonl", '"001.jpg"', '"002.jpg"', "does not describe the picture 001.jpg"),
        ("context.jsonl", '"A green room."', "5", "line 1 has neither a text nor a list of texts as caption"),
        ("answers_gpt4.jsonl", '"Tell 5"', '"Ask 5"', "answers are to another version"),
        ("answers_gpt4.jsonl", '"question_id": 5,', '"question_id": 6,', "question 6 was asked as 'tell 5'"),
        (
            "answers_gpt4.jsonl",
            '{"question_id": 39, "prompt": "Tell 39", "text": "reference 39"}',
            "",
            "answers 39 of the 40",
        ),
        ("questions.jsonl", '"detail"', '"poem"', "has the category 'poem'"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    file: str, old: str, new: str, expected: str, judging: Judging, server: Server
) -> None:
    given = llava_bench(judging.root)
    path = judging.root / "llava-bench-in-the-wild" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(AlignGPTError, match=expected):
        judging("llava-bench", given={"llava-bench": given})
    assert not server.asked


def test_a_context_of_several_sentences_has_a_line_for_each(judging: Judging, server: Server) -> None:
    given = llava_bench(judging.root)
    path = judging.root / "llava-bench-in-the-wild/context.jsonl"
    layouts.lines(path, [{"image": "001.jpg", "caption": ["One.", "Two."]}])
    judging("llava-bench", given={"llava-bench": given})
    assert content(server.asked[0]).startswith("[Context]\nOne.\nTwo.\n\n[Question]")


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.5", 0.5),
        ("1", 1.0),
        ("0.3\n\nThe prediction", 0.3),
        ("1.5", None),
        ("nan", None),
        ("about 0.5", None),
        ("", None),
        (" .5 \r\nAs the prediction", 0.5),
        ("0.5 |", 0.5),
        ("1. The prediction is wrong", None),
        ("1 out of 10", None),
        ("1/10", None),
        ("0_1", None),
        ("1e-1", None),
        ("-0.0", None),
    ],
)
def test_a_grade_is_alone_in_the_first_line(reply: str, grade: float | None) -> None:
    assert read_grade(reply) == grade


def test_a_review_on_another_scale_is_unread() -> None:
    assert read_review("10 10") == (10, 10) and read_review("85 70") is None


def test_options_that_are_set_here_are_refused(server: Server) -> None:
    with pytest.raises(JudgingError, match="the option model of requests is set by this command"):
        AnswerJudge(Endpoint(server.url), "m", {"model": "x"})


@pytest.mark.parametrize("name", ["llava-bench", "mm-vet"])
def test_the_interval_is_wider_where_questions_share_pictures(tmp_path: Path, name: str) -> None:
    benchmark = all_benchmarks()[name]
    good = [number % 2 == 0 for number in range(40)]
    if name == "llava-bench":
        rows = [{"question_id": number, "content": f"8 {8 if one else 4}"} for number, one in enumerate(good)]
        (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        grades = {f"v1_{number}": {"score": [1.0 if one else 0.5], "model": ["j"]} for number, one in enumerate(good)}
        (tmp_path / "grades.json").write_text(json.dumps(grades))

    def score(pictures: int) -> Any:
        shown = [Picture(f"{number % pictures}.png") for number in range(40)]
        items = [Item(number, "?", picture, ("ocr",), "conv") for number, picture in enumerate(shown)]
        return benchmark.score(items, ["a"] * 40, "published", tmp_path)

    apart, together = score(40), score(8)
    assert apart.figure == together.figure == pytest.approx(75)
    assert together.low < apart.low < 75 < apart.high < together.high
    assert any("not of another run of the judge" in note for note in apart.notes)
