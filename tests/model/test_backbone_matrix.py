"""Every family of vision towers and language models works or is refused as docs/backbones.md says."""

import re
from pathlib import Path

import pytest
from backbone_matrix import PAGE, Outcome, page, try_language, try_tower
from language_families import LANGUAGES
from tower_families import TOWERS

HEADINGS = ("Vision towers", "Language models")
QUICK_TOWERS = ["DeiT", "MetaCLIP 2 in MetaCLIP 2", "InternViT", "Qwen2.5-VL", "SigLIP 2 NaFlex"]
QUICK_LANGUAGES = ["gemma3_text in Gemma 3", "llama4_text in Llama 4", "qwen2 in LLaVA-OneVision", "nemotron_h"]


def written() -> str:
    return PAGE.read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, str]:
    """The rows of a table of the page, by family."""
    table = written().partition(f"## {heading}")[2].partition("\n## ")[0].partition("\n### ")[0]
    lines = [line for line in table.splitlines() if re.match(r"\| .* \| (yes|no) \| ", line)]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def test_the_page_lists_the_families_that_are_tried() -> None:
    assert list(rows("Vision towers")) == list(TOWERS)
    assert list(rows("Language models")) == list(LANGUAGES)


def test_the_page_is_what_the_program_writes() -> None:
    """Apart from the outcomes, which only trying every family shows."""

    def outcome(line: str) -> Outcome:
        works, _, said = line.removeprefix("| ").partition(" | ")[2].partition(" | ")
        return Outcome(works == "yes", said.removesuffix("|").removesuffix(" "))

    towers, languages = (
        {name: outcome(line) for name, line in rows(heading).items()}
        for heading in ("Vision towers", "Language models")
    )
    assert written() == page(towers, languages), "run: python tests/backbone_matrix.py"


def test_a_refusal_is_one_sentence_that_says_why() -> None:
    refused = [line for heading in HEADINGS for line in rows(heading).values()]
    refused = [line for line in refused if "| no |" in line]
    assert len(refused) > 10
    for line in refused:
        assert re.search(
            r"not support|must match|does not state a patch size|states no image size|alone; give a text-only", line
        ), line


@pytest.mark.medium
@pytest.mark.parametrize("name", QUICK_TOWERS)
def test_a_vision_tower_is_as_the_page_says(name: str, tmp_path: Path) -> None:
    assert try_tower(name, tmp_path).row(name) == rows("Vision towers")[name]


@pytest.mark.medium
@pytest.mark.parametrize("name", QUICK_LANGUAGES)
def test_a_language_model_is_as_the_page_says(name: str, tmp_path: Path) -> None:
    assert try_language(name, tmp_path).row(name) == rows("Language models")[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TOWERS if name not in QUICK_TOWERS])
def test_every_vision_tower_is_as_the_page_says(name: str, tmp_path: Path) -> None:
    test_a_vision_tower_is_as_the_page_says(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LANGUAGES if name not in QUICK_LANGUAGES])
def test_every_language_model_is_as_the_page_says(name: str, tmp_path: Path) -> None:
    test_a_language_model_is_as_the_page_says(name, tmp_path)
