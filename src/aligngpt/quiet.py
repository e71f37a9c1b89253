"""How the libraries underneath behave while a command runs: no progress bars of their own, and threads that yield."""

import os
import warnings
from logging import ERROR, getLogger


def quiet_libraries() -> None:
    """Silence progress bars and advice of the libraries, once, before a command runs and before torch is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Threads that spin while they wait for each other take the processor from the one they wait for, where another
    # process is at work: beside four busy ones a step is then several times slower. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # peft imports it where it is installed, and it says which of its kernels a machine has no use of.
    getLogger("bitsandbytes").setLevel(ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
