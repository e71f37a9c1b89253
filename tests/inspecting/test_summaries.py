"""The gate is averaged by kind, levels are compared record by record."""

import pytest
import torch

from aligngpt.inspecting.measuring import Measured
from aligngpt.inspecting.summaries import dose_response, gate_by_kind, level_table


def measured(kind: str, picture: str, weights: tuple[float, ...] | None, own: float, *forced: float) -> Measured:
    return Measured(0, "id", kind, picture, weights, 2, own, forced)


def test_weights_are_averaged_by_kind() -> None:
    rows = gate_by_kind(
        [
            measured("b", "1", (0.2, 0.8), -1, -1),
            measured("a", "2", (0.5, 0.5), -1, -1),
            measured("a", "3", (0.9, 0.1), -1, -1),
            measured("a", "4", None, -1, -1),
        ]
    )
    assert [(row.kind, row.records, row.pictures) for row in rows] == [("a", 2, 2), ("b", 1, 1)]
    value, low, high = rows[0].weights[0]
    assert value == pytest.approx(0.7)
    assert (low, high) == (0.0, 1.0)
    assert rows[1].weights == [(0.2, None, None), (0.8, None, None)]


def test_forced_levels_are_compared_per_token_and_record() -> None:
    dose = dose_response(
        [
            measured("a", "1", None, -4, -6, -2),
            measured("a", "2", None, -10, -12, -9),
            measured("a", "2", None, -1, -3, -2),
        ]
    )
    assert (dose.records, dose.pictures) == (3, 2)
    assert dose.own[0] == pytest.approx(-2.5)
    assert [row.log_probability[0] for row in dose.levels] == pytest.approx([-3.5, -13 / 6])
    # Every record loses one nat per token at level 1, so that difference is certain although the means are not.
    assert dose.levels[0].minus_own == pytest.approx((-1, -1, -1))
    assert dose.own[1] is not None and dose.own[1] < -3
    assert dose.highest_minus_lowest[0] == pytest.approx(4 / 3)


def test_a_table_of_zeros_has_no_similarity() -> None:
    found = level_table(torch.tensor([[3.0, 4.0], [0.0, 0.0], [-3.0, -4.0]]))
    assert found.norms == [5, 0, 5]
    assert found.cosines[0] == pytest.approx([1, 0, -1])
