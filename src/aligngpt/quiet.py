"""Settings of the underlying libraries while a command runs: no progress bars of their own, no spinning threads."""

import os
import warnings
from logging import ERROR, getLogger


def quiet_libraries() -> None:
    """Silence the libraries' progress bars and warnings; call once, before a command runs and torch is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # On a busy machine, threads that spin while waiting for each other take the CPU from the thread they wait for:
    # beside four busy processes a step is then several times slower. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # peft imports bitsandbytes if it is installed, and bitsandbytes logs which of its kernels this machine cannot use.
    getLogger("bitsandbytes").setLevel(ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
