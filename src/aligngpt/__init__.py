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
    # sys.argv[0] is "-m" while Python locates the module to run.
    return Path(program).stem == "aligngpt" or (program == "-m" and "aligngpt" in sys.orig_argv)


# Registering imports torch, which takes seconds. The command skips it so that help and usage errors appear at once;
# verbs that need a model import `aligngpt.model`, which registers it.
if not _is_the_command():
    import aligngpt.model  # noqa: F401
elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Before the command starts there is nothing to clean up: let Ctrl-C end it without a traceback from an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
