"""Image–text similarity: the models that compute it, scoring of pairs, and writing score levels into data.

Importing this package registers the dual encoder with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel

from aligngpt.scoring.dual_encoder.model import DualEncoder, DualEncoderConfig

AutoConfig.register("aligngpt_dual_encoder", DualEncoderConfig)
AutoModel.register(DualEncoderConfig, DualEncoder)

__all__ = ["DualEncoder", "DualEncoderConfig"]
