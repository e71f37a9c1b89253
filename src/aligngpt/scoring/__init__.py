"""Image–text similarity: models that give it, scoring pairs, and levels of scores written into data.

Importing this room registers the dual encoder with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel

from aligngpt.scoring.dual_encoder.model import DualEncoder, DualEncoderConfig

AutoConfig.register("aligngpt_dual_encoder", DualEncoderConfig)
AutoModel.register(DualEncoderConfig, DualEncoder)

__all__ = ["DualEncoder", "DualEncoderConfig"]
