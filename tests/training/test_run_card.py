"""The model card of a run: valid front matter, instructions that work, and results inserted in their section."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.errors import AlignGPTError
from aligngpt.model.card import write_card
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.reports.sections import AccuracyRow
from aligngpt.training.recipe import Recipe, make_recipe
from aligngpt.training.run import train
from aligngpt.training.run_card import DATA_FILE, DataFacts, add_results, run_card, with_results, write_run_card
from aligngpt.training.stage import StageResult

RESULTS = [
    StageResult("pretrain", "f", steps=2180, samples=558_128, seconds=5400.4, peak_memory=2**31, loss=2.25, rejects=7),
    StageResult(
        "instruct", "f", steps=5197, samples=665_298, seconds=9000, peak_memory=3 * 2**30, loss=0.875, rejects=0
    ),
]
FACTS = DataFacts({"captions.json": "ab" * 32}, 12, {1: 2, 3: 9}, without_level=1, with_images=10)


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def recipe_of(output: Path, **model: str) -> Recipe:
    stage = {"data": "d.json", "batch_size": 4, "learning_rate": 0.01}
    lora = {"rank": 6, "alpha": 12, "merge": False}
    return make_recipe(
        {
            "model": {"vision_tower": "owner/tower", "language_model": "owner/words", "num_levels": 4} | model,
            "pretrain": stage | {"train": ["projector"]},
            "instruct": stage | {"train": ["language_model"], "lora": lora},
            "output": str(output / "mine"),
        }
    )


def test_a_card_can_be_followed_from_the_snippet_to_the_recipe(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    recipe = tiny_recipe(pretrain=None, instruct__max_steps=1)
    results = train(recipe)
    folder = tmp_path / "run" / "model"
    write_run_card(folder, recipe, results)
    card = (folder / "README.md").read_text(encoding="utf-8")
    named = re.search(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert named is not None and make_recipe(yaml.safe_load(named[1])) == recipe
    assert "| 2: instruction tuning | 1 | 4 |" in card and "pre-training |" not in card
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet is not None
    Image.new("RGB", (40, 30), "red").save(folder / "photo.jpg")
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(snippet[1].replace("max_new_tokens=128", "max_new_tokens=4, min_new_tokens=4"), {})
    assert capsys.readouterr().out.strip()


def test_an_unknown_peak_is_a_dash(tmp_path: Path) -> None:
    results = [replace(one, peak_memory=None) for one in RESULTS]
    assert "| 1: pre-training | 2,180 | 558,128 | 5,400 | 2.250 | 7 | – |" in run_card(recipe_of(tmp_path), results, {})


def test_front_matter_and_tables_say_what_is_known(tmp_path: Path) -> None:
    card = run_card(recipe_of(tmp_path), RESULTS, {"pretrain": FACTS})
    facts = front_matter(card)
    assert (facts["library_name"], facts["pipeline_tag"]) == ("transformers", "image-text-to-text")
    assert facts["base_model"] == ["owner/words", "owner/tower"]
    assert "license" not in facts
    for said in (
        "# mine\n",
        "| 1: pre-training | 2,180 | 558,128 | 5,400 | 2.250 | 7 | 2.0 GiB |",
        "| 2: instruction tuning | 5,197 | 665,298 | 9,000 | 0.875 | 0 | 3.0 GiB |",
        f"- file: `captions.json`, SHA-256 `{'ab' * 32}`",
        "- samples: 12; 10 with images, 2 text only",
        "- samples per level: 1: 2, 2: 0, 3: 9, 4: 0; without a level: 1",
        "### Stage 2: instruction tuning\n\n- not recorded",
        "(rank 6, alpha 12, dropout 0)",
        f"the base model `{tmp_path / 'mine' / 'base'}`",
        "- not stated by `owner/words`: check before you publish",
        "Not evaluated yet.",
    ):
        assert said in card


def test_licences_are_those_that_the_folders_state(tmp_path: Path) -> None:
    words, tower = tmp_path / "words", tmp_path / "tower"
    for folder in (words, tower):
        folder.mkdir()
    (words / "README.md").write_text("---\nlicense: apache-2.0\n---\n# license: mit\n")
    (words / "config.json").write_text('{"license": "mit"}')
    (tower / "README.md").write_text("---\nlicense: [torn\n---\n")
    recipe = recipe_of(tmp_path, language_model=str(words), vision_tower=str(tower))
    card = run_card(recipe, RESULTS, {})
    assert "- `words`: apache-2.0" in card and "- not stated by `tower`" in card
    assert not {"license", "base_model"} & front_matter(card).keys()
    (tower / "manifest.json").write_text('{"made_from": {"licence": "MIT; parts Apache-2.0"}}')
    card = run_card(recipe, RESULTS, {})
    assert "- `tower`: MIT; parts Apache-2.0" in card and "license" not in front_matter(card)


def test_facts_of_the_data_are_counted_and_kept(data: Path, tmp_path: Path) -> None:
    with Rejects(None) as rejects:
        captions, questions = (
            DataFacts.of([path], load_samples(path, rejects=rejects))
            for path in (data / "captions.json", data / "questions.json")
        )
    assert captions.levels == {1: 2, 2: 2, 3: 2, 4: 2, 5: 1, 6: 1, 7: 1, 8: 1}
    assert (captions.samples, captions.without_level, captions.with_images) == (12, 0, 12)
    assert (questions.samples, questions.without_level, questions.with_images) == (25, 25, 24)
    assert captions.files.keys() == {"captions.json"} and questions.files.keys() == {"questions.json"}
    captions.save(tmp_path)
    assert DataFacts.load(tmp_path) == captions
    (tmp_path / DATA_FILE).write_text(json.dumps({"file": "x"}))
    with pytest.raises(AlignGPTError, match=r"data.json is damaged .*; remove it"):
        DataFacts.load(tmp_path)


def test_results_take_the_place_of_older_ones_and_a_persons_card_is_left_alone(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    assert not add_results(tmp_path, [])
    write_run_card(tmp_path, recipe, RESULTS)
    path = tmp_path / "README.md"
    first = path.read_text(encoding="utf-8")
    for right in (5, 6):
        rows = [AccuracyRow.from_counts("a|b <i>\n*x*", right, 8, note="images shuffled")]
        assert add_results(tmp_path, rows)
    found = path.read_text(encoding="utf-8")
    assert r"| a\|b \<i\> \*x\* (images shuffled) | 75.0% | 40.9%–92.9% | 6 of 8 |" in found
    assert "5 of 8" not in found and "Not evaluated yet." not in found
    assert found == with_results(first, rows)
    write_run_card(tmp_path, recipe, RESULTS)
    assert path.read_text(encoding="utf-8") == found, "an existing card is not overwritten"
    assert add_results(tmp_path, []) and path.read_text(encoding="utf-8") == first
    path.write_text("# My own words\n", encoding="utf-8")
    assert not add_results(tmp_path, rows) and path.read_text(encoding="utf-8") == "# My own words\n"


def test_other_cards_are_of_the_same_making(tmp_path: Path) -> None:
    write_card(tmp_path, "merged", AlignGPTConfig(num_alignment_levels=5), "merged from two.")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert front_matter(card)["library_name"] == "transformers"
    assert "with 5 alignment levels, merged from two. It is subject to the licences" in card
    assert "AutoProcessor.from_pretrained" in card


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name / "train.json" for name in ("a", "b", "c")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_text(json.dumps([{"question": "how?", "answer": str(number)}]))
    with Rejects(None) as rejects:
        samples = load_samples(paths[0], rejects=rejects)
    facts = DataFacts.of([paths[0], *paths], samples)
    assert list(facts.files) == ["train.json", "train.json (2)", "train.json (3)"]
    assert len(set(facts.files.values())) == 3
    card = run_card(recipe_of(tmp_path), RESULTS, {"pretrain": facts})
    assert all(f"- file: `{name}`, SHA-256 `{digest}`" in card for name, digest in facts.files.items())
