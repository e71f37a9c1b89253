"""RePOPE: POPE's questions with labels that were checked by hand; questions without a clear answer do not count."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aligngpt.evaluation.benchmarks.folder import DataError, DataFolder
from aligngpt.evaluation.benchmarks.frame import Item, Score
from aligngpt.evaluation.benchmarks.suite.pope import Label, Pope


class RePope(Pope):
    """RePOPE (Neuhaus and Hein, 2025), on LLaVA's questions, so that POPE's answers can be scored by its labels."""

    name = "repope"
    title = "RePOPE"
    split = "those of LLaVA's 8,910 POPE questions that RePOPE has a label for"
    source = f"{Pope.source}; the corrected labels are the files of RePOPE's `annotations`, put into `pope/annotations`"
    column = None

    def read(self, data: DataFolder) -> list[Item]:
        labels = self.labels(data, "pope/annotations/coco_repope_")
        return [
            replace(item, truth=labels.get(Label(item.category, Path(item.group).name, self.question_of(item.prompt))))
            for item in super().read(data)
        ]

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        pairs = [(item, text) for item, text in zip(items, texts, strict=True) if item.truth is not None]
        if not pairs:
            raise DataError("RePOPE has no label for any of the questions; its files are of other pictures")
        found = super().score([item for item, _ in pairs], [text for _, text in pairs], rules, folder)
        left_out = f"{len(items) - len(pairs):,} questions have no label in RePOPE and are left out"
        return replace(found, notes=(*found.notes, left_out))


BENCHMARKS = (RePope(),)
