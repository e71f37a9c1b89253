"""A small image and text encoder that is trained here; importing it registers it with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel

from aligngpt.scoring.dual_encoder.model import DualEncoder, DualEncoderConfig

AutoConfig.register("aligngpt_dual_encoder", DualEncoderConfig)
AutoModel.register(DualEncoderConfig, DualEncoder)

__all__ = ["DualEncoder", "DualEncoderConfig"]
