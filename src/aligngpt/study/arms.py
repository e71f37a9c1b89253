"""The arms of a study: what is done with the scores of the caption data, and what with the level embeddings.

Every arm has the same captioned pictures, trains from the same initialisation and reads as many pairs, in the same
random order unless the order or the choice of pairs is what makes the arm; the only difference between two arms is what
this file says.
"""

from dataclasses import dataclass
from typing import Literal

from aligngpt.alignment.modes import AlignmentMode

LevelSource = Literal["none", "scores", "random", "quality", "constant"]
"""Where the levels of the pairs come from: nowhere; their scores; the scores' levels dealt out at random; the known
quality of the captions; or one level for all pairs."""


@dataclass(frozen=True)
class Arm:
    """One way of training on scored captions.

    Attributes:
        name: as in the plan.
        what: one sentence for the reader of the results.
        levels: where the levels in pre-training come from.
        alignment: how the alignment embedding is formed in instruction tuning; `none` for a model without one.
        better_half: pre-train on the upper half of the pairs by score, for twice as many epochs.
        weighted: pre-train on each pair in proportion to the rank of its score.
        appended: the level is written after the caption, as text to be predicted.
        ordered: pairs come in the order of their scores, the worst first, instead of at random.
        plain_end: the last tenth of pre-training is without levels, and so is instruction tuning.
        fresh_table: instruction tuning begins with a level table drawn anew.
    """

    name: str
    what: str
    levels: LevelSource = "none"
    alignment: AlignmentMode = "none"
    better_half: bool = False
    weighted: bool = False
    appended: bool = False
    ordered: bool = False
    plain_end: bool = False
    fresh_table: bool = False

    @property
    def pretraining(self) -> str:
        """Names the pre-training of this arm; arms of the same name share it."""
        if self.levels != "none":
            return f"levels-{self.levels}" + ("-plain-end" if self.plain_end else "")
        names = ("better_half", "weighted", "appended", "ordered")
        return "-".join(name.replace("_", "-") for name in names if getattr(self, name)) or "plain"

    @property
    def needs_quality(self) -> bool:
        """Whether the true quality of each caption must be known."""
        return self.levels == "quality"

    @property
    def has_levels(self) -> bool:
        """Whether the number of levels makes a difference to this arm."""
        return self.levels in ("scores", "random", "quality") or self.appended


ARMS = {
    arm.name: arm
    for arm in (
        Arm("none", "no levels: a plain LLaVA on all pairs"),
        Arm("constant", "one learnt token for all pairs: no information", "constant", "global"),
        Arm("global", "levels in pre-training, level N afterwards", "scores", "global"),
        Arm("local", "levels in pre-training, the gate's mix of levels below N afterwards", "scores", "local"),
        Arm("average", "levels in pre-training, level N plus the mean of the others afterwards", "scores", "average"),
        Arm("mean", "levels in pre-training, the mean of all levels afterwards (not in the paper)", "scores", "mean"),
        Arm(
            "adaptive",
            "the method: levels in pre-training, level N plus the gate's mix afterwards",
            "scores",
            "adaptive",
        ),
        Arm("placebo", "as adaptive, with the same levels dealt out to the pairs at random", "random", "adaptive"),
        Arm("oracle", "as adaptive, with levels from the true quality of each caption", "quality", "adaptive"),
        Arm("filter", "no levels: the better half of the pairs by score, in twice as many epochs", better_half=True),
        Arm("weighted", "no levels: each pair read in proportion to the rank of its score", weighted=True),
        Arm("appended", "no level embedding: the level is text after the caption, to be predicted", appended=True),
        Arm("ordered", "no levels: pairs in the order of their scores, the worst first", ordered=True),
        Arm(
            "plain-end",
            "levels in the first nine tenths of pre-training, none in the last and afterwards",
            "scores",
            plain_end=True,
        ),
        Arm(
            "fresh-table",
            "as adaptive, with a level table drawn anew before instruction tuning",
            "scores",
            "adaptive",
            fresh_table=True,
        ),
    )
}
