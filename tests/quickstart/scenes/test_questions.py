import random
import re
from collections import Counter

import pytest

from aligngpt.quickstart.scenes.material import Material, Thing
from aligngpt.quickstart.scenes.questions import KINDS, Question, QuestionWriter, priors
from aligngpt.quickstart.scenes.scene import PLACES, Scene, SceneRules

Asked = list[tuple[Scene, Question]]


@pytest.fixture(scope="module")
def asked(material: Material) -> Asked:
    rules, writer = SceneRules(material.seen, ("seen",), frozenset()), QuestionWriter(material.seen)
    found = []
    for number in range(600):
        rng = random.Random(number)
        scene = rules.draw(rng)
        found += [(scene, question) for question in writer.write(scene, 2, rng)]
    return found


def answer(scene: Scene, question: Question) -> str | None:
    """The answer found from the text of a question and the cells, not with the code that wrote it; None for no case."""
    rows = [scene.cells[start : start + scene.side] for start in range(0, scene.side**2, scene.side)]
    at = {
        name: thing
        for name, thing in zip(PLACES[scene.side], (one for row in rows for one in row), strict=True)
        if thing
    }
    counts = Counter(thing.name for thing in at.values())
    text = question.text
    if text == "how many things are in the picture?":
        return str(len(at))
    if text == "how many different kinds of things are in the picture?":
        return str(len(counts))
    if text == "which thing appears most often in the picture?":
        (first, most), (_, next_) = counts.most_common(2)
        return first if most > next_ else None
    if found := re.fullmatch(r"how many times does the picture show (?:an? )?(.+)\?", text):
        return str(counts[found[1]])
    if found := re.fullmatch(r"does the picture show (?:an? )?(.+)\?", text):
        return "yes" if counts[found[1]] else "no"
    if found := re.fullmatch(r"what is directly (left of|right of|above|below) the (.+)\?", text):
        ((row, column),) = [
            (r, c) for r, cells in enumerate(rows) for c, one in enumerate(cells) if one and one.name == found[2]
        ]
        step = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[found[1]]
        thing: Thing | None = rows[row + step[0]][column + step[1]]
        return thing.name if thing and row + step[0] >= 0 and column + step[1] >= 0 else None
    if found := re.fullmatch(r"what is in the (.+)\?", text):
        return at[found[1]].name
    if found := re.fullmatch(r"where (?:is|are) the (.+)\?", text):
        (place,) = [place for place, thing in at.items() if thing.name == found[1]]
        return place
    if found := re.fullmatch(r"which category does the thing in the (.+) belong to\?", text):
        return at[found[1]].category
    if found := re.fullmatch(r"are the things in the (.+) and in the (.+) the same\?", text):
        return "yes" if at[found[1]] == at[found[2]] else "no"
    if found := re.fullmatch(r"which of these is in the (.+)\?\n((?:[A-D]\. .+\n){4})answer with the letter\.", text):
        (letter,) = [line[0] for line in found[2].splitlines() if line[3:] == at[found[1]].name]
        return letter
    return None


def test_every_answer_follows_from_the_scene(asked: Asked) -> None:
    assert {question.kind for _, question in asked} == set(KINDS)
    for scene, question in asked:
        assert question.answer == answer(scene, question), question


def test_questions_of_a_picture_are_of_different_kinds(material: Material) -> None:
    rules, writer = SceneRules(material.seen, ("seen",), frozenset()), QuestionWriter(material.seen)
    for number in range(50):
        rng = random.Random(number)
        kinds = [question.kind for question in writer.write(rules.draw(rng), 2, rng)]
        assert len(set(kinds)) == len(kinds) == 2


def test_yes_and_no_and_the_letters_are_equally_frequent(asked: Asked) -> None:
    for kind, choices in (("presence", 2), ("same", 2), ("options", 4)):
        counts = Counter(question.answer for _, question in asked if question.kind == kind)
        assert len(counts) == choices
        assert max(counts.values()) - min(counts.values()) <= 1


def test_absent_things_are_of_a_subgroup_in_the_picture(asked: Asked, material: Material) -> None:
    subgroups = {thing.name: thing.subgroup for thing in material.things}
    absent = [(scene, q) for scene, q in asked if q.kind == "presence" and q.answer == "no"]
    assert len(absent) > 20
    for scene, question in absent:
        (name,) = [name for name in subgroups if question.text.endswith(f" {name}?")]
        assert subgroups[name] in {thing.subgroup for thing in scene.kinds}


def test_whole_and_part_are_kept_apart(asked: Asked) -> None:
    whole = {question.kind for _, question in asked if question.scope == "whole"}
    assert whole == {"count", "count-kinds", "most", "times"}


def test_priors_are_the_share_of_the_most_frequent_answer() -> None:
    questions = [Question("count", "?", answer) for answer in ("1", "1", "2", "3")]
    assert priors(questions) == {"count": 0.5}
