"""Train the two linear maps of a dual encoder on noisy image–caption pairs.

Locked towers, as in LiT (arXiv 2111.07991), with CLIP's symmetric loss (arXiv 2103.00020, figure 3). A pair's score
tends to how much more often its image and caption occur together than by chance. A wrong caption mostly occurs with
other images, and a vague one with all images, so both score low. Two linear maps lack the capacity to memorise the
exceptions.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aligngpt.data.images.opening import ImageError
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.files import atomic_folder
from aligngpt.progress import Meter
from aligngpt.scoring.dual_encoder.model import DualEncoder, DualEncoderError, ImagePooling, assemble_dual_encoder
from aligngpt.scoring.encoders import PairScorer, load_image_processor, load_tokenizer

START_TEMPERATURE = 0.07
HIGHEST_SCALE = 100.0


class EncodedPairs(NamedTuple):
    """The tower outputs for a file of pairs, with each image and each caption encoded once.

    Attributes:
        images: pooled image features, `(images, vision hidden)`.
        captions: pooled text features, `(captions, text hidden)`.
        pairs: indices of each pair's image and caption, `(pairs, 2)`.
    """

    images: Tensor
    captions: Tensor
    pairs: Tensor


def train_dual_encoder(
    source: Path,
    image_tower: str | Path,
    text_tower: str | Path,
    out: Path,
    *,
    vision_layers: int | None = None,
    image_pooling: ImagePooling = "class",
    projection_dim: int = 128,
    epochs: int = 20,
    batch_size: int = 256,
    seed: int = 0,
    device: str = "auto",
    rejects: Rejects | None = None,
) -> Path:
    """Build a dual encoder from two towers by training linear maps on a file of pairs, and save it to one folder.

    `PairScorer.load` and `AutoModel.from_pretrained` can load the folder. Writing it is atomic.

    Args:
        source: LLaVA-format JSON or JSON lines with image paths relative to its folder; only samples with exactly one
            image are used.
        image_tower: folder or hub name of a vision transformer with its image processor.
        text_tower: folder or hub name of a text encoder with its tokenizer.
        out: the folder to write; an existing one is replaced.
        vision_layers, image_pooling, projection_dim: see `assemble_dual_encoder`.
        epochs, batch_size: see `fit_projections`.
        seed: random seed for the initial values of the maps and the order of the pairs.
        device: where the towers run.
        rejects: collects unusable pairs; they are only counted when None.

    Returns:
        `out`.

    Raises:
        DualEncoderError: a tower cannot be loaded, or fewer than two pairs are usable.
        ScorerError: a tower has no image processor or no tokenizer.
        SourceError, TooManyRejects: the pairs cannot be read, or too many of them are unusable.
    """
    model = assemble_dual_encoder(
        image_tower,
        text_tower,
        vision_layers=vision_layers,
        image_pooling=image_pooling,
        projection_dim=projection_dim,
    )
    scorer = PairScorer(
        model, load_image_processor(image_tower), load_tokenizer(text_tower), device=device, dtype="float32"
    )
    rejects = Rejects(None) if rejects is None else rejects
    encoded = encode_pairs(source, scorer, rejects=rejects)
    fit_projections(model.cpu(), *encoded, epochs=epochs, batch_size=batch_size, seed=seed)
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        scorer.image_processor.save_pretrained(folder)
        scorer.tokenizer.save_pretrained(folder)
    return out


def encode_pairs(
    source: Path,
    scorer: PairScorer,
    *,
    rejects: Rejects,
    batch_size: int = 64,
) -> EncodedPairs:
    """Encode the pairs of a file with a dual encoder's towers, each image and each caption once.

    Raises:
        DualEncoderError: the file has fewer than two usable pairs.
        SourceError, TooManyRejects: the pairs cannot be read, or too many of them are unusable.
    """
    root = source.parent
    samples = load_samples(source, image_root=root, rejects=rejects, check_images=False)
    total = len(samples) + rejects.count
    pairs_of_image: dict[str, list[Sample]] = {}
    for sample in samples:
        if len(sample.images) == 1:
            pairs_of_image.setdefault(sample.images[0], []).append(sample)
        else:
            rejects.add(sample.record, sample.id, "image_count", f"{len(sample.images)} images, expected exactly one")
    encoder = scorer.model
    images: list[Tensor] = []
    usable: list[tuple[int, str]] = []
    count = 0
    with torch.inference_mode(), Meter("encoding images", len(pairs_of_image), unit="images") as meter:
        for names in batches(list(pairs_of_image), batch_size):
            pixels = []
            for name in names:
                try:
                    pixels.append(scorer.open_pixels(name, root))
                except ImageError as error:
                    for sample in pairs_of_image[name]:
                        rejects.add(sample.record, sample.id, error.reason, str(error))
                    continue
                usable.extend((count, sample.caption) for sample in pairs_of_image[name])
                count += 1
            if pixels:
                images.append(encoder.pooled_image(torch.cat(pixels).to(scorer.device)).cpu())
            rejects.check(total)
            meter.advance(len(names))
        captions = list(dict.fromkeys(caption for _, caption in usable))
        texts = [encoder.pooled_text(**scorer.tokens(part)).cpu() for part in batches(captions, batch_size)]
    if len(usable) < 2:
        raise DualEncoderError(f"{source} has {len(usable)} usable pairs, at least 2 are needed")
    place = {caption: index for index, caption in enumerate(captions)}
    return EncodedPairs(
        torch.cat(images),
        torch.cat(texts),
        torch.tensor([(image, place[caption]) for image, caption in usable]),
    )


def fit_projections(
    model: DualEncoder,
    images: Tensor,
    captions: Tensor,
    pairs: Tensor,
    *,
    epochs: int = 20,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> float:
    """Train a dual encoder's two linear maps and temperature on features from its towers.

    The loss is CLIP's: in each batch, every image must be matched to its caption among all captions, and every caption
    to its image. Identical captions, and captions of the same image, are not used as negatives of each other. Both maps
    are initialised randomly and trained in float32 on the CPU, with Adam and a one-cycle schedule.

    Args:
        model: receives the maps and the temperature; its towers are neither run nor changed.
        images: `(images, vision hidden)`, see `EncodedPairs`.
        captions: `(captions, text hidden)`, each caption once.
        pairs: indices of each pair's image and caption, `(pairs, 2)`.
        epochs: number of passes over the pairs. Keep it low: the maps should learn what most captions say, not memorise
            which images have a wrong one.
        batch_size: pairs contrasted with each other.
        learning_rate: peak learning rate of the schedule.
        seed: random seed for the initial values of the maps and the order of the pairs.

    Returns:
        The mean loss of the last epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    image_map, text_map = (
        (torch.randn(model.projection_dim, part.shape[1], generator=generator) / part.shape[1] ** 0.5).requires_grad_()
        for part in (images, captions)
    )
    log_scale = torch.tensor(math.log(1 / START_TEMPERATURE), requires_grad=True)
    steps = math.ceil(len(pairs) / batch_size)
    optimizer = torch.optim.Adam([image_map, text_map, log_scale], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    loss_of_epoch = 0.0
    with Meter("fitting the dual encoder", epochs, unit="epochs") as meter:
        for _ in range(epochs):
            loss_of_epoch = 0.0
            # Batches of almost equal size: a very small last one would have hardly any negatives.
            for chosen in torch.randperm(len(pairs), generator=generator).tensor_split(steps):
                image_index, caption_index = pairs[chosen].unbind(dim=1)
                loss = contrastive_loss(
                    images[image_index] @ image_map.T,
                    captions[caption_index] @ text_map.T,
                    log_scale,
                    same=same_pairs(image_index, caption_index),
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    log_scale.clamp_(max=math.log(HIGHEST_SCALE))
                loss_of_epoch += loss.item() / steps
            meter.advance(remark=f"loss {loss_of_epoch:.3f}")
    with torch.no_grad():
        model.visual_projection.weight.copy_(image_map)
        model.text_projection.weight.copy_(text_map)
        model.logit_scale.copy_(log_scale)
    return loss_of_epoch


def contrastive_loss(images: Tensor, texts: Tensor, log_scale: Tensor, *, same: Tensor) -> Tensor:
    """Symmetric InfoNCE loss of pairs, where the i-th text belongs to the i-th image.

    Args:
        images: `(pairs, dim)`, need not be normalised.
        texts: `(pairs, dim)`, need not be normalised.
        log_scale: logarithm of the factor applied to the cosines, one over the temperature.
        same: `(pairs, pairs)`, true where an image and a text are not negatives of each other.

    Returns:
        The mean over both directions and all pairs, a scalar.
    """
    logits = log_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(same & ~own, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def same_pairs(image_index: Tensor, caption_index: Tensor) -> Tensor:
    """Mask of pairs that share their image or their caption: `(pairs,)` and `(pairs,)` → `(pairs, pairs)`."""
    same_image = image_index[:, None] == image_index[None, :]
    return same_image | (caption_index[:, None] == caption_index[None, :])


def batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yield consecutive slices of `size` items; the last one may be smaller."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
