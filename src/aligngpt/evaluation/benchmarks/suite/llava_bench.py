"""LLaVA-Bench (in the wild): free answers, compared with reference answers by a judge model."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from aligngpt.evaluation.benchmarks.folder import DataError, DataFolder, by_unique, read_json_lines
from aligngpt.evaluation.benchmarks.frame import Benchmark, Item, Score, scored_by
from aligngpt.evaluation.scoring_rules.judged import LEAST_JUDGED, ReviewScores, read_review, relative_score

FOLDER = "llava-bench-in-the-wild"
REVIEWS = "reviews.jsonl"


class LlavaBench(Benchmark):
    """LLaVA-Bench in the wild (Liu et al., "Visual instruction tuning", NeurIPS 2023).

    Scored from `reviews.jsonl` in the benchmark's folder of results: the judge's replies, with `question_id` and
    `content` as LLaVA's `eval_gpt_review_bench.py` writes them, the reference answer's score first.
    """

    name = "llava-bench"
    title = "LLaVA-Bench (in the wild)"
    split = "60 questions about 24 pictures"
    source = f"LLaVA-Bench's page (liuhaotian/llava-bench-in-the-wild on the hub), as the folder `{FOLDER}`"
    new_tokens = 1024
    published_questions = 60
    picture_mode = "crop"
    scorers = scored_by("a judge's replies: 100 · Σ scores of the model / Σ scores of the reference answers")

    def read(self, data: DataFolder) -> list[Item]:
        return [
            Item(row["question_id"], row["text"], data.picture(row["image"], f"{FOLDER}/images"), None, row["category"])
            for row in by_unique(data.rows(f"{FOLDER}/questions.jsonl"), "question_id").values()
        ]

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        path = folder / REVIEWS
        if not path.is_file():
            return Score(
                None, notes=(f"needs a judge: put its replies into {path} (question_id, content), then score again",)
            )
        category = {str(item.question_id): item.category for item in items}
        by_category: dict[str, list[ReviewScores]] = defaultdict(list)
        judges: set[str] = set()
        rows = by_unique(read_json_lines(path, path.read_text(encoding="utf-8")), "question_id")
        if unknown := rows.keys() - category.keys():
            raise DataError(f"{path} reviews question {min(unknown)}, which LLaVA-Bench does not have")
        for name, row in rows.items():
            judges.add(str(row.get("judge", "not named in the file")))
            if (scores := read_review(row["content"])) is not None:
                by_category[category[name]].append(scores)
        read = [scores for group in by_category.values() for scores in group]
        notes = (
            f"judge: {', '.join(sorted(judges))}; figures of another judge cannot be compared (published: gpt-4-0314)",
            f"{len(read):,} of {len(items):,} answers have a readable review",
        )
        if len(read) < LEAST_JUDGED * len(items):
            return Score(None, notes=(*notes, f"no figure below {LEAST_JUDGED:.0%} readable reviews"))
        parts = {name: relative_score(group).ratio for name, group in sorted(by_category.items())}
        overall = relative_score(read)
        parts |= {"reference answers": overall.reference, "model's answers": overall.model}
        return Score(overall.ratio, parts=parts, notes=notes)


BENCHMARKS = (LlavaBench(),)
