"""Features of a frozen vision tower, cached on disk per image and reused by later epochs and runs.

The key of an entry covers everything that affects it: the image's content, the tower's weights, and the settings of
image processing and tower. So an entry is never out of date, several runs may share the folder at the same time, and
the folder may be removed at any time. The tower encodes one image at a time, so that an entry does not depend on the
rest of its batch: a resumed run gets the same numbers.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from aligngpt.cache import CACHE_VARIABLE, cache_folder
from aligngpt.data.batches.dataset import ConversationDataset, Images
from aligngpt.data.samples.columns import columns_of
from aligngpt.files import atomic_write, sha256_of
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.tensor_bytes import tensor_bytes
from aligngpt.progress import say, warn
from aligngpt.training.distributed.processes import is_main_process

NAME = "features"


@dataclass
class FeatureCache:
    """Cached image features, one file per image.

    Attributes:
        folder: of the cache.
        fingerprint: of everything but the image that affects the features, see `fingerprint_of_tower`.
        shape: of one image's features, `(P, scales · tower hidden)`.
        dtype: of the cached features, as the projector reads them.
    """

    folder: Path
    fingerprint: str
    shape: tuple[int, int]
    dtype: torch.dtype
    _writes: bool = field(default=True, repr=False)
    _warned: bool = field(default=False, repr=False)

    def key(self, picture: Path | bytes) -> str:
        """The key of an image's features: a SHA-256 of its content and the fingerprint.

        Args:
            picture: file or content of the image.

        Raises:
            OSError: the image cannot be read.
        """
        if isinstance(picture, bytes):
            content = hashlib.sha256(picture).hexdigest()
        else:
            with picture.open("rb") as file:
                content = sha256_of(file)
        return hashlib.sha256((self.fingerprint + content).encode()).hexdigest()

    def path_of(self, key: str) -> Path:
        """The file of an entry, which need not exist."""
        return self.folder / key[:2] / key[2:4] / f"{key}.safetensors"

    def read(self, key: str) -> Tensor | None:
        """The features of an image, `(P, scales · tower hidden)`; None if they are missing or damaged."""
        path = self.path_of(key)
        try:
            features = load(path.read_bytes())[NAME]
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            self._warn(f"{path} cannot be read ({error})")
            return None
        if tuple(features.shape) != self.shape or features.dtype != self.dtype:
            self._warn(f"{path} holds {tuple(features.shape)} {features.dtype}, not {self.shape} {self.dtype}")
            return None
        return features

    def write(self, key: str, features: Tensor) -> None:
        """Cache the features of an image; after a write error, this process caches nothing more."""
        if not self._writes:
            return
        try:
            with atomic_write(self.path_of(key), "wb") as file:
                file.write(save({NAME: features.cpu().contiguous()}))
        except OSError as error:
            self._writes = False
            why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
            warn(
                f"image features can no longer be cached in {self.folder} ({why}); training continues and "
                f"computes them. Make room there, or set {CACHE_VARIABLE} to another folder"
            )

    def complete(
        self, model: AlignGPTForConditionalGeneration, inputs: dict[str, Any], *, in_bfloat16: bool
    ) -> dict[str, Any]:
        """Add the features of all images to a batch; those not in the cache are computed and cached.

        Args:
            model: with a frozen tower.
            inputs: a batch from `Collator.with_ids`.
            in_bfloat16: compute in bfloat16, as training does.

        Returns:
            The inputs with `vision_features` in place of `pixel_values` and `feature_keys`.
        """
        keys: list[str] = inputs.get("feature_keys", [])
        if not any(keys):
            return inputs
        computed = self._compute(model, [key for key in keys if key], inputs["pixel_values"], in_bfloat16=in_bfloat16)
        known = iter(inputs.get("vision_features", ()))
        features = torch.stack([computed[key] if key else next(known) for key in keys])
        others = {name: value for name, value in inputs.items() if name not in ("feature_keys", "pixel_values")}
        return others | {"vision_features": features}

    def features_of(self, model: AlignGPTForConditionalGeneration, images: Images, *, in_bfloat16: bool) -> Tensor:
        """The features of the images of a row, `(images, P, width)`; those not in the cache are computed and cached.

        Args:
            model: with a frozen tower.
            images: from a dataset that reads this cache, see `ConversationDataset.images_of`.
            in_bfloat16: compute in bfloat16, as training does.
        """
        if images.features is not None:
            return images.features.to(model.device)
        assert images.pixel_values is not None
        pixels = images.pixel_values.to(model.device, model.dtype)
        computed = self._compute(model, images.feature_keys, pixels, in_bfloat16=in_bfloat16)
        return torch.stack([computed[key] for key in images.feature_keys])

    def _compute(
        self, model: AlignGPTForConditionalGeneration, keys: Sequence[str], pixels: Tensor, *, in_bfloat16: bool
    ) -> dict[str, Tensor]:
        computed = {}
        tower = model.model.vision_tower
        trains = tower.training
        tower.eval()
        with torch.no_grad(), torch.autocast(pixels.device.type, torch.bfloat16, enabled=in_bfloat16):
            for key, picture in zip(dict.fromkeys(keys), pixels.split(1), strict=True):
                # Batches are read ahead: an earlier batch may have added this entry in the meantime.
                if (features := self.read(key)) is None:
                    # In bfloat16 the projector rounds its input anyway; rounding it here halves the space.
                    features = model.model.tower_features(picture)[0].to(self.dtype)
                    self.write(key, features)
                computed[key] = features.to(picture.device)
        tower.train(trains)
        return computed

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            warn(f"{what}; its features are computed again, as are those of other such entries")


def features_kept_for(
    dataset: ConversationDataset, model: AlignGPTForConditionalGeneration, device: torch.device, *, in_bfloat16: bool
) -> FeatureCache:
    """The feature cache for a stage's images; prints how large it may get.

    Args:
        dataset: the stage's data.
        model: ready for training, with its tower frozen and converted to the precision it is held in.
        device: that training runs on.
        in_bfloat16: whether training computes in bfloat16.
    """
    shape = (model.config.image_seq_length, model.model.multi_modal_projector.linear_1.in_features)
    dtype = torch.bfloat16 if in_bfloat16 else model.model.vision_tower.dtype
    how = {"device": device.type, "in_bfloat16": in_bfloat16, "image_processor": dataset.picture_settings}
    cache = FeatureCache(cache_folder(NAME), fingerprint_of_tower(model, how), shape, dtype)
    if is_main_process():
        _say_how_large(cache, pictures_at_most(dataset))
    return cache


def fingerprint_of_tower(model: AlignGPTForConditionalGeneration, how: dict[str, Any]) -> str:
    """A SHA-256 of the vision tower's weights and of all settings that affect the features.

    Args:
        model: with the weights in the precision they are held in.
        how: settings that are not part of the model, as plain data.
    """
    config, tower = model.config, model.model.vision_tower
    architecture = config.vision_config.to_dict()
    # The location that the tower was loaded from does not affect its features.
    for name in ("_name_or_path", "transformers_version"):
        architecture.pop(name, None)
    settings = how | {
        "architecture": architecture,
        "attention": config.vision_config._attn_implementation,
        "feature_layer": config.vision_feature_layer,
        "select_strategy": config.vision_feature_select_strategy,
        "image_scales": config.image_scales,
        "merge_image_tokens": config.merge_image_tokens,
        "versions": [torch.__version__, transformers.__version__],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def pictures_at_most(dataset: ConversationDataset) -> int:
    """Upper bound on the number of images; one that appears in samples with different image lists counts repeatedly."""
    columns = columns_of(dataset.samples)
    lists = np.stack([columns.sources, columns.keys, columns.images])[:, columns.images > 0]
    return int(np.unique(lists, axis=1)[2].sum())


def _say_how_large(cache: FeatureCache, pictures: int) -> None:
    one = cache.shape[0] * cache.shape[1] * cache.dtype.itemsize
    most = one * pictures
    there = next(folder for folder in (cache.folder, *cache.folder.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    say(
        f"image features: cached in {cache.folder}, {one / 1e6:.2f} MB per image, at most {most / 1e9:.1f} GB for all "
        f"{pictures:,} images; {free / 1e9:.1f} GB free"
    )
    if most > free:
        warn(
            "if most of them are not cached yet, the disk fills up; make room, set "
            f"{CACHE_VARIABLE} to another folder, or leave cache_features out"
        )
