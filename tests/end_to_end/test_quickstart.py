"""The quickstart on its real models and data: it learns to see, and a kill costs little."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MINUTES = 8
COMMAND = [sys.executable, "-c", "from aligngpt.cli import main; main()", "quickstart", "--minutes", str(MINUTES)]


def figures(printed: str) -> dict[str, float]:
    """What the last line says, by name."""
    last = printed.strip().splitlines()[-1]
    assert last.startswith("quickstart ")
    return {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", last)}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_learns_to_see_though_it_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "runs" / f"quickstart-{MINUTES}-minutes"
    first = subprocess.Popen(COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((run / "instruct" / "checkpoints").glob("checkpoint-*/complete.json")):
        assert first.poll() is None
        time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()

    second = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "resuming at step" in second.stderr
    found = figures(second.stdout)
    assert found["accuracy"] >= 0.9
    assert found["prior"] <= 0.75
    assert found["shuffled"] <= 0.75
    assert found["auc"] >= 0.95
    assert found["peak_gb"] < 8
    assert {name: round(value, 3) for name, value in json.loads((run / "results.json").read_text()).items()}.keys() == (
        found.keys()
    )
    assert "<svg" in (run / "report.html").read_text()

    third = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert "is already finished" in third.stderr
    assert figures(third.stdout) == found

    picture = run / "data" / "images" / "test" / "0.png"
    ask = [*COMMAND[:3], "ask", str(run / "model"), str(picture), "what shape is in the image?"]
    assert subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() in (
        "circle",
        "rectangle",
        "triangle",
    )
