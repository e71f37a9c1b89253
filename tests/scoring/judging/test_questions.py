"""The question to a judge, and the number in its reply."""

from pathlib import Path

import pytest

from aligngpt.scoring.judging.endpoint import checked_endpoint, key_of_environment
from aligngpt.scoring.judging.judge import Judge, parse_options
from aligngpt.scoring.judging.questions import JudgeError, Prompt, Scale, UnreadableReply, read_score


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("8", 8),
        (" 8.5\n", 8.5),
        (".5", 0.5),
        ("8/10", 8),
        ("8 / 10.", 8),
        ("8 out of 10", 8),
        ("Score: 8", 8),
        ("**Rating:** 8/10", 8),
        ("The score is 8.", 8),
        ('{"score": 8}', 8),
        ('```json\n{"rating": 7.5}\n```', 7.5),
        ("```\n8\n```", 8),
        ("<think>I see 3 dogs, so 2/10?</think>\n\n9", 9),
        ("10", 10),
        ("0", 0),
    ],
)
def test_a_number_is_read(reply: str, score: float) -> None:
    assert read_score(reply, Scale()) == score


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "there are 3 dogs",
        "3 dogs",
        "8 or 9",
        "8-9",
        "8/5",
        "80%",
        "8,5",
        "11",
        "-1",
        "nan",
        "1e1",
        "eight",
        "<think>8",
        '{"score": "8"}',
        '{"score": true}',
        '{"score": 8, "rating": 2}',
        '{"score": NaN}',
        '{"dogs": 3}',
        '{"score": 8',
        '{"score": 1' + "0" * 400 + "}",
        "8\n9",
        '{"score": ' + "[" * 10_000,
        '{"score": 8, "why": ' + "[" * 10_000 + "]" * 10_000 + "}",
        "```",
        "```" + " " * 200_000 + "x",
    ],
)
def test_anything_else_is_unreadable(reply: str) -> None:
    with pytest.raises(UnreadableReply):
        read_score(reply, Scale())


def test_the_scale_decides_what_a_reply_is_out_of() -> None:
    assert read_score("4/5", Scale(1, 5)) == 4
    with pytest.raises(UnreadableReply, match="on a scale up to 5, not 10: '4/5'"):
        read_score("4/5", Scale())
    with pytest.raises(UnreadableReply, match="outside the scale 1-5: '0'"):
        read_score("0", Scale(1, 5))


def test_long_replies_are_shortened_in_messages() -> None:
    with pytest.raises(UnreadableReply) as error:
        read_score("x" * 5000, Scale())
    assert len(str(error.value)) < 400


def test_scales_are_parsed() -> None:
    assert Scale.parse("1-5") == Scale(1, 5)
    assert Scale.parse("-1-1") == Scale(-1, 1)
    assert Scale.parse("-2 - -1.5") == Scale(-2, -1.5)
    for wrong in ("5", "5-1", "1-1", "a-b", "", f"0-{'9' * 400}"):
        with pytest.raises(JudgeError, match="a scale"):
            Scale.parse(wrong)


def test_a_caption_is_put_in_as_it_is() -> None:
    text = Prompt("{lowest} to {highest} {json}: {caption}").filled("{highest} {caption} \\1", Scale(1, 5))
    assert text == "1 to 5 {json}: {highest} {caption} \\1"


def test_prompts_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("\ufeff rate {caption}\n\n", encoding="utf-8")
    assert Prompt.read(path) == Prompt("rate {caption}")
    path.write_text("rate it")
    with pytest.raises(JudgeError, match=r"prompt\.txt: the prompt does not contain \{caption\}"):
        Prompt.read(path)
    path.write_bytes(b"\xff{caption}")
    with pytest.raises(JudgeError, match=r"prompt\.txt cannot be read"):
        Prompt.read(path)


def test_options_are_merged_into_requests() -> None:
    options = parse_options('{"max_tokens": null, "seed": 3}')
    request = Judge("m", options=options).request("c", "data:x")
    assert {name: value for name, value in request.items() if name != "messages"} == {
        "model": "m",
        "temperature": 0,
        "seed": 3,
    }
    for wrong in ("[1]", "{", "3"):
        with pytest.raises(JudgeError, match="the options must be"):
            parse_options(wrong)
    with pytest.raises(JudgeError, match="the option messages of requests"):
        Judge("m", options={"messages": []})


def test_the_address_of_the_chat_is_found() -> None:
    chat = "http://localhost:8000/v1/chat/completions"
    for url in ("http://localhost:8000/v1", "http://localhost:8000/v1/", chat):
        assert checked_endpoint(url) == chat


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "http://", "", "http://a:b/v1", "http://[::1/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(JudgeError, match="must be an address such as"):
        checked_endpoint(url)


def test_a_host_name_that_cannot_exist_is_refused() -> None:
    with pytest.raises(JudgeError, match=r"'http://é☃\.\.x/v1' is not a valid address: Invalid IDNA"):
        checked_endpoint("http://é☃..x/v1")


@pytest.mark.parametrize("url", ["https://u:secret@a/v1", "https://a/v1?key=secret"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(JudgeError, match="OPENAI_API_KEY") as error:
        checked_endpoint(url)
    assert "secret" not in str(error.value)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert key_of_environment() is None
    monkeypatch.setenv("OPENAI_API_KEY", " sk-1\n")
    assert key_of_environment() == "sk-1"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u00e9\nX")
    with pytest.raises(JudgeError) as error:
        key_of_environment()
    assert "sk-" not in str(error.value)
