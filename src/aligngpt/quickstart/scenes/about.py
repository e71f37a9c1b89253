"""The page that lies in a prepared folder: what the data are made of, what they lack, and what guessing would reach."""

from collections.abc import Mapping

from aligngpt.quickstart.scenes.material import UNSEEN_SUBGROUPS, Material
from aligngpt.quickstart.scenes.questions import KINDS
from aligngpt.quickstart.scenes.scene import Pair


def about_text(
    material: Material, seed: int, held_out: frozenset[Pair], priors: Mapping[str, Mapping[str, float]]
) -> str:
    """A page in Markdown.

    Args:
        material: what the scenes are made of.
        seed: their seed.
        held_out: the pairs of subgroups kept for `test_combination`.
        priors: by split and kind of question, the share of the most frequent answer.
    """
    hands = ", ".join(f"{hand.name} ({hand.licence})" for hand in material.hands)
    if material.unseen_hand is not None:
        unseen = f"The split `test_hand` is drawn by a hand that no training picture is by: {material.unseen_hand.name}"
        unseen += f" ({material.unseen_hand.licence})."
    else:
        unseen = "There is **no split `test_hand`**: this material has one hand only."
    absent = sorted(UNSEEN_SUBGROUPS & {thing.subgroup for thing in material.things})
    pairs = sorted(" with ".join(sorted(pair)) for pair in held_out)
    kinds = [kind for kind in KINDS if any(kind in table for table in priors.values())]
    rows = [
        f"| {split} | " + " | ".join(f"{table[kind]:.0%}" if kind in table else "–" for kind in kinds) + " |"
        for split, table in priors.items()
    ]
    return "\n".join(
        [
            "# Scenes",
            "",
            f"Pictures composed of {len(material.things)} things, drawn from seed {seed}.",
            "",
            f"- Hands of the training pictures: {hands}. {unseen}",
            f"- Subgroups only in `test_subgroup`: {', '.join(absent)}.",
            f"- Subgroups never together in training (`test_combination`): {', '.join(pairs)}.",
            "- Material: " + "; ".join(f"{name} ({licence})" for name, licence in material.packages.items()) + ".",
            "",
            "The pictures are adaptations of the emoji sets: give their licences with them if you pass them on.",
            "",
            "Share of questions that the most frequent answer of each kind answers, without a look at the picture:",
            "",
            "| split | " + " | ".join(kinds) + " |",
            "|---" * (len(kinds) + 1) + "|",
            *rows,
            "",
        ]
    )
