"""Settings of the underlying libraries."""

import os
import subprocess
import sys

import pytest

ASK = (
    "import os, sys; os.getloadavg = lambda: ({load}, 0.0, 0.0); sys.argv[0] = 'aligngpt';"
    "from aligngpt.quiet import quiet_libraries; quiet_libraries();"
    "print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY'))"
)


@pytest.mark.parametrize(
    ("load", "given", "expected"), [(99.0, None, "PASSIVE"), (99.0, "ACTIVE", "ACTIVE"), (0.1, None, "None")]
)
def test_threads_yield_on_a_busy_machine_unless_told_otherwise(load: float, given: str | None, expected: str) -> None:
    """Beside other busy processes, spinning threads make training several times slower."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    program = ASK.format(load=load)
    # As the command is started: the package then does not import torch until a verb needs it.
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", expected]
