"""A warm start of the projector before pre-training. Not part of the paper: a recipe option, off in its recipes.

A freshly initialised projector maps image tokens far from the embeddings of any words, and a small language model then
takes long to relate the image to the question. The warm start first moves each image token towards its caption's words:

    target = Σ_w idf(w) e(w) / ‖idf‖          w: the caption's tokens, e: the language model's input embeddings
    loss   = mean over image tokens of ‖H_v[j] − target‖² / hidden

The inverse document frequency over the captions removes the words that every caption has ("a picture of"). The language
model is not run, only its embedding table is read, so this takes seconds.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from math import log
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aligngpt.data.batches.dataset import ConversationDataset, Images
from aligngpt.data.images.opening import ImageError
from aligngpt.data.records.sample import Sample
from aligngpt.data.samples.columns import columns_of
from aligngpt.errors import AlignGPTError
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.projector import AlignGPTProjector
from aligngpt.progress import Meter
from aligngpt.training.recipe import WarmStartRecipe

IMAGES_AT_ONCE = 64

CachedFeatures = Callable[[Images], Tensor]


class WarmStartResult(NamedTuple):
    """The loss at the first step, its mean over the last tenth of the steps, and the duration in seconds."""

    before: float
    after: float
    seconds: float


def warm_start(
    model: AlignGPTForConditionalGeneration,
    dataset: ConversationDataset,
    settings: WarmStartRecipe,
    *,
    seed: int,
    cached: CachedFeatures | None = None,
) -> WarmStartResult:
    """Train a model's projector towards the captions' words; everything else stays unchanged.

    Standardisation of each channel of the tower's features, with the statistics over these pairs, is folded into the
    projector's first layer: the scale of the features carries no information, but affects how fast a projector learns.

    Args:
        model: its projector is changed in place.
        dataset: pairs with one image; with levels if `settings.from_level` is above 1.
        settings: steps, batch size, learning rate and selection of pairs.
        seed: for drawing pairs and batches.
        cached: gives the tower's features of an image from the stage's cache, `(1, P, width)`, and adds missing ones;
            None computes all features here.

    Returns:
        The first and the final loss, and the duration in seconds.

    Raises:
        AlignGPTError: fewer than two pairs can be used.
    """
    started = time.monotonic()
    rng = random.Random(seed)
    columns = columns_of(dataset.samples)
    # Samples without a level have level 0 in `columns`.
    has_level = columns.levels >= (settings.from_level if settings.from_level > 1 else 0)
    places: list[int] = np.flatnonzero((columns.images == 1) & has_level).tolist()
    if len(places) > settings.max_pairs:
        places = rng.sample(places, settings.max_pairs)
    if (columns.blocks >= 0).any():
        # In file order, a row group is read once rather than once per image.
        places.sort()
    pairs, features = _image_features(model, dataset, places, cached)
    if len(pairs) < 2:
        raise AlignGPTError(
            f"the warm start found {len(pairs)} pairs of level {settings.from_level} or above with a readable image, "
            "but needs at least 2; lower warm_start.from_level or remove warm_start"
        )
    tokenizer = dataset.processor.tokenizer
    captions = [tokenizer(sample.caption, add_special_tokens=False)["input_ids"] for sample in pairs]
    with torch.no_grad():
        targets = caption_targets(
            captions, lambda tokens: model.get_input_embeddings()(tokens.to(model.device)).float()
        )
    features, mean, scale = _standardised(features)
    projector = model.model.multi_modal_projector
    trained = AlignGPTProjector(model.config).to(model.device)
    trained.load_state_dict({name: tensor.float() for name, tensor in projector.state_dict().items()})
    losses = _fit(trained, features, targets, settings, seed)
    first = trained.linear_1
    with torch.no_grad():
        first.weight.div_(scale.to(model.device))
        if first.bias is not None:
            first.bias.sub_(first.weight @ mean.to(model.device))
    projector.load_state_dict(trained.state_dict())
    end = losses[-max(1, len(losses) // 10) :]
    return WarmStartResult(losses[0], sum(end) / len(end), round(time.monotonic() - started, 1))


def caption_targets(captions: Sequence[Sequence[int]], embed: Callable[[Tensor], Tensor]) -> Tensor:
    """The target of each caption's image tokens: the sum of its tokens' embeddings, weighted by inverse frequency.

    Args:
        captions: token ids of each caption.
        embed: gives the embeddings of tokens as the language model reads them, `(tokens,)` → `(tokens, hidden)`: in
            some language models a multiple of the rows of their table.

    Returns:
        `(captions, hidden)`; zero for a caption whose tokens all occur in every caption.
    """
    frequency = Counter(token for caption in captions for token in set(caption))
    idf = {token: log(len(captions) / count) for token, count in frequency.items()}
    rows = []
    for caption in captions:
        words = embed(torch.tensor(list(caption), dtype=torch.long))
        weights = torch.tensor([idf[token] for token in caption], device=words.device)
        rows.append((weights.unsqueeze(-1) * words).sum(dim=0) / weights.norm().clamp(min=1e-6))
    return torch.stack(rows)


def _image_features(
    model: AlignGPTForConditionalGeneration,
    dataset: ConversationDataset,
    places: Sequence[int],
    cached: CachedFeatures | None,
) -> tuple[list[Sample], Tensor]:
    """The pairs whose image can be read, and the projector's input, `(pairs, P, width)`, in float32 on the CPU.

    It may be too large for a GPU beside the model.
    """
    kept, found = [], []
    at_once = IMAGES_AT_ONCE if cached is None else 1
    with torch.no_grad(), Meter("warm start: images", len(places), unit="images") as meter:
        for start in range(0, len(places), at_once):
            images, part = [], places[start : start + at_once]
            for place in part:
                try:
                    images.append(dataset.images_of(place, 1))
                except ImageError:
                    continue  # Pre-training will reach this image and record the reason.
                kept.append(dataset.samples[place])
            if images and cached is not None:
                found.append(cached(images[0]).float().cpu())
            elif images:
                pixels = torch.cat([image.pixel_values for image in images if image.pixel_values is not None])
                found.append(model.model.tower_features(pixels.to(model.device, model.dtype)).float().cpu())
            meter.advance(len(part))
    return kept, torch.cat(found) if found else torch.empty(0)


def _standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features with mean 0 and standard deviation 1 per channel, and their original mean and standard deviation."""
    scale, mean = torch.std_mean(features, dim=(0, 1), correction=0)
    # Avoid division by zero for constant channels.
    scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.ones_like(scale))
    return (features - mean) / scale, mean, scale


def _fit(
    projector: AlignGPTProjector, features: Tensor, targets: Tensor, settings: WarmStartRecipe, seed: int
) -> list[float]:
    """Train the projector and return the loss of each step."""
    device = next(projector.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(projector.parameters(), lr=settings.learning_rate)
    size = min(settings.batch_size, len(features))
    losses: list[float] = []
    with torch.enable_grad(), Meter("warm start", settings.steps, unit="steps") as meter:
        for _ in range(settings.steps):
            chosen = torch.randperm(len(features), generator=generator)[:size]
            target = targets[chosen.to(targets.device)].to(device).unsqueeze(1).expand(-1, features.shape[1], -1)
            loss = F.mse_loss(projector.project(features[chosen].to(device)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            meter.advance(remark=f"loss {losses[-1]:.4f}")
    return losses
