"""No content of a record is dropped silently: it is read, or rejected, or listed by `check`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligngpt.checking.files import check_files
from aligngpt.checking.result import FileCheck
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.fields import fields_not_read
from aligngpt.data.records.sample import Sample, parse_record, to_record
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.preparing import prepare_samples
from aligngpt.data.samples.reading import read_samples
from aligngpt.data.sources.base import SourceError

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path: Path) -> list[dict[str, Any]]:
    """Three images as data sets store them in Parquet; as files they are `0.png` and so on."""
    found = []
    for place in range(3):
        Image.new("RGB", (8, 8), (80 * place, 0, 0)).save(tmp_path / f"{place}.png")
        found.append({"bytes": (tmp_path / f"{place}.png").read_bytes(), "path": None})
    return found


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: dict[str, Any]) -> Path:
        pq.write_table(pa.Table.from_pylist(list(rows)), tmp_path / "data.parquet")
        return tmp_path / "data.parquet"

    return write


def talk(**fields: Any) -> dict[str, Any]:
    return {"conversations": TALK, **fields}


def asking(question: str = "What?", answer: str = "A cat.", **fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **fields}


def in_turns(asked: dict[str, Any] | None = None, answered: dict[str, Any] | None = None) -> dict[str, Any]:
    """A conversation with more fields in its question and its answer."""
    question, answer = TALK
    return {"conversations": [question | (asked or {}), answer | (answered or {})]}


def reason_of(record: dict[str, Any]) -> str:
    with pytest.raises(RecordError) as caught:
        parse_record(record)
    return caught.value.reason


def said(sample: Sample) -> list[str]:
    return [turn.text for turn in sample.turns]


def checked(path: Path) -> FileCheck:
    (check,) = check_files([path])
    return check


def reasons(check: FileCheck) -> list[str]:
    return [problem.reason for problem in check.problems]


@pytest.mark.parametrize("answer", [{"label": "yes"}, {"answer": "yes"}, {"answers": ["yes", "yes"]}])
def test_a_text_beside_an_answer_is_the_question(answer: dict[str, Any]) -> None:
    sample = parse_record({"question_id": 11, "image": "0.jpg", "text": "is there a dog ?", **answer}, 3)
    assert (sample.id, said(sample), sample.accepted) == ("11", ["is there a dog ?", "yes"], ())


@pytest.mark.parametrize(
    "record",
    [
        {"question_id": 11, "image": "0.jpg", "text": "is there a dog ?"},
        {"image": "0.jpg", "text": "is there a dog ?", "label": None},
        {"image": "0.jpg", "text": "is there a dog ?", "label": 1},
        {"image": "0.jpg", "text": "is there a dog ?", "answers": []},
        {"image": "0.jpg", "question": "is there a dog ?"},
        {"image": "0.jpg", "question": "is there a dog ?", "answer": None},
        {"image": "0.jpg", "question": "is there a dog ?", "answer": ["yes", 3]},
        {"question_id": 11, "image": "0.jpg", "question": "is there a dog ?", "text": "yes"},
        {"image": "0.jpg", "conversations": TALK[:1]},
        {"image": "0.jpg", "messages": [{"role": "user", "content": "is there a dog ?"}]},
    ],
)
def test_a_question_is_never_its_own_answer(record: dict[str, Any]) -> None:
    assert reason_of(record) == "unanswered"


def test_a_table_of_captions_and_questions_has_the_fields_of_both_in_every_record() -> None:
    nulls = {"question": None, "answer": None, "label": None, "question_id": None}
    assert said(parse_record(nulls | {"image": "0.jpg", "text": "a dog"})) == ["", "a dog"]
    asked = {"text": None, "caption": None, "image": "0.jpg", "question": "What?", "answer": "a dog"}
    assert said(parse_record(nulls | asked)) == ["What?", "a dog"]


def test_an_answer_needs_a_question() -> None:
    assert reason_of({"image": "0.jpg", "caption": "a dog", "answer": "yes"}) == "no_question"


def test_the_most_frequent_answer_is_learnt_and_all_are_accepted() -> None:
    record = {"image": "0.jpg", "question": "which ?", "answers": ["dark red", "red", "red", ""]}
    sample = parse_record(record)
    assert (said(sample)[1], sample.accepted) == ("red", ("red", "dark red"))
    assert parse_record(json.loads(json.dumps(to_record(sample)))) == sample
    assert reason_of(talk(accepted_answers=["a", 1])) == "accepted_answers"


@pytest.mark.parametrize("cell", ["['yes', 'yeah']", '["bob", "Bob"]', "[{'answer': 'yes'}]"])
def test_a_list_of_answers_written_as_text_is_no_answer(cell: str) -> None:
    with pytest.raises(RecordError, match=r"a list written as text, .*; save the records as JSON lines") as caught:
        parse_record({"question": "which ?", "answers": cell})
    assert caught.value.reason == "unanswered"
    assert said(parse_record({"question": "where ?", "answers": "[12, 40, 80, 90]"}))[1] == "[12, 40, 80, 90]"
    assert said(parse_record({"question": "what is listed ?", "answer": cell}))[1] == cell


def test_the_accepted_answers_are_kept_with_prepared_samples(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('[{"question": "which ?", "answers": ["red", "dark red"]}]')
    assert prepare_samples(tmp_path / "data.json", rejects=Rejects(None))[0].accepted == ("red", "dark red")


def test_a_question_id_names_a_reject(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"question_id": 11, "text": "is it ?"}\n' + json.dumps(asking()) + "\n")
    (problem,) = checked(tmp_path / "data.jsonl").problems
    assert (problem.id, problem.reason) == ("11", "unanswered")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (talk(video="a.mp4"), "video"),
        (talk(videos=["a.mp4"]), "video"),
        (talk(audio={"bytes": b"x", "path": None}), "audio"),
        (talk(audios=["a.wav"]), "audio"),
        (in_turns(asked={"videos": ["a.mp4"]}), "video"),
        (in_turns(asked={"audio": "a.wav"}), "audio"),
        (asking("<video>\nWhat?"), "video"),
        (asking("What?\n<|video_pad|>"), "video"),
        (asking("<audio>What?"), "audio"),
        ({"image": "a.jpg", "question": "<video>What?", "answer": "A cat."}, "video"),
        (asking([{"type": "video_url", "video_url": "a.mp4"}, {"type": "text", "text": "What?"}]), "video"),
        (asking([{"type": "input_audio", "input_audio": {}}, {"type": "text", "text": "What?"}]), "audio"),
    ],
)
def test_what_is_about_a_video_or_a_sound_is_refused(record: dict[str, Any], reason: str) -> None:
    assert reason_of(record) == reason


@pytest.mark.parametrize("empty", [None, "", [], [None], {"bytes": None, "path": None}])
def test_a_field_for_videos_that_is_empty_says_nothing(empty: Any) -> None:
    assert said(parse_record(talk(video=empty, videos=empty))) == ["What?", "A cat."]


@pytest.mark.parametrize(
    "tag",
    [
        *("<img>coco/0.jpg</img>", "<img>", "<Image>", "<ImageHere>", "<|image|>", "<|image_1|>", "<image 1>"),
        *("<image_placeholder>", "<|vision_start|>", "<|image_pad|>", "<im_start>", "<start_of_image>", "[IMG]"),
        *("<IMG_CONTEXT>", "<image_soft_token>"),
    ],
)
@pytest.mark.parametrize("image", [None, "a.jpg"])
def test_another_tools_tag_for_a_picture_is_never_a_text(tag: str, image: str | None) -> None:
    assert reason_of(asking(f"{tag}\nWhat?", image=image)) == "picture_tag"
    assert reason_of(asking("What?", f"As in {tag}.", image=image)) == "picture_tag"
    assert reason_of(asking("What?", image=image, system=f"See {tag}.")) == "picture_tag"


@pytest.mark.parametrize("code", ['<img src="a.jpg">', "<imagine>", "<p>a < b</p>", "<|im_start|>", "[IMAGE]", "a[0]"])
def test_other_marks_are_texts(code: str) -> None:
    assert said(parse_record(asking(code)))[0] == code


@pytest.mark.parametrize("field", ["system", "system_prompt"])
def test_a_system_text_beside_the_turns_is_the_systems_turn(field: str) -> None:
    assert parse_record(talk(**{field: "Be brief."})).system == "Be brief."
    assert parse_record({"image": "a.jpg", "question": "Q?", "answer": "A", field: "Be brief."}).system == "Be brief."
    turns = [{"from": "system", "value": "Be brief."}, *TALK]
    assert parse_record({"conversations": turns, field: "Be brief."}) == parse_record({"conversations": turns})
    assert parse_record(talk(**{field: " "})).system is None
    assert reason_of({"conversations": turns, field: "Be long."}) == "system"
    assert reason_of(talk(**{field: {"text": "Be brief."}})) == "system"


def test_a_system_column_of_parquet_is_the_systems_turn(parquet: Callable[..., Path]) -> None:
    path = parquet(asking(system_prompt="Be brief."), asking(system_prompt=None))
    assert [one.system for one in prepare_samples(path, rejects=Rejects(None))] == ["Be brief.", None]


@pytest.mark.parametrize(
    "record",
    [
        talk(tools='[{"name": "search"}]'),
        {"image": "a.jpg", "question": "Which?", "answer": "A", "choices": ["red", "green"]},
        {"question": "Translate.", "input": "Hallo", "answer": "Hello"},
        {"messages": [*asking()["messages"][:1], {"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}]},
        in_turns(answered={"thinking": "It has whiskers."}),
        in_turns(answered={"reasoning": "It has whiskers."}),
        in_turns(answered={"mask": True}),
        in_turns(asked={"image_url": "a.jpg"}),
        in_turns(asked={"files": ["a.pdf"]}),
        {"prompt": asking()["messages"][:1], "completion": [{"role": "assistant", "content": "x", "reasoning": "y"}]},
        {"texts": [{"user": "What?", "assistant": "A cat.", "thinking": "It has whiskers."}]},
    ],
)
def test_a_field_that_changes_what_is_asked_or_answered_is_not_left_out(record: dict[str, Any]) -> None:
    assert reason_of(record) == "unread_field"


@pytest.mark.parametrize(("innermost", "reason"), [([], None), ([1], None), (["0.jpg"], "image_field")])
def test_a_field_may_be_nested_as_deeply_as_json(innermost: list, reason: str | None) -> None:
    nested = innermost
    for _ in range(600):
        nested = [nested]
    record = talk(history=[], more=json.loads(json.dumps(nested)))
    if reason is None:
        assert said(parse_record(record)) == ["What?", "A cat."]
        assert fields_not_read(record) == (["more"] if innermost else [])
    else:
        assert reason_of(record) == reason


def test_a_field_that_holds_nothing_is_none() -> None:
    assert said(parse_record(talk(tools="[]", rejected=None, chosen=""))) == ["What?", "A cat."]


@pytest.mark.parametrize(
    "shown",
    [
        {"image_path": "a.jpg"},
        {"img": "coco/a.PNG"},
        {"pictures": ["a.jpg", "b.webp"]},
        {"photo": {"bytes": b"x", "path": None}},
    ],
)
def test_a_record_that_names_its_picture_elsewhere_is_not_text_only(shown: dict[str, Any]) -> None:
    assert reason_of(talk(**shown)) == "image_field"
    assert parse_record(talk(**shown, image="a.jpg")).images == ("a.jpg",)
    assert reason_of(in_turns(asked=shown)) == "image_field"
    assert parse_record(in_turns(asked={**shown, "image": "a.jpg"})).images == ("a.jpg",)


def test_two_conversations_are_not_one() -> None:
    assert parse_record(talk(**asking())) == parse_record(talk())
    assert reason_of(talk(**asking(answer="A dog."))) == "two_conversations"
    assert parse_record(talk(messages=[])) == parse_record(talk())


def test_texts_of_a_user_and_an_assistant_are_turns() -> None:
    texts = [{"user": "What?", "assistant": "A cat."}, {"user": "Big?", "assistant": "No."}]
    sample = parse_record({"images": ["a.jpg"], "texts": texts})
    assert (said(sample), sample.images) == (["What?", "A cat.", "Big?", "No."], ("a.jpg",))
    assert reason_of({"images": ["a.jpg"], "texts": ["What?"]}) == "no_conversation"


@pytest.mark.parametrize("question", ["What?", "<image>What?"])
def test_a_picture_in_a_column_of_lists_is_shown(parquet: Callable[..., Path], pictures: list, question: str) -> None:
    path = parquet(*[asking(question, images=[picture]) for picture in pictures])
    samples = prepare_samples(path, rejects=Rejects(None))
    assert [len(sample.images) for sample in samples] == [1, 1, 1]
    found = [samples.picture(place, 0) for place in range(3)]
    assert [None if one is None else one.open().getpixel((0, 0))[0] for one in found] == [0, 80, 160]


def test_finevision_is_read_from_parquet(parquet: Callable[..., Path], pictures: list) -> None:
    texts = [{"user": "What?", "assistant": "A cat."}]
    check = checked(parquet(*[{"images": [picture], "texts": texts, "source": "a"} for picture in pictures]))
    assert (check.good, check.samples, check.text_only, check.images) == (True, 3, 0, 3)
    assert check.not_read == {"source": 3}
    assert "note: ignored fields: `source` (3 records)" in check.text()


@pytest.mark.parametrize("embedded", [True, False])
def test_a_picture_in_a_row_can_only_be_shown_once(
    parquet: Callable[..., Path], pictures: list, embedded: bool
) -> None:
    shown = {"type": "image", "index": 0, "text": None}
    turns = [{"role": "user", "content": [shown, shown, {"type": "text", "index": None, "text": "Alike?"}]}]
    turns.append({"role": "assistant", "content": [{"type": "text", "index": None, "text": "Yes."}]})
    path = parquet({"messages": turns, "images": [pictures[0] if embedded else "0.png"]})
    assert reasons(checked(path)) == (["image_count"] if embedded else [])


def test_several_pictures_in_a_row_are_refused_and_none_are_no_picture(
    parquet: Callable[..., Path], pictures: list
) -> None:
    check = checked(parquet(asking(images=pictures[:2]), asking(images=pictures[:1]), asking(images=[])))
    assert reasons(check) == ["image_count"]
    assert (check.samples, check.text_only) == (2, 1)


def test_paths_in_a_column_of_lists_are_pictures_too(parquet: Callable[..., Path], pictures: list) -> None:
    path = parquet(asking(images=["0.png", "1.png"]), asking(images=["2.png"]))
    found = prepare_samples(path, rejects=Rejects(None))
    assert [one.images for one in found] == [("0.png", "1.png"), ("2.png",)]


def test_pictures_in_two_columns_are_refused(parquet: Callable[..., Path], pictures: list) -> None:
    one, two, _ = pictures
    rows = asking(image=one, images=[two]), asking(image=None, images=[two]), asking(image=one, images=None)
    assert reasons(checked(parquet(*rows))) == ["image_field", "image_field"]


def test_pictures_in_a_column_that_is_not_read_are_pointed_out(parquet: Callable[..., Path], pictures: list) -> None:
    path = parquet(*[asking(thumbnail=picture) for picture in pictures])
    with pytest.raises(SourceError, match="binary data in the column thumbnail"):
        prepare_samples(path, rejects=Rejects(None))
    error = checked(path).error
    assert error is not None and "rename the column" in error


def test_a_column_of_questions_is_not_one_of_captions(parquet: Callable[..., Path], pictures: list) -> None:
    labels = zip(pictures, ("yes", None, "no"), strict=True)
    path = parquet(*[{"image": picture, "text": "is it red ?", "label": label} for picture, label in labels])
    rejects = Rejects(None, max_share=1)
    found = prepare_samples(path, rejects=rejects)
    assert [said(one) for one in found] == [["is it red ?", "yes"], ["is it red ?", "no"]]
    assert rejects.by_reason == {"unanswered": 1}


def test_check_names_the_fields_that_are_not_read_and_the_turns_that_are_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    greeted = [{"from": "gpt", "value": "Hello."}, *TALK]
    records = [
        talk(hint="think", source="x"),
        talk(source="y", caption=""),
        {"conversations": greeted},
        {"conversations": [*TALK, {"from": "human", "value": "Why?"}], "image": "a.png"},
        asking("What?\n<image>", image="a.png"),
        {"question": "What?", "answer": "A cat.", "label": "cat"},
        in_turns(asked={"name": "Ada", "source": ""}, answered={"name": "Bob"}),
        asking([{"type": "image", "path": "a.png", "detail": "low"}, {"type": "text", "text": "What?"}]),
        {"texts": [{"user": "What?", "assistant": "A cat.", "source": "x"}]},
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    check = checked(tmp_path / "data.json")
    assert check.good
    within = {"conversations[].name": 1, "messages[].content[].detail": 1, "texts[].source": 1}
    assert check.not_read == {"source": 2, "hint": 1, "label": 1, **within}
    text = check.text()
    assert "note: 1 record beginning with the assistant, whose first turn is left out" in text
    assert "note: 1 record ending with a question without an answer, which is left out" in text
    assert "note: 1 record with images at the end of a question, which are shown before it" in text
    assert check.facts()["not_read"] == check.not_read


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, name: str) -> None:
    good = json.dumps(talk())
    twice = good[:-1] + ', "image": "a.jpg", "image": "b.jpg"}'
    inside = '{"conversations": [{"from": "human", "value": "A?", "value": "B?"}, {"from": "gpt", "value": "b"}]}'
    lines = [twice, good, inside]
    (tmp_path / name).write_text("[" + ",".join(lines) + "]" if name == "data.json" else "\n".join(lines))
    rejects = Rejects(None)
    assert [sample.record for sample, _ in read_samples(tmp_path / name, rejects)] == [1]
    assert rejects.by_reason == {"repeated_key": 2}
