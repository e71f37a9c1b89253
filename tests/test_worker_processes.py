"""Workers end with their parent, however that ended."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

PARENT = """
import multiprocessing, sys, time
# With this program name, the package does not import the model's libraries.
sys.argv = ["aligngpt"]
from aligngpt.worker_processes import end_with_parent

def wait():
    end_with_parent()
    time.sleep(60)

if __name__ == "__main__":
    worker = multiprocessing.get_context("fork").Process(target=wait)
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(60)
"""


def test_a_worker_ends_with_a_killed_parent(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    worker.wait(timeout=30)
