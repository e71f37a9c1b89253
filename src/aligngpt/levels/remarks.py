"""Sentences about scores that decide whether levels made from them mean anything."""

from aligngpt.levels.combined_scores import CombinedScores
from aligngpt.levels.score_tables import DEFAULT_COLUMN, ScoreTable
from aligngpt.levels.scored_pairs import scored_base
from aligngpt.scoring.separation import separation_text, separation_warning

NARROW = 0.005
"""Standard deviation of cosine similarities below which the levels hardly differ: CLIP's are some 0.03 to 0.06."""


def remarks_on(table: ScoreTable, deviation: float | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Notes and warnings about scores; none about tables of other programs, whose scale and origin are unknown.

    Args:
        table: the scores.
        deviation: their standard deviation; None if it is unknown.
    """
    if (scored := scored_base(table)) is None:
        return (), ()
    manifest = scored.manifest
    columns = table.weights.keys() if isinstance(table, CombinedScores) else {scored.column}
    notes, warnings = [], []
    if manifest.limit is not None:
        notes.append(
            f"only the first {manifest.limit} records of the source were scored (--limit), so only they have levels"
        )
    if manifest.auc is not None and DEFAULT_COLUMN in columns:
        of = "" if scored is table else f"column {DEFAULT_COLUMN}: "
        notes.append(of + separation_text(manifest.auc))
        if warning := separation_warning(manifest.auc, scored.rows or 0):
            warnings.append(of + warning)
    # Combined scores are ranks.
    if scored is table and deviation is not None and deviation < NARROW and scored.column.startswith(DEFAULT_COLUMN):
        warnings.append(
            f"the scores hardly differ (standard deviation {deviation:.2g}), so neighbouring levels mean almost the "
            "same; check that the model fits these images and captions"
        )
    return tuple(notes), tuple(warnings)
