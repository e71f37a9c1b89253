"""AlignGPT: multimodal language models whose image–text alignment is modelled (arXiv 2405.14129).

Importing this package registers the model with transformers' Auto classes.
"""

from aligngpt.model import AlignGPTConfig, AlignGPTForConditionalGeneration, AlignGPTModel, AlignGPTProcessor

__version__ = "0.1.0"

__all__ = [
    "AlignGPTConfig",
    "AlignGPTForConditionalGeneration",
    "AlignGPTModel",
    "AlignGPTProcessor",
    "__version__",
]
