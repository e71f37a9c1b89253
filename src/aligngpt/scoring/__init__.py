"""Image–text similarity: models that give it, scoring a file of pairs, and writing levels into the file.

Importing this room registers the dual encoder with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel

from aligngpt.scoring.dual_encoder import DualEncoder, DualEncoderConfig

AutoConfig.register("aligngpt_dual_encoder", DualEncoderConfig)
AutoModel.register(DualEncoderConfig, DualEncoder)

__all__ = ["DualEncoder", "DualEncoderConfig"]
