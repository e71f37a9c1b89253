"""Samples parsed from records of all formats, and the errors for invalid records."""

import json
from dataclasses import replace
from typing import Any

import pytest

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.sample import Sample, Turn, parse_record, to_record


def spoken(*turns: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"from": role, "value": value} for role, value in turns]


def llava(**changes: Any) -> dict[str, Any]:
    """A record as in the authors' files, with some fields replaced, or omitted if None."""
    record = {"id": "7", "image": "a.jpg", "conversations": spoken(("human", "<image>\nWhat?"), ("gpt", "A cat."))}
    return {name: value for name, value in (record | changes).items() if value is not None}


def said(sample: Sample) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in sample.turns]


def reason_of(record: object) -> tuple[str, str]:
    with pytest.raises(RecordError) as caught:
        parse_record(record)
    return caught.value.reason, str(caught.value)


def test_a_llava_record_is_a_sample() -> None:
    sample = parse_record(llava(similarity=3, score=0.25, question_type="animal"), 41)
    turns = (Turn("user", "What?"), Turn("assistant", "A cat."))
    assert sample == Sample("7", turns, ("a.jpg",), level=4, score=0.25, kind="animal", record=41)
    assert sample.caption == "A cat."


def test_user_and_assistant_are_names_of_the_roles_too() -> None:
    turns = spoken(("user", "What?\n<image>"), ("assistant", "A cat."))
    assert parse_record(llava(conversations=turns)) == parse_record(llava())


@pytest.mark.parametrize("name", ["caption", "text"])
def test_a_pair_of_image_and_caption_is_a_sample(name: str) -> None:
    sample = parse_record({"image": "a.jpg", name: " A cat. "}, 5)
    assert sample == Sample("5", (Turn("user", ""), Turn("assistant", "A cat.")), ("a.jpg",), record=5)


def test_a_question_and_its_answer_are_a_sample() -> None:
    sample = parse_record({"image": "a.jpg", "question": "What?", "answer": "A cat.", "question_type": 3})
    assert said(sample) == [("user", "What?"), ("assistant", "A cat.")]
    assert (sample.images, sample.kind) == (("a.jpg",), "3")


@pytest.mark.parametrize(("id", "expected"), [("x", "x"), (0, "0"), (None, "9")])
def test_the_id_is_the_records_own_or_its_number(id: Any, expected: str) -> None:
    assert parse_record(llava() | {"id": id}, 9).id == expected
    assert parse_record(llava(id=None), 9).id == "9"


@pytest.mark.parametrize("asked", ["<image>\n<image>\nWhich?", "Which? <image> <image>", "Which?"])
def test_several_images_are_all_shown_in_the_first_turn(asked: str) -> None:
    sample = parse_record(llava(image=["a.jpg", "b.jpg"], conversations=spoken(("human", asked), ("gpt", "b"))))
    assert sample.images == ("a.jpg", "b.jpg")
    assert said(sample)[0] == ("user", "Which?")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((("system", "<image>"), ("human", "<image>A?"), ("gpt", "a")), "image_in_system"),
        ((("human", "<image>A?"), ("gpt", "a, as in <image>")), "image_in_answer"),
    ],
)
def test_an_image_outside_the_users_turns_is_refused(turns: Any, reason: str) -> None:
    assert reason_of(llava(image=["a.jpg", "b.jpg"], conversations=spoken(*turns)))[0] == reason


@pytest.mark.parametrize("image", [None, [], "", [""], [None], ["", None]])
def test_text_alone_is_a_sample(image: Any) -> None:
    sample = parse_record(llava(image=image, conversations=spoken(("human", "1 + 1?"), ("gpt", "2"))))
    assert sample.images == ()
    assert sample.messages()[0]["content"] == [{"type": "text", "text": "1 + 1?"}]


def test_a_leading_turn_of_the_assistant_is_lost() -> None:
    turns = spoken(("gpt", "Hello."), ("human", "Hi."), ("gpt", "Yes?"))
    assert said(parse_record(llava(conversations=turns))) == [("user", "Hi."), ("assistant", "Yes?")]


def test_a_trailing_turn_of_the_user_is_dropped() -> None:
    turns = spoken(("human", "Hi."), ("gpt", "Yes?"), ("human", "Bye."))
    assert said(parse_record(llava(conversations=turns))) == [("user", "Hi."), ("assistant", "Yes?")]


def test_messages_are_in_the_chat_format_with_a_part_for_each_image() -> None:
    turns = spoken(("human", "Which?"), ("gpt", "b"), ("human", "Sure?"), ("gpt", "Yes."))
    sample = parse_record(llava(image=["a.jpg", "b.jpg"], conversations=turns))
    text = [[{"type": "text", "text": turn.text}] for turn in sample.turns]
    assert sample.messages() == [
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, *text[0]]},
        {"role": "assistant", "content": text[1]},
        {"role": "user", "content": text[2]},
        {"role": "assistant", "content": text[3]},
    ]


@pytest.mark.parametrize(
    "record",
    [
        llava(similarity=0, score=-0.5, question_type="colour"),
        llava(image=["a.jpg", "b.jpg"], conversations=spoken(("human", "<image><image>Which?"), ("gpt", "b"))),
        llava(image=None, conversations=spoken(("human", "1?"), ("gpt", "2"), ("human", "3?"), ("gpt", "4"))),
        {"image": "ü/猫.jpg", "caption": "A <b>cat</b>.\nTwo lines."},
        llava(conversations=spoken(("system", " Be brief. "), ("human", "<image>\nWhat?"), ("gpt", "A cat."))),
    ],
)
def test_a_sample_survives_being_written_and_read(record: dict[str, Any]) -> None:
    sample = parse_record(record, 3)
    assert parse_record(json.loads(json.dumps(to_record(sample))), 3) == sample


def openai(*turns: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    return fields | {"messages": [{"role": role, "content": content} for role, content in turns]}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


CAT = Sample("7", (Turn("user", "What?"), Turn("assistant", "A cat.")), ("a.jpg",))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.jpg"},
        {"type": "image", "path": "a.jpg"},
        {"type": "image", "url": "a.jpg", "text": None},
        {"type": "image_url", "image_url": {"url": "a.jpg"}},
        {"type": "image_url", "image_url": "a.jpg"},
    ],
)
def test_messages_with_their_image_in_a_part_are_a_sample(part: dict[str, Any]) -> None:
    for question in ([part, text("What?")], [text("What?"), part], [text("Wh"), text("at?"), part]):
        answer = [text("A cat.")]
        assert parse_record(openai(("user", question), ("assistant", answer), id=7)) == CAT


@pytest.mark.parametrize("question", [[{"type": "image"}, text("What?")], "<image>\nWhat?", "What?"])
@pytest.mark.parametrize(
    "images", [{"images": ["a.jpg"]}, {"images": "a.jpg"}, {"image": "a.jpg"}, {"image": ["a.jpg"]}]
)
def test_messages_with_their_image_in_a_field_are_a_sample(question: Any, images: dict[str, Any]) -> None:
    assert parse_record(openai(("user", question), ("assistant", "A cat."), id=7, **images)) == CAT


@pytest.mark.parametrize("field", ["image", "images"])
@pytest.mark.parametrize("question", ["What?", "<image>\nWhat?", [text("What?")], [{"type": "image"}, text("What?")]])
def test_a_turn_that_names_its_image_in_a_field_is_read(field: str, question: Any) -> None:
    turns = [{"role": "user", "content": question, field: "a.jpg"}, {"role": "assistant", "content": "A cat."}]
    assert parse_record({"id": 7, "messages": turns}) == CAT
    assert parse_record({"id": 7, "messages": turns, "image": "a.jpg"}) == CAT


def test_images_are_shown_in_the_turns_that_name_them() -> None:
    first = [{"role": "user", "content": "Which?", "images": ["a.jpg"]}, {"role": "assistant", "content": "A."}]
    later = {"role": "user", "content": "<image> or <image>?", "images": ["b.jpg", "c.jpg"]}
    sample = parse_record({"messages": [*first, later, first[1]]})
    assert sample.images == ("a.jpg", "b.jpg", "c.jpg")
    assert [turn.text for turn in sample.turns[::2]] == ["<image>\nWhich?", "<image> or <image>?"]
    texts = [{"user": "Which?", "assistant": "A.", "image": "a.jpg"}]
    assert parse_record({"texts": texts}) == parse_record({"messages": first})


@pytest.mark.parametrize(
    ("turn", "beside", "reason"),
    [
        ({"content": "<image><image>What?", "image": "a.jpg"}, {}, "image_count"),
        ({"content": [{"type": "image", "path": "a.jpg"}, text("What?")], "image": "b.jpg"}, {}, "image_field"),
        ({"content": "What?", "image": "a.jpg"}, {"image": "b.jpg"}, "image_field"),
        ({"content": "What?", "images": [{"bytes": "x"}]}, {}, "image_field"),
        ({"content": "What?", "image": "http://a.org/a.jpg"}, {}, "remote_image"),
        ({"role": "assistant", "content": "What?", "image": "a.jpg"}, {}, "image_in_answer"),
    ],
)
def test_a_turn_with_other_images_than_it_names_is_refused(turn: dict, beside: dict, reason: str) -> None:
    asked = [{"role": "user", "content": "Hello?"}] if "role" in turn else []
    answer = [] if asked else [{"role": "assistant", "content": "A cat."}]
    assert reason_of({"messages": [*asked, {"role": "user"} | turn, *answer], **beside})[0] == reason


def shown(*places: Any) -> dict[str, Any]:
    """A record about a.jpg and b.jpg, whose question shows the images of these places."""
    parts = [{"type": "image", "index": place} for place in places]
    return openai(("user", [*parts, text("Which?")]), ("assistant", "A."), images=["a.jpg", "b.jpg"])


def test_the_index_of_a_part_says_which_image_it_shows() -> None:
    assert parse_record(shown(1, 0)).images == ("b.jpg", "a.jpg")
    assert parse_record(shown(0, 1, 0)).images == ("a.jpg", "b.jpg", "a.jpg")
    assert parse_record(shown(None, None)).images == ("a.jpg", "b.jpg")


@pytest.mark.parametrize("places", [(1, None), (0, 0), (0, 2), (-1, 0), (1, 2)])
def test_an_index_of_no_image_is_refused(places: tuple[Any, ...]) -> None:
    assert reason_of(shown(*places))[0] == "image_count"
    assert reason_of(shown("1", "0"))[0] == "message_part"


def test_several_parts_are_images_in_their_order() -> None:
    paths = [{"type": "image", "path": name} for name in ("b.jpg", "a.jpg")]
    sample = parse_record(openai(("user", [*paths, text("Which?")]), ("assistant", "b")))
    assert sample.images == ("b.jpg", "a.jpg")


def test_messages_of_text_alone_are_a_sample_with_what_the_system_says() -> None:
    turns = ("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "2 + 2?"), ("assistant", "4")
    sample = parse_record(openai(*turns, similarity=2, score=0.5, question_type="sum"))
    assert (sample.system, len(sample.turns), sample.images) == ("Be brief.", 4, ())
    assert (sample.level, sample.score, sample.kind) == (3, 0.5, "sum")
    assert sample.messages()[0] == {"role": "system", "content": [text("Be brief.")]}
    assert [message["role"] for message in sample.messages()] == [role for role, _ in turns]


@pytest.mark.parametrize("field", ["conversations", "messages"])
@pytest.mark.parametrize("names", [("from", "value"), ("role", "content")])
@pytest.mark.parametrize(
    ("user", "assistant"), [("human", "gpt"), ("user", "assistant"), ("human", "chatgpt"), ("user", "bing")]
)
def test_sharegpt_turns_are_a_sample_by_any_of_their_names(
    field: str, names: tuple[str, str], user: str, assistant: str
) -> None:
    said = ("system", "Be brief."), (user, "<image>What?"), (assistant, "A cat.")
    turns = [dict(zip(names, turn, strict=True)) for turn in said]
    assert parse_record({"id": "7", field: turns, "images": ["a.jpg"]}) == replace(CAT, system="Be brief.")


@pytest.mark.parametrize("value", ["", " \n"])
def test_a_system_that_says_nothing_is_none(value: str) -> None:
    turns = spoken(("system", value), ("human", "<image>What?"), ("gpt", "A cat."))
    assert parse_record(llava(conversations=turns)) == CAT


def test_a_leading_turn_of_the_assistant_is_lost_after_the_system_too() -> None:
    lost = {"type": "image", "path": "lost.jpg"}
    turns = ("system", "Be brief."), ("assistant", [lost, text("Hello.")]), ("user", "Hi."), ("assistant", "Yes?")
    sample = parse_record(openai(*turns))
    assert (sample.system, sample.images) == ("Be brief.", ())
    assert said(sample) == [("user", "Hi."), ("assistant", "Yes?")]


@pytest.mark.parametrize(("place", "reason"), [("system", "image_in_system"), ("assistant", "image_in_answer")])
def test_an_image_part_outside_the_users_turns_is_refused(place: str, reason: str) -> None:
    image = [{"type": "image", "path": "a.jpg"}, text("See.")]
    turns: list[tuple[str, Any]] = [("system", "a"), ("user", "b"), ("assistant", "c")]
    turns[0 if place == "system" else 2] = (place, image)
    found, message = reason_of(openai(*turns))
    assert found == reason
    assert f"a turn of the {place}; images must be in turns of the user" in message


@pytest.mark.parametrize(
    "name", ["http://a.org/a.jpg", "https://a.org/a.jpg", "data:image/png;base64,iVBORw0", "s3://a/a.jpg", "HTTPS://a"]
)
def test_a_picture_that_is_elsewhere_is_refused(name: str) -> None:
    part = {"type": "image_url", "image_url": {"url": name}}
    for record in (llava(image=name), openai(("user", [part, text("What?")]), ("assistant", "A cat."))):
        reason, message = reason_of(record)
        assert reason == "remote_image"
        assert name in message and "download the image" in message


@pytest.mark.parametrize("name", ["C:/a.jpg", "c:\\a.jpg", "data/a.jpg", "http/a.jpg"])
def test_a_path_is_no_url(name: str) -> None:
    assert parse_record(llava(image=name)).images == (name,)


@pytest.mark.parametrize(
    ("record", "reason", "named"),
    [
        (llava(images=["b.jpg"]), "image_field", "`image` and `images` name different"),
        (llava(image=None, images=[3]), "image_field", "the field `images` must be a path"),
        (
            openai(("user", [{"type": "image", "path": "a.jpg"}]), ("assistant", "b"), image="b.jpg"),
            "image_field",
            "once",
        ),
        (openai(("user", [{"type": "image"}, text("a")]), ("assistant", "b")), "image_count", "1 images and"),
        (openai(("user", [{"type": "video"}, text("a")]), ("assistant", "b")), "video", "{'type': 'video'}"),
        (openai(("user", [{"type": "text"}]), ("assistant", "b")), "message_part", "turn 1"),
        (openai(("user", [{"type": "image_url", "image_url": {}}]), ("assistant", "b")), "message_part", "turn 1"),
        (openai(("user", ["a"]), ("assistant", "b")), "message_part", "'a'"),
        (openai(("user", "a"), ("assistant", [text(" ")])), "empty_text", "turn 2 (assistant)"),
        (openai(("user", "a"), ("assistant", [text("\ud83d")])), "broken_text", "turn 2 (assistant)"),
        (openai(("system", "\ud83d"), ("user", "a"), ("assistant", "b")), "broken_text", "the system turn"),
    ],
)
def test_what_other_formats_cannot_say_is_refused(record: dict[str, Any], reason: str, named: str) -> None:
    found, message = reason_of(record)
    assert found == reason
    assert named in message


def test_a_written_record_is_the_one_that_was_read() -> None:
    record = llava(similarity=7, score=0.5, question_type="x")
    assert to_record(parse_record(record)) == record
    bare = to_record(parse_record({"image": "a.jpg", "caption": "A cat."}))
    assert bare == {"id": "0", "image": "a.jpg", "conversations": spoken(("human", "<image>"), ("gpt", "A cat."))}


@pytest.mark.parametrize("level", [0, 7, 99])
def test_similarity_is_the_level_counted_from_zero(level: int) -> None:
    assert parse_record(llava(similarity=level)).level == level + 1


@pytest.mark.parametrize("level", [-1, True, "3", [3]])
def test_a_similarity_that_is_no_level_is_refused(level: Any) -> None:
    reason, message = reason_of(llava(similarity=level))
    assert reason == "level"
    assert "`similarity`" in message and repr(level) in message


def test_a_similarity_with_a_point_is_a_score() -> None:
    sample = parse_record(llava(similarity=0.31))
    assert (sample.level, sample.score) == (None, 0.31)
    assert parse_record(llava(similarity=0.31, score=0.2)).score == 0.2


@pytest.mark.parametrize("score", ["0.3", True, [0.3]])
def test_a_score_that_is_no_number_is_refused(score: Any) -> None:
    reason, message = reason_of(llava(score=score))
    assert reason == "score"
    assert "`score`" in message and repr(score) in message


@pytest.mark.parametrize("record", [[1], "text", 3, None])
def test_what_is_no_object_is_refused(record: object) -> None:
    assert reason_of(record) == ("not_an_object", f"expected a JSON object, found {type(record).__name__}")


@pytest.mark.parametrize("image", [3, {"path": "a.jpg"}, ["a.jpg", None], ["", "a.jpg"]])
def test_an_image_field_that_is_no_path_is_refused(image: Any) -> None:
    reason, message = reason_of(llava(image=image))
    assert reason == "image_field"
    assert "`image`" in message and repr(image) in message


@pytest.mark.parametrize(
    ("image", "placeholders"), [(None, 1), ("a.jpg", 2), (["a.jpg", "b.jpg"], 1), (["a.jpg", "b.jpg"], 3)]
)
def test_a_wrong_number_of_placeholders_is_refused(image: Any, placeholders: int) -> None:
    turns = spoken(("human", "<image>" * placeholders + "What?"), ("gpt", "A cat."))
    reason, message = reason_of(llava(image=image, conversations=turns))
    images = 0 if image is None else 1 if isinstance(image, str) else len(image)
    assert reason == "image_count"
    assert f"{placeholders} <image> placeholders" in message and f"{images} images" in message


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        (spoken(("human", "a"), ("human", "b"), ("gpt", "c")), "turn 2 is the user's, expected the assistant's"),
        (spoken(("human", "a"), ("gpt", "b"), ("gpt", "c")), "turn 3 is the assistant's, expected the user's"),
        (spoken(("sytem", "a"), ("human", "b"), ("gpt", "c")), "turn 1 is from 'sytem', expected one of system, human"),
        (spoken(("Human", "b"), ("gpt", "c")), "turn 1 is from 'Human', expected one of system, human"),
        (spoken(("user", "a"), ("tol", "b")), "turn 2 is from 'tol', expected one of system, human"),
    ],
)
def test_wrong_roles_are_refused(turns: Any, found: str) -> None:
    reason, message = reason_of(llava(conversations=turns))
    assert reason == "wrong_roles"
    assert message.startswith(found)


@pytest.mark.parametrize(
    ("record", "empty"),
    [
        (llava(conversations=spoken(("human", "<image>"), ("gpt", " \n"))), "turn 2 (assistant)"),
        (llava(image=None, conversations=spoken(("human", " "), ("gpt", "b"))), "turn 1 (user)"),
        (llava(conversations=spoken(("human", "a"), ("gpt", "b"), ("human", ""), ("gpt", "c"))), "turn 3 (user)"),
        ({"image": "a.jpg", "caption": ""}, "turn 2 (assistant)"),
        ({"caption": "a caption of no image"}, "turn 1 (user)"),
    ],
)
def test_an_empty_text_is_refused(record: dict[str, Any], empty: str) -> None:
    assert reason_of(record) == ("empty_text", f"{empty} is empty")


@pytest.mark.parametrize("value", ["\ud83d", "A cat \ude00."])
def test_a_text_that_was_cut_inside_an_emoji_is_refused(value: str) -> None:
    reason, message = reason_of({"image": "a.jpg", "caption": value})
    assert (reason, message) == ("broken_text", "turn 2 (assistant) contains half a character (a lone surrogate)")
    assert said(parse_record({"image": "a.jpg", "caption": "A cat 😀."}))[1] == ("assistant", "A cat 😀.")


@pytest.mark.parametrize(
    ("record", "named"),
    [
        (llava(conversations=[]), "an assistant turn"),
        (llava(conversations={"from": "human"}), "`conversations` must be a list"),
        (llava(conversations=["Hi.", "Yes?"]), "turn 1 needs the strings `from` and `value`, found 'Hi.'"),
        (llava(conversations=spoken(("human", "a"), ("gpt", None))), "turn 2 needs the strings"),
        (llava(conversations=[{"role": "user", "text": "a"}]), "or `role` and `content`, found"),
        ({"image": "a.jpg"}, "`conversations`, `messages`, `texts`"),
        ({"image": "a.jpg", "messages": []}, "an assistant turn"),
        ({"image": "a.jpg", "messages": "Hi."}, "`messages` must be a list"),
        ({"image": "a.jpg", "caption": ["A cat."]}, "must be a string"),
        ({"image": "a.jpg", "question": 3, "answer": "A cat."}, "must be a string"),
    ],
)
def test_what_is_no_conversation_is_refused(record: dict[str, Any], named: str) -> None:
    reason, message = reason_of(record)
    assert reason == "no_conversation"
    assert named in message
