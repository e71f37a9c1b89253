"""The tools of the slow chaos test still fit the package, which only they would notice otherwise."""

from importlib.util import find_spec

import pytest
from chaos_tools import IMPORTED


@pytest.mark.parametrize("name", IMPORTED)
def test_a_module_that_they_import_exists(name: str) -> None:
    assert find_spec(f"aligngpt.{name}") is not None
