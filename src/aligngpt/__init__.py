"""AlignGPT: multimodal language models whose image–text alignment is modelled (arXiv 2405.14129).

Importing this package registers the model with transformers' Auto classes.
"""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligngpt.model import AlignGPTConfig, AlignGPTForConditionalGeneration, AlignGPTModel, AlignGPTProcessor

__version__ = "0.1.0"

__all__ = [
    "AlignGPTConfig",
    "AlignGPTForConditionalGeneration",
    "AlignGPTModel",
    "AlignGPTProcessor",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from aligngpt import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _is_the_command() -> bool:
    program = sys.argv[0] if sys.argv else ""
    # Python says no more while it looks for the module that it is to run.
    return Path(program).stem == "aligngpt" or (program == "-m" and "aligngpt" in sys.orig_argv)


# Registering takes seconds, since it imports torch. The command does without until a verb needs a model, so that its
# help and its errors come at once; whatever needs one imports `aligngpt.model`, which registers.
if not _is_the_command():
    import aligngpt.model  # noqa: F401
elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Nothing is to be tidied up before the command begins: Ctrl-C ends it without half a traceback of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
