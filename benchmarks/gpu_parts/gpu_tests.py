"""The project's tests that need a GPU: those marked `gpu`."""

import os
import subprocess
import sys
from pathlib import Path

from gpu_parts.run import Run

ROOT = Path(__file__).resolve().parents[2]
NONE_COLLECTED = 5
"""Exit code of pytest."""


def gpu_tests(run: Run) -> None:
    """Run them in a process of their own and record how many passed, failed and were skipped."""
    # Collecting all others would take longer than running these.
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text("utf-8"))
    if not files:
        run.remark("there are no tests with the marker gpu beside this program")
        return
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *map(str, files)]
    seconds = max(30.0, run.seconds - (run.wait() - run.began))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, cwd=ROOT, env=os.environ | {"COLUMNS": "120"}
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    run.add(files=[str(path.relative_to(ROOT)) for path in files], code=done.returncode, outcome=(lines or [""])[-1])
    if done.returncode == NONE_COLLECTED:
        run.remark("pytest collected none")
    elif done.returncode:
        for line in lines:
            if line.startswith(("FAILED", "ERROR")):
                run.remark(line[:300])
        said = done.stderr.strip() or "".join(lines[-1:])
        raise ChildProcessError(f"pytest ended with code {done.returncode}: {said[-300:]}")
