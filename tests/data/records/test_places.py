"""Images stay where they stand in the user's turns."""

import json
from pathlib import Path
from typing import Any

import pytest

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.sample import Sample, notes_on, parse_record, to_record
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.preparing import prepare_samples

IMAGE = {"type": "image"}


def talk(*texts: Any, images: int = 2) -> dict[str, Any]:
    """A record whose turns have these texts, user and assistant by turns."""
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"images": ["a.png", "b.png", "c.png"][:images], "messages": turns}


def shown(sample: Sample) -> list[str]:
    """Each message with `I` for an image, and its texts between slashes."""
    return [
        "".join("I" if part["type"] == "image" else f"/{part['text']}/" for part in message["content"])
        for message in sample.messages()
    ]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (talk("Is <image> or <image> older?", "b"), ["/Is /I/ or /I/ older?/", "/b/"]),
        (talk("<image> or <image>", "b"), ["I/ or /I", "/b/"]),
        (talk("<image>\nWhich?\n<image>", "b"), ["I/\nWhich?\n/I", "/b/"]),
        (talk("<image>A?", "a", "<image>\n B?", "b"), ["I/A?/", "/a/", "I/B?/", "/b/"]),
        (talk(" A? ", "a", "B? <image> <image>", "b"), ["/ A? /", "/a/", "II/B?/", "/b/"]),
        (talk("A?", "a", "<image>", "b", images=1), ["/A?/", "/a/", "I//", "/b/"]),
        (
            talk(f"A{' ' * 200_000}<image>{' ' * 200_000}B?", "a", images=1),
            [f"/A{' ' * 200_000}/I/{' ' * 200_000}B?/", "/a/"],
        ),
        (
            talk([{"type": "text", "text": "Is "}, IMAGE, {"type": "text", "text": " it?"}], "b", images=1),
            ["/Is /I/ it?/", "/b/"],
        ),
    ],
)
def test_an_image_stays_where_it_stands(record: dict[str, Any], expected: list[str]) -> None:
    sample = parse_record(record)
    assert shown(sample) == expected
    assert sample.interleaved
    assert list(sample.images) == record["images"]
    assert parse_record(json.loads(json.dumps(to_record(sample)))) == sample


def test_paths_in_the_parts_of_several_turns_are_in_reading_order() -> None:
    parts = [[{"type": "image", "path": name}, {"type": "text", "text": "A?"}] for name in ("b.png", "a.png")]
    sample = parse_record(talk(parts[0], "a", parts[1], "b", images=0))
    assert (sample.images, shown(sample)) == (("b.png", "a.png"), ["I/A?/", "/a/", "I/A?/", "/b/"])


@pytest.mark.parametrize("first", ["<image>\nA?", "A?\n<image>"])
def test_images_around_the_first_question_alone_are_before_it(first: str) -> None:
    sample = parse_record(talk(first, "a", "B?", "b", images=1))
    assert not sample.interleaved
    assert (sample.turns[0].text, shown(sample)[0]) == ("A?", "I/A?/")


def test_a_last_question_without_an_answer_is_left_out_with_its_images() -> None:
    sample = parse_record(talk("<image>A?", "a", "Is <image> it?"))
    assert (sample.images, sample.interleaved, len(sample.turns)) == (("a.png",), False, 2)
    assert parse_record(to_record(sample)) == parse_record(talk("<image>A?", "a", images=1) | {"id": "0"})
    without = parse_record(talk("A?", "a", "Is <image> it?", images=1))
    assert (without.images, shown(without)) == ((), ["/A?/", "/a/"])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (talk("<image>A?", "a", " ", "b", images=1), "empty_text"),
        (talk(" ", "a", "Is <image> it?", "b", images=1), "empty_text"),
        (talk("<image>A?", "a", "<image>B?", "b", images=1), "image_count"),
        (talk("<image>A?", "a", "B?", "b", images=2), "image_count"),
        (talk("A?", "a", "Is <image> it?", images=2), "image_count"),
    ],
)
def test_questions_are_not_empty_and_images_are_counted_over_all_turns(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record(record)
    assert caught.value.reason == reason


def test_a_note_tells_of_images_that_are_moved() -> None:
    moved = "with images at the end of a question, which are shown before it"
    assert notes_on(talk("A?", "a", "B? <image>", "b")) == [moved]
    assert notes_on(talk("<image> A <image>", "a", "Is <image> it?", "b")) == []


def test_other_images_stand_in_the_same_places_or_in_front() -> None:
    sample = parse_record(talk("Is <image> it?", "a", "<image>", "b"))
    assert shown(sample.showing(("x.png", "y.png"))) == shown(sample)
    assert shown(sample.showing(("x.png",))) == ["I/Is  it?/", "/a/", "//", "/b/"]


def test_the_places_are_kept_with_prepared_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    records = [talk("Is <image> or <image> it?", "a"), talk("<image><image>A?", "a")]
    (tmp_path / "data.json").write_text(json.dumps(records))
    samples = prepare_samples(tmp_path / "data.json", rejects=Rejects(None), check_images=False)
    assert [shown(sample) for sample in samples] == [shown(parse_record(record)) for record in records]
    assert samples.columns.interleaved.tolist() == [1, 0]
