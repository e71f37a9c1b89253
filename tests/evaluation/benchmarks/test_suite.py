"""Each benchmark on a small folder of its layout: questions, truth joined by key, figures, uploads."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import benchmark_layouts as layouts
import pytest

from aligngpt.evaluation.benchmarks.folder import DataError, DataFolder
from aligngpt.evaluation.benchmarks.frame import Item, RulesError, Score
from aligngpt.evaluation.benchmarks.registry import UnknownBenchmark, all_benchmarks, find_benchmarks

SERVER_OR_JUDGE = {"vqav2", "vizwiz", "llava-bench", "mm-vet"}


def read(name: str, root: Path) -> list[Item]:
    benchmark = all_benchmarks()[name]
    return benchmark.read(DataFolder(root, benchmark.source))


def score(name: str, root: Path, texts: Sequence[str], rules: str = "published") -> Score:
    return all_benchmarks()[name].score(read(name, root), texts, rules, root / "out")


def uploads(name: str, root: Path, texts: Sequence[str]) -> dict[str, str]:
    benchmark = all_benchmarks()[name]
    data = DataFolder(root, benchmark.source)
    return benchmark.uploads(benchmark.read(data), texts, data)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_every_benchmark_has_a_layout_here() -> None:
    assert set(layouts.LAYOUTS) == set(all_benchmarks())


@pytest.mark.parametrize("name", sorted(layouts.LAYOUTS))
def test_right_answers_get_the_full_figure_and_wrong_ones_none(name: str, tmp_path: Path) -> None:
    right = layouts.LAYOUTS[name](tmp_path)
    full, none = (
        score(name, tmp_path, right),
        score(name, tmp_path, ["no" if name in ("pope", "repope") else "wrong wrong"] * len(right)),
    )
    if name in SERVER_OR_JUDGE:
        assert full.figure is None and full.notes
    else:
        # MME's small layout has two perception categories of 200 points each.
        assert full.figure == pytest.approx(400 if name == "mme" else 100)
        assert none.figure == 0


@pytest.mark.parametrize("name", sorted(layouts.LAYOUTS))
def test_a_missing_file_is_named_with_its_source(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist.*get it from"):
        read(name, tmp_path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": _cut,
    "empty": lambda path: path.write_text(""),
    "a web page": lambda path: path.write_text("<!DOCTYPE html><html><body>404</body></html>"),
    "Git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
}
FOR_UPLOADS = ("llava_vqav2_mscoco_test2015.jsonl",)


@pytest.mark.parametrize("name", sorted(layouts.LAYOUTS))
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    """Each file of questions and labels in turn; nothing is scored on what is left of it."""
    right = layouts.LAYOUTS[name](tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".tsv", ".txt")]
    for path in sorted(files):
        content = path.read_bytes()
        for damage, make in DAMAGES.items():
            make(path)
            with pytest.raises(DataError) as error:
                uploads(name, tmp_path, right) if path.name in FOR_UPLOADS else read(name, tmp_path)
            if damage in ("a web page", "Git LFS pointer"):
                assert f"{path} is a" in str(error.value) and damage in str(error.value)
            path.write_bytes(content)
    read(name, tmp_path)


@pytest.mark.parametrize("name", sorted(layouts.LAYOUTS))
def test_pictures_are_found(name: str, tmp_path: Path) -> None:
    layouts.LAYOUTS[name](tmp_path)
    assert [item.picture.open().size for item in read(name, tmp_path) if item.picture is not None]


def test_pope_refuses_labels_of_another_version(tmp_path: Path) -> None:
    layouts.pope(tmp_path)
    edit(tmp_path / "pope/coco/coco_pope_random.json", "a cat", "a zebra")
    with pytest.raises(DataError, match=r"no label in pope/coco/coco_pope_random\.json.*different versions"):
        read("pope", tmp_path)


def test_pope_labels_are_joined_by_question_not_by_order(tmp_path: Path) -> None:
    right = layouts.pope(tmp_path)
    path = tmp_path / "pope/coco/coco_pope_random.json"
    path.write_text("".join(reversed(path.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")
    assert score("pope", tmp_path, right).figure == 100


def test_pope_is_the_mean_of_the_three_f1_and_lmms_one_f1_over_all(tmp_path: Path) -> None:
    right = layouts.pope(tmp_path)
    # All yes in one category (F1 2/3), one yes missed in another (F1 2/3).
    texts = ["yes"] * 4 + ["no"] + right[5:]
    found = score("pope", tmp_path, texts)
    assert found.figure == pytest.approx(100 * (2 / 3 + 2 / 3 + 1) / 3)
    assert found.low is not None and found.low <= found.figure <= (found.high or 0)
    # 5 right of 7 said yes, 6 true.
    assert score("pope", tmp_path, texts, "lmms").figure == pytest.approx(100 * 2 * 5 / (7 + 6))


def test_pope_by_lmms_counts_answers_that_are_neither(tmp_path: Path) -> None:
    right = layouts.pope(tmp_path)
    found = score("pope", tmp_path, [f"{text}." for text in right], "lmms")
    assert found.figure == 0 and "12 answers are neither yes nor no" in found.notes[-1]


def test_mme_refuses_questions_without_a_label(tmp_path: Path) -> None:
    layouts.mme(tmp_path)
    edit(tmp_path / "MME/MME_Benchmark_release_version/OCR/1.txt", "Is it 1?", "Is it one?")
    with pytest.raises(DataError, match="no label for the question 'is it 1"):
        read("mme", tmp_path)


def test_mme_names_the_categories_that_were_not_asked(tmp_path: Path) -> None:
    right = layouts.mme(tmp_path)
    assert "existence, count" in score("mme", tmp_path, right).notes[0]


def test_mme_rules_differ_on_single_letters(tmp_path: Path) -> None:
    right = layouts.mme(tmp_path)
    texts = [text[0] for text in right]
    assert (score("mme", tmp_path, texts).figure, score("mme", tmp_path, texts, "lmms").figure) == (0, 400)


def test_textvqa_joins_repeated_ids_by_question(tmp_path: Path) -> None:
    right = layouts.textvqa(tmp_path)
    benchmark = all_benchmarks()["textvqa"]
    assert len({benchmark.key(item) for item in read("textvqa", tmp_path)}) == 3
    assert score("textvqa", tmp_path, [right[1], right[0], right[2]]).figure == pytest.approx(100 / 3)


def test_textvqa_notes_prompts_without_ocr_tokens(tmp_path: Path) -> None:
    layouts.textvqa(tmp_path)
    edit(tmp_path / "textvqa/llava_textvqa_val_v051_ocr.jsonl", "\\nReference OCR token: Nike,\\nx", "")
    data = DataFolder(tmp_path, "")
    all_benchmarks()["textvqa"].read(data)
    assert "1 prompts have no OCR tokens" in data.notes[0]


def test_science_qa_figure_is_of_questions_with_a_picture(tmp_path: Path) -> None:
    layouts.scienceqa(tmp_path)
    found = score("scienceqa", tmp_path, ["A", "C"])
    assert (found.figure, found.parts["all questions"]) == (100, 50)
    record = all_benchmarks()["scienceqa"].record
    assert [record(item)["prompt"].startswith("<image>\n") for item in read("scienceqa", tmp_path)] == [False, True]


def test_science_qa_without_a_drawn_picture_has_no_figure_but_a_note(tmp_path: Path) -> None:
    layouts.scienceqa(tmp_path)
    benchmark = all_benchmarks()["scienceqa"]
    text_only = [item for item in read("scienceqa", tmp_path) if item.picture is None]
    found = benchmark.score(text_only, ["A"] * len(text_only), "published", tmp_path)
    assert (found.figure, found.low, found.high) == (None, None, None)
    assert found.notes[0] == "none of the questions has a picture, so there is no figure"
    assert list(found.parts) == ["all questions"]


def test_science_qa_refuses_another_split(tmp_path: Path) -> None:
    layouts.scienceqa(tmp_path)
    edit(tmp_path / "scienceqa/pid_splits.json", '"7"', '"9"')
    with pytest.raises(DataError, match="differ in 2 questions"):
        read("scienceqa", tmp_path)


def test_gqa_refuses_other_questions(tmp_path: Path) -> None:
    layouts.gqa(tmp_path)
    edit(tmp_path / "gqa/data/testdev_balanced_questions.json", "Is it red?", "Is it blue?")
    with pytest.raises(DataError, match="question 21 is 'is it blue"):
        read("gqa", tmp_path)


def test_gqa_upload_has_official_fields(tmp_path: Path) -> None:
    right = layouts.gqa(tmp_path)
    content = json.loads(uploads("gqa", tmp_path, right)["testdev_balanced_predictions.json"])
    assert content == [{"questionId": "20", "prediction": "dog"}, {"questionId": "21", "prediction": "yes"}]


def test_seed_leaves_videos_out(tmp_path: Path) -> None:
    right = layouts.seed(tmp_path)
    assert [item.question_id for item in read("seed", tmp_path)] == [5, 6]
    found = score("seed", tmp_path, [f"{text}." for text in right])
    assert found.figure == 0 and "not a bare letter" in found.notes[0]
    assert score("seed", tmp_path, [f"{text}." for text in right], "lmms").figure == 100


def test_mmbench_shows_circular_and_vanilla(tmp_path: Path) -> None:
    layouts.mmbench(tmp_path)
    found = score("mmbench", tmp_path, ["A", "A", "A", "B"])
    assert found.figure == 50
    assert list(found.parts.values()) == [50, 100]


def test_mmbench_prompt_is_llavas_and_is_recorded_without_the_instruction(tmp_path: Path) -> None:
    layouts.mmbench(tmp_path)
    item = read("mmbench", tmp_path)[0]
    assert item.prompt == f"Which?\nA. cat\nB. dog{layouts.LETTER}"
    assert all_benchmarks()["mmbench"].record(item) == {
        "prompt": "Which?\nA. cat\nB. dog",
        "round_id": 0,
        "options": ["cat", "dog"],
        "option_char": ["A", "B"],
    }


def test_vqav2_upload_has_every_test_question_in_order(tmp_path: Path) -> None:
    right = layouts.vqav2(tmp_path)
    content = json.loads(uploads("vqav2", tmp_path, right)["vqav2_upload.json"])
    assert content == [
        {"question_id": 1, "answer": "2"},
        {"question_id": 2, "answer": ""},
        {"question_id": 3, "answer": "cat"},
    ]


def test_vqav2_upload_is_refused_without_the_asked_questions(tmp_path: Path) -> None:
    right = layouts.vqav2(tmp_path)
    path = tmp_path / "vqav2/llava_vqav2_mscoco_test2015.jsonl"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    with pytest.raises(DataError, match="lacks 1 of the asked questions, such as 3"):
        uploads("vqav2", tmp_path, right)


def test_vqav2_is_not_asked_without_the_file_that_the_upload_needs(tmp_path: Path) -> None:
    layouts.vqav2(tmp_path)
    (tmp_path / "vqav2/llava_vqav2_mscoco_test2015.jsonl").unlink()
    with pytest.raises(DataError, match=r"llava_vqav2_mscoco_test2015\.jsonl does not exist; get it from"):
        read("vqav2", tmp_path)


def test_vizwiz_upload_has_pictures_and_normalised_answers(tmp_path: Path) -> None:
    right = layouts.vizwiz(tmp_path)
    assert json.loads(uploads("vizwiz", tmp_path, right)["vizwiz_upload.json"]) == [
        {"image": "VizWiz_test_0.jpg", "answer": "dog"}
    ]


def test_vqa_val_rules_differ_where_all_answers_agree(tmp_path: Path) -> None:
    layouts.vizwiz_val(tmp_path)
    edit(tmp_path / "vizwiz/val.json", '"cat"', '"dog"')
    assert score("vizwiz-val", tmp_path, ["Dog"]).figure == 0
    assert score("vizwiz-val", tmp_path, ["Dog"], "lmms").figure == 100
    # lmms-eval removes the comma before it parts words, and so does LLaVA.
    edit(tmp_path / "vizwiz/val.json", '"dog"', '"black dog"')
    assert score("vizwiz-val", tmp_path, ["black,dog"], "lmms").figure == 0


def test_llava_bench_is_scored_from_reviews_and_leaves_unread_ones_out(tmp_path: Path) -> None:
    right = layouts.llava_bench(tmp_path)
    layouts.lines(
        tmp_path / "out/reviews.jsonl",
        [{"question_id": 0, "content": "8 6\nwhy", "judge": "j"}, {"question_id": 1, "content": "sorry"}],
    )
    found = score("llava-bench", tmp_path, right)
    assert found.figure is None and "1 of 2 answers have a readable review" in found.notes
    edit(tmp_path / "out/reviews.jsonl", "sorry", "10 3")
    found = score("llava-bench", tmp_path, right)
    # Both are about one picture, so draws of pictures say nothing about the uncertainty.
    assert (found.figure, found.low, found.interval) == (pytest.approx(50), None, "")
    assert not any("interval" in note for note in found.notes)


def test_mm_vet_is_scored_from_grades(tmp_path: Path) -> None:
    right = layouts.mm_vet(tmp_path)
    layouts.whole(tmp_path / "out/grades.json", {"v1_0": {"score": [0.5, 1.0, -1], "model": ["j"]}})
    found = score("mm-vet", tmp_path, right)
    assert (found.figure, found.parts) == (75, {"math": 75, "ocr": 75})
    layouts.whole(tmp_path / "out/grades.json", {"v1_0": {"score": [-1], "model": ["j"]}})
    assert score("mm-vet", tmp_path, right).figure is None


def test_repeated_ids_are_refused_where_they_must_be_unique(tmp_path: Path) -> None:
    layouts.gqa(tmp_path)
    edit(tmp_path / "gqa/llava_gqa_testdev_balanced.jsonl", '"21"', '"20"')
    with pytest.raises(DataError, match="repeats the question_id '20'"):
        read("gqa", tmp_path)


def test_a_missing_field_names_its_line(tmp_path: Path) -> None:
    layouts.pope(tmp_path)
    edit(tmp_path / "pope/llava_pope_test.jsonl", '"category"', '"kind"')
    with pytest.raises(DataError, match="line 1 has no field 'category'"):
        read("pope", tmp_path)


def test_unknown_names_and_rules_list_the_known_ones() -> None:
    with pytest.raises(UnknownBenchmark, match=r"no benchmark 'popes'; choose from gqa, .*pope"):
        find_benchmarks(["pope", "popes"])
    with pytest.raises(RulesError, match="gqa has no rule set 'lmms'; it can be scored by published"):
        all_benchmarks()["gqa"].check_rules("lmms")
