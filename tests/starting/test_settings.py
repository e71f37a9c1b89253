"""The values of a new recipe that depend on the machine it is for."""

import pytest
import torch

from aligngpt.starting.settings import Settings, StageSettings


@pytest.mark.parametrize(
    ("there", "computes", "expected"), [(False, False, "bfloat16"), (True, True, "bfloat16"), (True, False, "auto")]
)
def test_a_gpu_that_only_emulates_bfloat16_is_not_told_to_use_it(
    monkeypatch: pytest.MonkeyPatch, there: bool, computes: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: computes)
    stage = StageSettings("data.json", None, None, 1, 8, 1, 64, False, False)
    assert Settings("tower", "language", 8, None, 2, stage, stage, "cuda", 0, "out").precision == expected
