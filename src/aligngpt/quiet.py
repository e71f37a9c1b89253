"""What the libraries underneath may say while a command runs: errors and warnings, no progress bars of their own."""

import os
import warnings
from logging import ERROR, getLogger


def quiet_libraries() -> None:
    """Silence progress bars and advice of the libraries, once, before a command runs."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # peft imports it where it is installed, and it says which of its kernels a machine has no use of.
    getLogger("bitsandbytes").setLevel(ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
