"""Models that score pairs: CLIP, SigLIP and our dual encoder behind one small interface."""

import hashlib
import inspect
import json
import tempfile
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

from aligngpt.data.images.opening import ImageError, open_image, resolve_image
from aligngpt.device import resolve_device, resolve_dtype
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.scoring.dual_encoder.model import LOADING_ERRORS

Features = NDArray[np.float32]


class ScorerError(AlignGPTError):
    """A model cannot be loaded or cannot score pairs."""


class PairScorer:
    """The similarity of images and texts: the cosine of their features in the space a model puts both in.

    Attributes:
        model: has `get_image_features` and `get_text_features`, as `CLIPModel` has.
        image_processor: the model's own.
        tokenizer: the model's own.
        max_text_tokens: longer texts are cut to this: the model's own maximum (CLIP 77, SigLIP 64).

    Raises:
        ScorerError: the model does not have the two methods.
        DeviceError: there is no such device or precision.
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

    @classmethod
    def load(cls, source: str | Path, *, device: str = "auto", dtype: str = "auto") -> "PairScorer":
        """Load a model with its image processor and tokenizer.

        Args:
            source: folder or hub name.
            device: `cpu`, `cuda`, `mps` or `auto`.
            dtype: `float32`, `bfloat16`, or `auto` for bfloat16 where the device computes it natively.

        Raises:
            ScorerError: something of it cannot be loaded, or it is not a model of images and texts.
            DeviceError: there is no such device or precision.
        """
        precision = resolve_dtype(dtype, resolve_device(device))
        local_or_hub(source, "the model", ScorerError)
        try:
            model = AutoModel.from_pretrained(source, dtype=precision)
        except LOADING_ERRORS as error:
            raise ScorerError(f"the model {source} cannot be loaded: {error}") from error
        # Before its tokenizer is looked for: a model of images alone has none.
        _check_scores_pairs(model)
        return cls(model, load_image_processor(source), load_tokenizer(source), device=device, dtype=dtype)

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of what decides a score: configuration, weights as computed with, image processor, tokenizer."""
        digest = hashlib.sha256(f"{type(self.model).__name__} {self.dtype} {self.max_text_tokens}".encode())
        settings = self.model.config.to_diff_dict()
        for name in ("architectures", "dtype", "transformers_version"):
            settings.pop(name, None)
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(_tokenizer_content(self.tokenizer))
        digest.update(self.image_processor.to_json_string().encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures as the model's image processor has them, on the CPU: `(images, 3, height, width)`.

        May be called from several threads.
        """
        return self.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def open_pixels(self, name: str, root: Path) -> Tensor:
        """A picture named in a record, as `pixel_values` has it: `(1, 3, height, width)`.

        May be called from several threads.

        Raises:
            ImageError: the picture cannot be used, or not by this model.
        """
        image = open_image(resolve_image(name, root))
        try:
            return self.pixel_values([image])
        except (ValueError, MemoryError) as error:
            raise ImageError("unreadable", f"{root / name} cannot be prepared for the model: {error}") from error

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids `(texts, length)` and, where the model reads one, their mask; on the model's device."""
        encoded = self.tokenizer(
            list(texts),
            padding="max_length" if self._pads_to_maximum else "longest",
            truncation=True,
            max_length=self.max_text_tokens,
            return_tensors="pt",
        )
        names = ("input_ids",) if self._pads_to_maximum else ("input_ids", "attention_mask")
        return {name: encoded[name].to(self.device) for name in names if name in encoded}

    def image_features(self, images: Sequence[Image.Image]) -> Features:
        """Features of RGB pictures, each of length 1: `(images, dim)`."""
        return self.pixel_features(self.pixel_values(images))

    def pixel_features(self, pixel_values: Tensor) -> Features:
        """Features of what `pixel_values` returned, each of length 1: `(images, dim)`."""
        with torch.inference_mode():
            return _normalised(self.model.get_image_features(pixel_values=pixel_values.to(self.device, self.dtype)))

    def text_features(self, texts: Sequence[str]) -> Features:
        """Features of texts, each of length 1: `(texts, dim)`."""
        with torch.inference_mode():
            return _normalised(self.model.get_text_features(**self.tokens(texts)))

    def score(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Features:
        """The cosine of each image and its text, -1…1: `(pairs,)`.

        Raises:
            ScorerError: there are not as many texts as images.
        """
        if len(images) != len(texts):
            raise ScorerError(f"expected a text for each image, found {len(images)} images and {len(texts)} texts")
        return np.einsum("pd,pd->p", self.image_features(images), self.text_features(texts))


def load_image_processor(source: str | Path) -> Any:
    """The image processor in a model's folder.

    Raises:
        ScorerError: there is none that can be loaded.
    """
    try:
        return AutoImageProcessor.from_pretrained(source)
    except LOADING_ERRORS as error:
        raise ScorerError(f"the image processor of {source} cannot be loaded: {error}") from error


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer in a model's folder.

    Raises:
        ScorerError: there is none that can be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except LOADING_ERRORS as error:
        raise ScorerError(f"the tokenizer of {source} cannot be loaded: {error}") from error
    # Without its files, some tokenizers come out empty: every text would be the same to the model.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ScorerError(f"{source} has no tokenizer: it knows special tokens only; put the tokenizer's files there")
    return tokenizer


def _check_scores_pairs(model: PreTrainedModel) -> None:
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ScorerError(
            f"{type(model).__name__} gives no features of images and texts in one space; "
            "use a CLIP or SigLIP model, or a dual encoder of ours"
        )
    if "spatial_shapes" in inspect.signature(model.get_image_features).parameters:
        raise ScorerError(
            f"{type(model).__name__} is of the NaFlex kind, which takes patches of any number with their shapes and "
            "not pictures of one size, and cannot score pairs here; use a model of a fixed resolution, such as "
            "google/siglip2-base-patch16-224"
        )


def _tokenizer_content(tokenizer: Any) -> bytes:
    """All of a tokenizer that decides which tokens a text becomes, and none of how it was last called."""
    names = ("padding_side", "truncation_side", "model_input_names", "special_tokens_map")
    called = {name: getattr(tokenizer, name, None) for name in names}
    digest = hashlib.sha256(json.dumps(called, sort_keys=True, default=str).encode())
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        # Padding and truncation are those of the last call.
        content = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
        digest.update(json.dumps(content, sort_keys=True).encode())
        return digest.digest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(folder).as_posix().encode())
                digest.update(_without_origin(path))
    return digest.digest()


def _without_origin(path: Path) -> bytes:
    """A file of a saved tokenizer, without what its settings say of where and by whom they were written."""
    if path.name != "tokenizer_config.json":
        return path.read_bytes()
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name in ("name_or_path", "transformers_version", "chat_template"):
        settings.pop(name, None)
    return json.dumps(settings, sort_keys=True).encode()


def _normalised(features: Any) -> Features:
    """Rows of length 1. Versions of transformers differ in whether features come as they are or in an output."""
    tensor: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(tensor.float(), dim=-1).cpu().numpy()
