"""Settings of the underlying libraries while a command runs: no progress bars of their own, and threads that
yield if the machine is busy."""

import os
import sys
import warnings
from logging import ERROR, getLogger


def quiet_libraries() -> None:
    """Silence the libraries' progress bars and warnings; call once, before a command runs and torch is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Some libraries draw bars of their own, past the settings below.
    os.environ.setdefault("TQDM_DISABLE", "1")
    if is_busy():
        # Threads that spin while waiting for each other take the CPU from the thread they wait for: beside four busy
        # processes a step is then several times slower. On a quiet machine spinning is faster. Read when torch is
        # imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    else:
        # Read when they are imported. Importing them here would take seconds, which a mistyped argument need not wait.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # peft imports bitsandbytes if it is installed, and bitsandbytes logs which of its kernels this machine cannot use.
    getLogger("bitsandbytes").setLevel(ERROR)
    # torchao does so too.
    getLogger("torchao").setLevel(ERROR)
    # Pillow warns of each image with odd metadata.
    warnings.filterwarnings("ignore", module=r"torch|transformers|accelerate|PIL\.")


def is_busy() -> bool:
    """Whether, over the last minute, more than half of the machine's processors were in use."""
    # Windows has no load average.
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1)
