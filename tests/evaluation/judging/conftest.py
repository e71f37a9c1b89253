"""No model is loaded here, so its precision need not be set."""

import pytest


@pytest.fixture(autouse=True)
def float32() -> None:
    """Stands in for the fixture of the folder above."""
