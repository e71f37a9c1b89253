"""What the lines of a chat do."""

import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from aligngpt import cli
from aligngpt.chatting import chat as module
from aligngpt.chatting.chat import COMMANDS, Chat, ChatError
from aligngpt.chatting.heat import drawn
from aligngpt.chatting.lines import Stopped, lines_of_stdin
from aligngpt.chatting.paths import paths_in
from aligngpt.data.records.sample import parse_record
from aligngpt.errors import AlignGPTError
from aligngpt.inference.ask import describe_alignment
from aligngpt.inference.engine import Engine, EngineError, Request, Sampling
from aligngpt.inference.similarity_map import similarity_map

QUESTION = "what colour is the circle ?"
Output = pytest.CaptureFixture[str]


class Typed:
    """Lines that are all typed beforehand."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = iter(lines)

    def next(self) -> str | None:
        return next(self.lines, None)


def held(chat: Chat, *lines: str) -> bool:
    return chat.run(Typed(lines))


def test_a_chat_answers_as_the_engine_does(
    chat: Chat, picture: Path, pictures: list[Image.Image], capsys: Output
) -> None:
    assert held(chat, f"/image {picture}", QUESTION, "how many ?")
    first, second = chat.conversation.turns
    assert capsys.readouterr().out == f"{first.answer}\n{second.answer}\n"
    asked = Request.ask(QUESTION, pictures[0])
    (answer,) = chat.engine.answer([asked], Sampling(6))
    assert first.answer == answer.text != ""
    said = {"role": "assistant", "content": [{"type": "text", "text": answer.text}]}
    again = {"role": "user", "content": [{"type": "text", "text": "how many ?"}]}
    (answer,) = chat.engine.answer([Request([*asked.messages, said, again], asked.images)], Sampling(6))
    assert second.answer == answer.text


def test_later_turns_reuse_earlier_ones(chat: Chat, picture: Path) -> None:
    held(chat, f"/image {picture}", QUESTION)
    (answer,) = chat.engine.answer([chat.conversation.asking("how many ?")], Sampling(4))
    assert answer.reused_tokens > 16  # the image's alone are 16


@pytest.mark.parametrize("form", ["{}", "/image {}"])
@pytest.mark.parametrize(
    "written", [str, lambda path: f"'{path}'", lambda path: str(path).replace(" ", "\\ "), Path.as_uri]
)
def test_dropped_files_are_shown(chat: Chat, picture: Path, form: str, written: Callable[[Path], str]) -> None:
    assert held(chat, form.format(written(picture)))
    assert [one.path for one in chat.conversation.next_shown] == [picture]


def test_several_files_are_shown_in_order(
    chat: Chat, picture: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    pictures[1].save(tmp_path / "b.png")
    assert held(chat, f"{shlex.quote(str(picture))} {tmp_path / 'b.png'} ")
    assert [one.path.name for one in chat.conversation.next_shown] == ["my picture.png", "b.png"]


def test_a_quotation_mark_without_a_partner_is_named() -> None:
    with pytest.raises(AlignGPTError, match="has no partner"):
        paths_in("it's.png")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/image nowhere.png", "nowhere.png"),
        ("/image", "/image needs a path"),
        ("/level 99", "/level takes a level from 1 to 8, or auto; found '99'"),
        ("/imag x", "there is no command /imag"),
        ("/undo", "nothing to take back"),
        ("/retry", "no question to ask again"),
        ("/alignment", "ask a question first"),
        ("/save x", "nothing to save yet"),
        ("/reset now", "/reset takes nothing after it, found 'now'"),
        ("a\udcff ?", "not asked: the question has bytes that are not UTF-8"),
        ("/a\udcff", "there is no command /a"),
        ("/image a\udcff.png", "a\\udcff.png"),
    ],
)
def test_a_wrong_line_is_a_sentence_and_the_chat_goes_on(chat: Chat, capsys: Output, line: str, said: str) -> None:
    assert not held(chat, line, "/level auto")
    errors = capsys.readouterr().err
    assert said in " ".join(errors.split()) and "level: auto" in errors


def test_a_question_is_not_asked_without_its_image(chat: Chat, picture: Path, capsys: Output) -> None:
    assert not held(chat, "/image nowhere.png", QUESTION)
    assert not chat.conversation.turns and "not asked" in capsys.readouterr().err
    assert held(chat, f"/image {picture}", QUESTION)
    assert len(chat.conversation.turns) == 1


def test_a_level_is_forced_until_auto(chat: Chat, picture: Path, capsys: Output) -> None:
    held(chat, f"/image {picture}", "/level 3", QUESTION, "/alignment", "/level auto", "how many ?", "/alignment")
    assert [turn.level for turn in chat.conversation.turns] == [3, None]
    out = capsys.readouterr().out
    assert "alignment: level 3 of 8, forced" in out and "level 8 (the whole image) and a mix of" in out


def test_the_alignment_is_that_of_the_last_answer(chat: Chat, picture: Path, capsys: Output) -> None:
    held(chat, f"/image {picture}", QUESTION)
    capsys.readouterr()
    held(chat, "/alignment")
    request = chat.conversation.last_asked()
    assert request is not None
    out = capsys.readouterr().out
    assert describe_alignment(chat.engine, request) in out and drawn(similarity_map(chat.engine, request)) in out


def test_the_map_is_darkest_where_the_text_matches() -> None:
    cosines = np.zeros((30, 30))
    cosines[:2, 28:] = 1
    rows = drawn(cosines).splitlines()
    assert rows[1] == "│" + "  " * 14 + "██│" and set(rows[2]) == {"│", " "} and len(rows) == 15 + 3


def test_undo_and_reset(chat: Chat, picture: Path) -> None:
    held(chat, f"/image {picture}", QUESTION, "/undo")
    assert not chat.conversation.turns and len(chat.conversation.next_shown) == 1
    held(chat, QUESTION, "/reset")
    assert not chat.conversation.turns and not chat.conversation.next_shown


def test_retry_replaces_the_answer_and_keeps_waiting_images(chat: Chat, picture: Path) -> None:
    held(chat, f"/image {picture}", QUESTION, f"/image {picture}", "/level 2", "/retry")
    (turn,) = chat.conversation.turns
    assert (turn.question, turn.level, len(turn.shown)) == (QUESTION, 2, 1)
    assert len(chat.conversation.next_shown) == 1


def test_a_retry_that_fails_keeps_the_old_answer(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    held(chat, QUESTION)
    (before,) = chat.conversation.turns

    def fail(*_: object) -> None:
        raise EngineError("broken")

    monkeypatch.setattr(chat.engine, "events", fail)
    assert not held(chat, "/retry")
    assert chat.conversation.turns == [before]


def test_a_retry_without_an_answer_says_that_the_old_one_stays(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    held(chat, QUESTION)
    (before,) = chat.conversation.turns
    capsys.readouterr()
    monkeypatch.setattr(chat.engine, "events", lambda *_: iter(()))
    assert held(chat, "/retry")
    said = " ".join(capsys.readouterr().err.split())
    assert "the model answered with nothing; the earlier answer stays in the conversation" in said
    assert "not kept" not in said and chat.conversation.turns == [before]
    assert held(chat, "how many ?")
    assert "with nothing; the question is not kept" in " ".join(capsys.readouterr().err.split())
    assert chat.conversation.turns == [before]


def test_a_sampled_retry_takes_another_seed(engine: Engine) -> None:
    chat = Chat(engine, Sampling(max_new_tokens=12, temperature=5.0))
    held(chat, QUESTION)
    first = chat.conversation.turns[0].answer
    held(chat, "/retry")
    assert chat.conversation.turns[0].answer != first


def test_a_saved_conversation_is_a_llava_record(chat: Chat, picture: Path, tmp_path: Path) -> None:
    assert held(
        chat, f"/image {picture}", f"{QUESTION} <image>", f"/image {picture}", "how many ?", f"/save {tmp_path}/c"
    )
    (record,) = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    sample = parse_record(record)
    assert sample.images == ("my picture.png", "my picture.png")
    kinds = [[part["type"] for part in message["content"]] for message in sample.messages()[::2]]
    assert kinds == [["image", "text"], ["image", "text"]]
    assert [turn.text for turn in sample.turns[1::2]] == [turn.answer for turn in chat.conversation.turns]
    text = (tmp_path / "c.txt").read_text(encoding="utf-8")
    assert text.startswith("[image: my picture.png]\n\nYou: what colour")


def test_saving_replaces_only_files_of_the_chat(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert not held(chat, QUESTION, f"/save {tmp_path}/notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert held(chat, f"/save {tmp_path}/c.json", QUESTION, f"/save {tmp_path}/c.json")
    assert len(json.loads((tmp_path / "c.json").read_text())[0]["conversations"]) == 4
    assert not held(chat, f"/save {tmp_path}/c.docx")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my chat", "takes one file name, found my chat; quote"),
        ('""', 'takes one file name, found ""'),
        (".", "takes one file name"),
        ("..", "is a folder"),
        ("sub/..", "is a folder"),
        ("sub", "is a folder"),
        ("~", "is a folder"),
    ],
)
def test_a_conversation_is_saved_under_one_name_or_not(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output, name: str, said: str
) -> None:
    (tmp_path / "here/sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "here"))
    assert not held(chat, QUESTION, f"/save {name}")
    assert said in " ".join(capsys.readouterr().err.split())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert held(chat, '/save "my chat"')
    assert sorted(path.name for path in tmp_path.rglob("my chat.*")) == ["my chat.json", "my chat.txt"]


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="needs names that are not UTF-8")
def test_an_image_whose_name_is_not_utf8_is_shown_but_not_saved(
    chat: Chat, picture: Path, tmp_path: Path, capsys: Output
) -> None:
    odd = tmp_path / "a\udcff.png"
    odd.write_bytes(picture.read_bytes())
    assert held(chat, f"/image {odd}", QUESTION, "/alignment")
    assert "a\\udcff.png: the parts that match" in capsys.readouterr().out
    assert not held(chat, f"/save {tmp_path}/c.txt")
    assert "not UTF-8" in capsys.readouterr().err and not (tmp_path / "c.txt").exists()


def test_a_full_context_says_what_to_do(chat: Chat, capsys: Output) -> None:
    assert not held(chat, "red " * 600, QUESTION)
    assert "model's context is 512 tokens" in (said := " ".join(capsys.readouterr().err.split())) and "/reset" in said
    assert [turn.question for turn in chat.conversation.turns] == [QUESTION]


def test_codes_for_the_terminal_in_an_answer_are_printed_as_escapes(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(
        chat.engine, "events", lambda *_: [module.TextDelta(0, "red\x1b[2J\n"), module.TextDelta(0, "ü\t\x9b")]
    )
    assert held(chat, QUESTION)
    assert capsys.readouterr().out == "red\\x1b[2J\nü\t\\x9b\n"
    assert chat.conversation.turns[0].answer == "red\x1b[2J\nü\t\x9b"


def test_a_stopped_answer_keeps_what_was_said(chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def events(*_: object) -> Iterable[object]:
        yield module.TextDelta(0, " red ")
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(chat.engine, "events", events)
        assert held(chat, QUESTION)
    assert chat.conversation.turns[0].answer == "red" and "stopped" in capsys.readouterr().err
    assert held(chat, "how many ?") and len(chat.conversation.turns) == 2


def test_help_names_every_command(chat: Chat, capsys: Output) -> None:
    assert held(chat, "/help")
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("/")}
    assert listed == set(COMMANDS) == set(chat._commands)


def test_faults_of_the_program_are_not_hidden(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "engine", SimpleNamespace())
    with pytest.raises(AttributeError):
        held(chat, QUESTION)


def test_a_model_without_alignment_says_so(assembled: Callable, picture: Path, capsys: Output) -> None:
    with Engine(*assembled(alignment="none")) as engine:
        chat = Chat(engine, Sampling(max_new_tokens=4))
        assert held(chat, f"/image {picture}", QUESTION, "/alignment")
        assert "alignment: none" in capsys.readouterr().out
        with pytest.raises(ChatError, match="no levels"):
            chat.do("/level 2")


def test_a_line_of_a_pipe_that_is_not_utf8_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\ntw\xffo\nthree\n"), encoding="utf-8"))
    lines = lines_of_stdin(COMMANDS)
    assert [lines.next() for _ in range(4)] == ["one", "tw\udcffo", "three", None]


def test_a_byte_order_mark_belongs_to_no_line_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\ufeff/image photo.jpg\n\ufeffred\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))
    lines = lines_of_stdin(COMMANDS)
    assert [lines.next() for _ in range(3)] == ["/image photo.jpg", "\ufeffred", None]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_temperature_that_is_no_number_is_refused_before_anything_is_loaded(value: str) -> None:
    ended = CliRunner().invoke(cli.app, ["chat", "no/model", "--temperature", value])
    assert ended.exit_code == 2 and "temperature" in ended.output
