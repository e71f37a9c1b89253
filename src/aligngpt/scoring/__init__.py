"""Image–text similarity: the models that compute it, scoring of pairs, and writing score levels into data."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligngpt.scoring.dual_encoder import DualEncoder, DualEncoderConfig

__all__ = ["DualEncoder", "DualEncoderConfig"]


def __getattr__(name: str) -> Any:
    # Paths and errors of this package serve commands that need no model: importing torch would cost them seconds.
    if name in __all__:
        from aligngpt.scoring import dual_encoder

        return getattr(dual_encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
