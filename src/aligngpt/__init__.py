"""AlignGPT: multimodal language models whose image–text alignment is modelled (arXiv 2405.14129)."""

__version__ = "0.1.0"

__all__ = ["__version__"]
