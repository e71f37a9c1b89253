"""AlignGPT: multimodal language models whose image–text alignment is modelled (arXiv 2405.14129).

Importing this package registers the model with transformers' Auto classes.
"""

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


# Registering takes seconds, since it imports torch. The command does without until a verb needs a model, so that its
# help and its errors come at once; whatever needs one imports `aligngpt.model`, which registers.
if Path(sys.argv[0] if sys.argv else "").stem != "aligngpt":
    import aligngpt.model  # noqa: F401
