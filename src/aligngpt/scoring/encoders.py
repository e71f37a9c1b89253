"""Models that score pairs: CLIP, SigLIP, SigLIP 2 and our dual encoder, behind one small interface."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import aligngpt.scoring.dual_encoder  # noqa: F401  registers it with transformers
from aligngpt.data.images.opening import ImageError, open_image, resolve_image
from aligngpt.device import resolve_device, resolve_dtype
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.model.backbones import LOADING_ERRORS
from aligngpt.model.own_code import refuse_own_code
from aligngpt.model.tensor_bytes import tensor_bytes
from aligngpt.model.whole_weights import load_whole
from aligngpt.scoring.patches import inputs_of_patches, pixels_of, takes_patches
from aligngpt.scoring.tokenizer_content import tokenizer_content

Features = NDArray[np.float32]


class ScorerError(AlignGPTError):
    """A model cannot be loaded or cannot score pairs."""


class PairScorer:
    """Computes image–text similarity: the cosine of image and text features in a model's shared space.

    Attributes:
        model: has `get_image_features` and `get_text_features`, like `CLIPModel`.
        image_processor: the model's own.
        tokenizer: the model's own.
        max_text_tokens: longer texts are truncated to this length, the model's maximum (CLIP 77, SigLIP 64).

    Raises:
        ScorerError: the model lacks one of the two methods.
        DeviceError: the device or precision is not available.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: Any,
        tokenizer: Any,
        *,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        _check_scores_pairs(model)
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.model: Any = model.eval()
        self.model.to(device=self.device, dtype=self.dtype)
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        config: Any = model.config
        self.max_text_tokens = int(min(tokenizer.model_max_length, config.text_config.max_position_embeddings))
        # SigLIP was trained on texts padded to the full length, and without a mask.
        self._pads_to_maximum = config.model_type.startswith("siglip")
        self._takes_patches = takes_patches(model.get_image_features)

    @classmethod
    def load(cls, source: str | Path, *, device: str = "auto", dtype: str = "auto") -> "PairScorer":
        """Load a model with its image processor and tokenizer.

        Args:
            source: folder or hub name.
            device: `cpu`, `cuda`, `mps` or `auto`.
            dtype: `float32`, `bfloat16`, or `auto` for bfloat16 if it is faster on the device.

        Raises:
            ScorerError: a part of the model cannot be loaded, lacks weights or is code of its own, or the model cannot
                score pairs.
            DeviceError: the device or precision is not available.
        """
        precision = resolve_dtype(dtype, resolve_device(device))
        local_or_hub(source, "the model", ScorerError)
        refuse_own_code(source, "the model", ScorerError, unless_known=True)
        try:
            model = load_whole(AutoModel, source, "the model", ScorerError, dtype=precision, trust_remote_code=False)
        except LOADING_ERRORS as error:
            raise ScorerError(f"the model {source} cannot be loaded: {error}") from error
        # Check this before loading the tokenizer: an image-only model has none.
        _check_scores_pairs(model)
        return cls(model, load_image_processor(source), load_tokenizer(source), device=device, dtype=dtype)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what affects a score: configuration, weights at compute precision, image processor, tokenizer."""
        digest = hashlib.sha256(f"{type(self.model).__name__} {self.dtype} {self.max_text_tokens}".encode())
        settings = self.model.config.to_diff_dict()
        for name in ("architectures", "dtype", "transformers_version"):
            settings.pop(name, None)
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(tokenizer_content(self.tokenizer))
        digest.update(self.image_processor.to_json_string().encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor_bytes(tensor))
        return digest.hexdigest()

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess RGB images with the model's image processor, on the CPU; see `pixels_of`.

        Returns:
            `(images, 3, height, width)`; `(images, patches + 1, values)` if the model takes patches (NaFlex).

        May be called from several threads.
        """
        return pixels_of(self.image_processor, images)

    def open_pixels(self, name: str, root: Path) -> Tensor:
        """Open and preprocess the image with this name in a record; see `pixel_values`.

        May be called from several threads.

        Raises:
            ImageError: the image is unusable, or this model cannot take it.
        """
        image = open_image(resolve_image(name, root))
        try:
            return self.pixel_values([image])
        except (ValueError, MemoryError) as error:
            raise ImageError("unreadable", f"{root / name} cannot be prepared for the model: {error}") from error

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`token_ids` on the model's device."""
        return {name: ids.to(self.device) for name, ids in self.token_ids(texts).items()}

    def token_ids(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids `(texts, length)` and, if the model uses one, the attention mask; on the CPU."""
        encoded = self.tokenizer(
            list(texts),
            padding="max_length" if self._pads_to_maximum else "longest",
            truncation=True,
            max_length=self.max_text_tokens,
            return_tensors="pt",
        )
        names = ("input_ids",) if self._pads_to_maximum else ("input_ids", "attention_mask")
        return {name: encoded[name] for name in names if name in encoded}

    def image_features(self, images: Sequence[Image.Image]) -> Features:
        """Features of RGB images, normalised to unit length: `(images, dim)`."""
        return self.pixel_features(self.pixel_values(images))

    def pixel_features(self, pixel_values: Tensor) -> Features:
        """Features of preprocessed images (see `pixel_values`), normalised to unit length: `(images, dim)`."""
        return self.encode_pixels(pixel_values.to(self.device, self.dtype)).cpu().numpy()

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """`pixel_features` of pixels on the model's device in its precision; stays there, and does not wait for it."""
        with torch.inference_mode():
            inputs = inputs_of_patches(pixels) if self._takes_patches else {"pixel_values": pixels}
            return _normalised(self.model.get_image_features(**inputs))

    def text_features(self, texts: Sequence[str]) -> Features:
        """Features of texts, normalised to unit length: `(texts, dim)`."""
        return self.encode_tokens(**self.tokens(texts)).cpu().numpy()

    def encode_tokens(self, **tokens: Tensor) -> Tensor:
        """`text_features` of `tokens`; stays on the model's device, and does not wait for it."""
        with torch.inference_mode():
            return _normalised(self.model.get_text_features(**tokens))

    def score(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Features:
        """Cosine similarity of each image and its text, -1…1: `(pairs,)`.

        Raises:
            ScorerError: the numbers of images and texts differ.
        """
        if len(images) != len(texts):
            raise ScorerError(f"expected one text per image, found {len(images)} images and {len(texts)} texts")
        return np.einsum("pd,pd->p", self.image_features(images), self.text_features(texts))


def load_image_processor(source: str | Path) -> Any:
    """Load a model's image processor.

    Raises:
        ScorerError: it is missing or cannot be loaded.
    """
    try:
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise ScorerError(f"the image processor of {source} cannot be loaded: {error}") from error


def load_tokenizer(source: str | Path) -> Any:
    """Load a model's tokenizer.

    Raises:
        ScorerError: it is missing or cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise ScorerError(f"the tokenizer of {source} cannot be loaded: {error}") from error
    # Without its files, some tokenizer classes load with an empty vocabulary: all texts would have the same tokens.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ScorerError(f"{source} has no tokenizer: its vocabulary has special tokens only; add its files")
    return tokenizer


def _check_scores_pairs(model: PreTrainedModel) -> None:
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ScorerError(
            f"{type(model).__name__} does not give image and text features in a shared space; "
            "use a CLIP or SigLIP model, or a dual encoder made by aligngpt"
        )


def _normalised(features: Any) -> Tensor:
    """Normalise rows to unit length. Depending on its version, transformers returns a tensor or an output object."""
    tensor: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(tensor.float(), dim=-1)
