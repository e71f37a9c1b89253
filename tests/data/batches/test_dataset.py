"""Tests of turning samples into rows of training examples."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from aligngpt.data.batches import dataset as datasets
from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import ConversationDataset, row_lengths
from aligngpt.data.batches.examples import Example, ExampleError, Row, tokenize
from aligngpt.data.batches.rows import Rows, rows_of
from aligngpt.data.records.sample import Sample, Turn
from aligngpt.data.rejects import Rejected
from aligngpt.errors import AlignGPTError
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.templates import PLAIN


def sample(*texts: str, images: tuple[str, ...] = ("a.png",), level: int | None = None, record: int = 0) -> Sample:
    turns = tuple(Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(texts))
    return Sample(str(record), turns, images, level=level, record=record)


def counted(processor: Any, input_ids: list[int], labels: list[int]) -> list[str]:
    """The counted text, one string per run of counted tokens."""
    pieces: list[list[int]] = []
    for place, label in enumerate(labels):
        if label == IGNORE_INDEX:
            continue
        assert label == input_ids[place]
        if place == 0 or labels[place - 1] == IGNORE_INDEX:
            pieces.append([])
        pieces[-1].append(label)
    return [processor.tokenizer.decode(piece) for piece in pieces]


@pytest.fixture
def dataset_of(assembled: Callable, tmp_path: Path) -> Callable[..., ConversationDataset]:
    """A data set of samples with three valid images, a.png to c.png, and one invalid file, bad.png."""
    for place, name in enumerate("abc"):
        Image.new("RGB", (40, 30), (80 * place, 10, 200)).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_text("no picture")
    _, processor = assembled("qwen2")

    def make(samples: list[Sample], **options: Any) -> ConversationDataset:
        return ConversationDataset(samples, processor, tmp_path, **options)

    return make


@pytest.mark.parametrize(
    ("language", "template", "expected"),
    [
        ("qwen2", None, ["yes<|im_end|>", "two<|im_end|>"]),
        ("llama_tied", None, ["yes <|im_end|>", "two <|im_end|>"]),
        ("gemma", None, ["yes <end_of_turn>", "two <end_of_turn>"]),
        ("llama", "vicuna", ["yes </s>", "two </s>"]),
    ],
)
def test_only_what_the_assistant_says_counts(
    assembled: Callable, language: str, template: str | None, expected: list[str]
) -> None:
    _, processor = assembled(language, chat_template=template)
    talk = sample("is it red ?", "yes", "how many are there ?", "two")
    input_ids, labels = tokenize(talk.messages(), processor)
    assert counted(processor, input_ids, labels) == expected
    assert input_ids.count(processor.tokenizer.convert_tokens_to_ids("<align>")) == 1
    assert input_ids.count(processor.image_token_id) == processor.image_seq_length


def test_training_reads_what_generation_reads(assembled: Callable, pictures: list) -> None:
    for language in ("qwen2", "llama_tied", "gemma"):
        _, processor = assembled(language)
        input_ids, labels = tokenize(sample("is it red ?", "yes").messages(), processor)
        question = [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "is it red ?"}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"][0]
        assert input_ids[: len(prompt)] == list(prompt)
        assert labels[: len(prompt)] == [IGNORE_INDEX] * len(prompt)
        assert labels[len(prompt)] != IGNORE_INDEX


def test_a_caption_counts_with_its_end(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    input_ids, labels = tokenize(sample("", "a red circle").messages(), processor, chat_template=PLAIN)
    assert counted(processor, input_ids, labels) == ["a red circle\n"]


def test_text_that_spells_a_token_never_becomes_one(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    talk = sample("is <image> or <align> red <|im_end|> ?", "<|im_end|> no")
    input_ids, _ = tokenize(talk.messages(), processor)
    honest, _ = tokenize(sample("is it red ?", "no").messages(), processor)
    for mark in ("<image>", "<align>", "<|im_end|>"):
        index = processor.tokenizer.convert_tokens_to_ids(mark)
        assert input_ids.count(index) == honest.count(index)


def test_a_long_conversation_loses_whole_turns(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    talk = sample("is it red ?", "yes", "how many are there ?", "two three four", "is it big ?", "no")
    whole, _ = tokenize(talk.messages(), processor)
    two_turns, labels = tokenize(
        sample("is it red ?", "yes", "how many are there ?", "two three four").messages(), processor
    )
    assert tokenize(talk.messages(), processor, max_length=len(whole) - 1) == (two_turns, labels)
    one_turn = tokenize(sample("is it red ?", "yes").messages(), processor)
    assert tokenize(talk.messages(), processor, max_length=len(two_turns) - 1) == one_turn


def test_of_one_answer_the_end_is_cut(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    talk = sample("is it red ?", "yes one two three four yes one two three four")
    whole, labels = tokenize(talk.messages(), processor)
    assert tokenize(talk.messages(), processor, max_length=len(whole) - 3) == (whole[:-3], labels[:-3])


def test_a_talk_that_is_cut_before_the_first_answer_that_counts_is_too_long(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    messages = sample("is it red ?", "yes", "is it big ?", "no").messages()
    messages[1]["loss"] = False
    whole, _ = tokenize(messages, processor)
    with pytest.raises(ExampleError, match=rf"within {len(whole) - 1} tokens; increase max_length") as raised:
        tokenize(messages, processor, max_length=len(whole) - 1)
    assert raised.value.reason == "too_long"


def test_a_question_that_leaves_no_room_is_refused_with_its_numbers(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    with pytest.raises(ExampleError, match=r"take \d+ tokens, .* within 20; increase max_length") as raised:
        tokenize(sample("is it red ?", "yes").messages(), processor, max_length=20)
    assert raised.value.reason == "too_long"


def test_a_template_that_rewrites_earlier_turns_is_refused(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    template = "{{ messages | length }}{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(ExampleError, match="rewrites earlier turns"):
        tokenize(sample("is it red ?", "yes", "big ?", "no").messages(), processor, chat_template=template)


def test_a_template_without_a_system_turn_makes_a_reject_of_a_sample_that_has_one(dataset_of: Callable) -> None:
    """Gemma's own template raises an error for a system turn."""
    refuses = (
        "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"
        "{%- for m in messages -%}{{ m['role'] + ' ' + (m['content'] | map(attribute='text') | join) }}{%- endfor -%}"
    )
    told = replace(sample("hello", "yes", images=()), system="Be brief.")
    dataset = dataset_of([told, sample("hello", "yes", images=(), record=1)], chat_template=refuses)
    with pytest.raises(ExampleError, match="rejects the conversation: System role not supported") as raised:
        tokenize(told.messages(), dataset.processor, chat_template=refuses)
    assert raised.value.reason == "template"
    assert dataset[0][0].input_ids == dataset[1][0].input_ids
    assert [one.reason for one in dataset[0][0].rejected] == ["template"]


def test_a_system_turn_is_read_and_does_not_count(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    told = replace(sample("is it red ?", "yes"), system="be brief")
    input_ids, labels = tokenize(told.messages(), processor)
    assert "<|im_start|>system\nbe brief<|im_end|>" in processor.tokenizer.decode(input_ids)
    assert counted(processor, input_ids, labels) == ["yes<|im_end|>"]


def test_samples_about_one_image_share_rows_of_about_equal_size() -> None:
    samples = [sample("q", "a", images=("a.png",)) for _ in range(7)]
    samples += [sample("q", "a", images=()), sample("q", "a", images=("b.png",)), sample("q", "a", images=())]
    rows = rows_of(samples, 3)
    assert sorted(map(len, rows)) == [1, 1, 1, 2, 2, 3]
    assert sorted(member for row in rows for member in row) == list(range(10))
    assert rows_of(samples, 1) == [(place,) for place in range(10)]


def test_pairs_of_different_levels_never_share_a_row() -> None:
    samples = [sample("", "a", level=1), sample("", "b", level=2), sample("", "c", level=1)]
    assert rows_of(samples, 8) == [(0, 2), (1,)]
    assert rows_of(samples, 8, by_level=False) == [(0, 1, 2)]


def test_samples_with_different_system_prompts_never_share_a_row() -> None:
    systems = [None, "be brief", None, "be brief", "be kind"]
    samples = [replace(sample("is it red ?", "yes"), system=system) for system in systems]
    assert rows_of(samples, 8) == [(0, 2), (1, 3), (4,)]


def test_questions_about_one_image_train_with_and_without_a_system_prompt(
    dataset_of: Callable, assembled: Callable
) -> None:
    model, processor = assembled("qwen2")
    systems = ["be brief", None, "be brief", None]
    samples = [replace(sample("is it red ?", "yes"), system=system) for system in systems]
    dataset = dataset_of(samples, questions_per_prefix=4, with_levels=False)
    batch = Collator(processor.tokenizer.pad_token_id)([dataset[place] for place in range(len(dataset))])
    assert len(batch["input_ids"]) == len(batch["pixel_values"]) == 2
    assert torch.isfinite(model(**batch).loss)


def test_an_example_has_the_pictures_and_the_level(dataset_of: Callable) -> None:
    dataset = dataset_of(
        [sample("is it red ?", "yes", images=("a.png", "b.png"), level=3), sample("hello", "yes", images=())]
    )
    (first,), (second,) = dataset[0], dataset[1]
    assert first.pixel_values.shape == (2, 3, 32, 32)
    assert first.level == 3
    assert second.pixel_values is None
    assert dataset.processor.image_token_id not in second.input_ids


def test_a_row_opens_its_picture_once(dataset_of: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import aligngpt.data.images.reference as module

    opened: list[Path] = []
    open_image = module.open_image
    monkeypatch.setattr(module, "open_image", lambda path: opened.append(path) or open_image(path))
    row = dataset_of([sample("is it red ?", "yes"), sample("is it big ?", "no")], questions_per_prefix=4)[0]
    assert len(row) == 2
    assert len(opened) == 1


def test_a_good_row_takes_the_place_of_a_bad_one(dataset_of: Callable) -> None:
    bad = [sample("is it ?", "no", images=("bad.png",), record=place) for place in range(2)]
    dataset = dataset_of([*bad, sample("is it red ?", "yes", record=2)], questions_per_prefix=2)
    assert [example.input_ids for example in dataset[0]] == [example.input_ids for example in dataset[1]]
    # Rejects are reported on every read: the data set does not know which process reads, or whether the read counts.
    for _ in range(2):
        assert [(one.record, one.reason) for one in dataset[0][0].rejected] == [
            (0, "not_an_image"),
            (1, "not_an_image"),
        ]
    assert dataset[1][0].rejected == ()
    assert dataset.row(0) == ((), dataset[0][0].rejected)


def test_a_row_keeps_its_good_samples(dataset_of: Callable) -> None:
    long = sample("is it red ? " * 30, "yes", record=0)
    dataset = dataset_of([long, sample("is it red ?", "yes", record=1)], questions_per_prefix=2, max_length=60)
    assert len(dataset[0]) == 1
    assert [one.reason for one in dataset[0][0].rejected] == ["too_long"]


def test_data_of_which_nothing_can_be_used_is_an_error(dataset_of: Callable) -> None:
    bad = [sample("is it ?", "no", images=("bad.png",), record=place) for place in range(3)]
    with pytest.raises(AlignGPTError, match=r"none of the 3 samples .* record 0 .*bad\.png"):
        dataset_of(bad)[0]


class OfNumbers(ConversationDataset):
    """A data set of as many rows, of which some cannot be read; an example's id is its row."""

    def __init__(self, rows: int, gone: range) -> None:
        self.rows = Rows(np.arange(rows), np.arange(rows))
        self.samples = cast(Any, range(rows))
        self.gone, self.read = gone, Counter[int]()
        self._rejected = {}

    def _row(self, members: Sequence[int]) -> Row:
        self.read[members[0]] += 1
        if members[0] in self.gone:
            self._rejected[members[0]] = Rejected(members[0], members[0], None, "missing", "gone")
            return ()
        return (Example([1], [1], None, None, str(members[0])),)


def test_rows_that_are_lost_together_are_not_all_replaced_by_the_same() -> None:
    dataset = OfNumbers(20_000, range(5000, 5400))
    used = Counter(int(dataset[row][0].id) for row in range(len(dataset)))
    assert used.total() == 20_000
    assert max(used.values()) <= 6
    # Most are near, so of the same source.
    assert sum(count - 1 for row, count in used.items() if 4200 <= row < 6200) > 0.9 * 400
    # A resumed epoch has the same rows.
    again = OfNumbers(20_000, range(5000, 5400))
    assert [again[row][0].id for row in range(5100, 5300)] == [dataset[row][0].id for row in range(5100, 5300)]
    assert max(len(dataset[row][0].rejected) for row in range(5000, 5400)) < 20


def test_a_lost_store_is_told_before_all_rows_are_tried() -> None:
    dataset = OfNumbers(1_000_000, range(1_000_000))
    with pytest.raises(
        AlignGPTError, match=r"none of 65 rows can be used .* gone\. Check that the images can still be"
    ):
        dataset[7]
    assert dataset.read.total() == 65


def test_a_single_good_row_of_a_small_data_set_is_found() -> None:
    dataset = OfNumbers(3000, range(2999))
    assert dataset[5][0].id == "2999"
    assert len(dataset[5][0].rejected) == 2999


def test_levels_are_left_out_where_they_would_take_the_place_of_the_gate(dataset_of: Callable) -> None:
    assert dataset_of([sample("is it ?", "no", level=3)], with_levels=False)[0][0].level is None


def test_lengths_tell_long_rows_from_short_ones(dataset_of: Callable) -> None:
    dataset = dataset_of([sample("a", "b", images=()), sample("a" * 500, "b", images=()), sample("a", "b")])
    short, long, pictured = row_lengths(dataset)
    assert short < pictured
    assert short < long


def test_pictures_are_padded_or_cut_as_the_stage_says(dataset_of: Callable) -> None:
    samples = [sample("look", "yes")]
    as_the_model, padded, cut = (dataset_of(samples, pad_images=how)[0][0].pixel_values for how in (None, True, False))
    assert torch.equal(as_the_model, padded)
    # 40 × 30 pixels of one colour: padded above and below, unless the sides are cropped.
    assert not torch.equal(padded[..., 0, 16], padded[..., 16, 16])
    torch.testing.assert_close(cut[..., 0, 16], cut[..., 16, 16])


@pytest.mark.parametrize("of_model", [True, False, "stretch"])
def test_a_stage_frames_pictures_whatever_the_model_does(
    assembled: Callable, tmp_path: Path, of_model: bool | str
) -> None:
    margins = np.zeros((30, 60, 3), dtype=np.uint8)
    margins[:, :12] = 255
    Image.fromarray(margins).save(tmp_path / "a.png")
    _, processor = assembled("qwen2", pad_images=of_model)

    def pixels(how: Any) -> torch.Tensor:
        dataset = ConversationDataset([sample("look", "yes")], processor, tmp_path, pad_images=how)
        found = dataset[0][0].pixel_values
        assert found is not None
        return found[0, 0]

    padded, cut, stretched = map(pixels, (True, False, "stretch"))
    assert not torch.equal(padded[0], padded[16]) and torch.equal(stretched[0], stretched[16])
    # A fifth of the width is white: all of it is seen unless the sides are cut off.
    assert stretched[16, 4] > stretched[16, 20] and torch.allclose(cut, stretched[16, 20], atol=1e-4)
    assert torch.equal(pixels(None), {True: padded, False: cut, "stretch": stretched}[of_model])


def test_the_settings_of_pictures_tell_what_decodes_them(
    dataset_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_of([sample("look", "yes")])
    settings = dataset.picture_settings
    assert dataset_of([]).picture_settings == settings
    with monkeypatch.context() as patched:
        patched.setattr(PIL, "__version__", "0")
        assert dataset.picture_settings != settings
    (tmp_path / "conversion.py").write_text("")
    with monkeypatch.context() as patched:
        patched.setattr(datasets, "CONVERSION", tmp_path / "conversion.py")
        assert dataset.picture_settings != settings
    code = Path(shutil.copytree(datasets.DECODING, tmp_path / "code"))
    (code / "opening.py").write_text("")
    monkeypatch.setattr(datasets, "DECODING", code)
    assert dataset.picture_settings != settings


def test_the_key_and_the_pixels_are_of_one_content(dataset_of: Callable, tmp_path: Path) -> None:
    dataset = dataset_of([sample("look", "yes")])
    expected = dataset[0][0].pixel_values

    class Changing:
        """A cache without features; the image changes while its key is computed."""

        def key(self, picture: bytes) -> str:
            (tmp_path / "b.png").rename(tmp_path / "a.png")
            return "a"

        def read(self, key: str) -> None:
            return None

    dataset.known_features = Changing()
    assert torch.equal(dataset[0][0].pixel_values, expected)


def test_an_image_whose_key_cannot_be_read_is_rejected(dataset_of: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    class Known:
        def key(self, picture: bytes | Path) -> str:
            return "a" if isinstance(picture, bytes) else str(len(picture.open("rb").read()))

        def read(self, key: str) -> None:
            return None

    dataset = dataset_of([sample("look", "yes"), sample("look", "yes", images=("b.png",), record=1)])
    dataset.known_features = Known()
    opened, left = Path.open, ["a.png"]

    def open_once_failing(self: Path, *args: Any, **options: Any) -> Any:
        if left and self.name == left[0]:
            left.pop()
            raise OSError(116, "Stale file handle")
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", open_once_failing)
    (rejected,) = dataset[0][0].rejected
    assert rejected.reason == "unreadable" and "Stale file handle" in rejected.detail
