"""The warm start of a study's projectors: on all pairs, the same for all arms with the same seed and share of noise."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save, save_file

from aligngpt.data.rejects import Rejects
from aligngpt.device import resolve_device
from aligngpt.files import atomic_write
from aligngpt.training.feed.datasets import training_data, training_samples
from aligngpt.training.feed.feature_cache import features_kept_for
from aligngpt.training.recipe import make_recipe
from aligngpt.training.setup.freezing import freeze_all_but, part_of
from aligngpt.training.setup.loading import load_model
from aligngpt.training.setup.pretrained_parts import is_pretrained
from aligngpt.training.setup.warm_start import warm_start


def write_warm_start(recipe: Mapping[str, Any], path: Path) -> None:
    """Warm a projector up and write its tensors, atomically.

    Args:
        recipe: with `pretrain.warm_start` and captions without levels.
        path: a safetensors file.

    Raises:
        AlignGPTError: the data cannot be read.
    """
    read = make_recipe(dict(recipe), "the study's recipe")
    assert read.pretrain is not None and read.pretrain.warm_start is not None
    model, processor = load_model(read, "pretrain")
    model = model.to(resolve_device())
    freeze_all_but(model, ["projector"], levels_given=True)
    with Rejects(None) as rejects:
        samples = training_samples(read, "pretrain", rejects)
    dataset = training_data(samples, read, "pretrain", model, processor)
    cache = features_kept_for(dataset, model, model.device, in_bfloat16=False)
    dataset.known_features = cache
    cached = partial(cache.features_of, model, in_bfloat16=False)
    warm_start(model, dataset, read.pretrain.warm_start, seed=read.seed, cached=cached)
    tensors = {name: tensor.detach().cpu() for name, tensor in model.named_parameters() if part_of(name) == "projector"}
    with atomic_write(path, "wb") as file:
        file.write(save(tensors))


def write_warmed(recipe: Mapping[str, Any], warmed: Path, path: Path) -> None:
    """Write the file that a pre-training begins with: a warmed projector and the model's own level table.

    Args:
        recipe: of the pre-training; its seed draws the level table.
        warmed: from `write_warm_start`.
        path: a safetensors file.
    """
    model, _ = load_model(make_recipe(dict(recipe), "the study's recipe"), "pretrain")
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters() if is_pretrained(name)}
    save_file(tensors | load_file(warmed), path)
