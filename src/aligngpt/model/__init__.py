"""The model: configuration, network, processor, and their assembly from backbones."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.configuration_timm_tower import TimmTowerConfig
from aligngpt.model.modeling import AlignGPTForConditionalGeneration, AlignGPTModel
from aligngpt.model.processing import AlignGPTProcessor

AutoConfig.register("aligngpt", AlignGPTConfig)
AutoConfig.register(TimmTowerConfig.model_type, TimmTowerConfig)
AutoModel.register(AlignGPTConfig, AlignGPTModel)
AutoModelForImageTextToText.register(AlignGPTConfig, AlignGPTForConditionalGeneration)
AutoProcessor.register(AlignGPTConfig, AlignGPTProcessor)

__all__ = ["AlignGPTConfig", "AlignGPTForConditionalGeneration", "AlignGPTModel", "AlignGPTProcessor"]
