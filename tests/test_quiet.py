"""Settings of the underlying libraries."""

import os
import subprocess
import sys

import pytest

ASK = (
    "import sys; from aligngpt.quiet import quiet_libraries; quiet_libraries(); import os;"
    "print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
)


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_spinning_unless_told_otherwise(given: str | None, expected: str) -> None:
    """Beside other busy processes, spinning threads make training several times slower."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    # With this program name, as for the command, the package imports torch only when a verb needs it.
    program = f"import sys; sys.argv[0] = 'aligngpt'; {ASK}"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", expected]
