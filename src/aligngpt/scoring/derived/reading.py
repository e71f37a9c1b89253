"""Reads from the parts of a finished folder what its derived scores are computed from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from aligngpt.progress import Meter
from aligngpt.scoring.derived.measures import Batch
from aligngpt.scoring.manifest import Manifest
from aligngpt.scoring.score_files import EMBEDDINGS, ScoresError, read_part


@dataclass(frozen=True)
class Overview:
    """The pairs of a finished folder.

    Attributes:
        starts: the number of the first pair of each part, and the number of all pairs, `(parts + 1,)`.
        digest: SHA-256 of the model and of all scores and images: derived scores are of these.
    """

    starts: NDArray[np.int64]
    digest: str

    @property
    def pairs(self) -> int:
        """Number of all pairs."""
        return int(self.starts[-1])


class FirstImages:
    """Numbers the different images of a folder in order of first appearance.

    Args:
        most: the largest number of images.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.numbers: dict[str, int] = {}
        self.first_pairs: list[int] = []

    def add(self, hashes: Sequence[str], first: int) -> None:
        """Take the hashes of a part's images; `first` is the number of its first pair.

        Raises:
            ScoresError: there are too many different images.
        """
        for pair, name in enumerate(hashes, start=first):
            if name not in self.numbers:
                self.numbers[name] = len(self.numbers)
                self.first_pairs.append(pair)
        if len(self.numbers) > self.most:
            raise ScoresError(
                f"near-duplicates are found by comparing every two images, which is possible for up to {self.most:,} "
                "different images, and there are more; divide the source and find those of each piece"
            )


def overview(out: Path, manifest: Manifest, images: FirstImages | None) -> Overview:
    """Count the pairs of a folder, and number its images if `images` is given.

    Raises:
        ScoresError: a part is missing or damaged, or there are too many different images.
    """
    starts = [0]
    digest = hashlib.sha256(f"{manifest.model_fingerprint} {manifest.dtype}".encode())
    for shard in range(manifest.shards):
        part = read_part(out, shard, ["score", "image_hash"])
        hashes = part["image_hash"].to_pylist()
        digest.update(f"{part.num_rows} {' '.join(hashes)}".encode() + part["score"].to_numpy().tobytes())
        if images is not None:
            images.add(hashes, starts[-1])
        starts.append(starts[-1] + part.num_rows)
    return Overview(np.array(starts), digest.hexdigest())


@dataclass(frozen=True)
class Gathered:
    """Features from one pass over the parts, normalised, in half precision.

    Attributes:
        batches: the features of the pairs of each batch.
        image_sum: sum of the image features of all pairs, float64 `(dim,)`.
        images: features of the different images, `(images, dim)`.
    """

    batches: list[Batch]
    image_sum: NDArray[np.float64]
    images: Tensor


def gather(
    out: Path, found: Overview, batches: Sequence[NDArray[np.int64]], first_pairs: Sequence[int], device: torch.device
) -> Gathered:
    """Read the features of the pairs with some numbers, and sum those of all images.

    Args:
        out: folder of the scores.
        found: see `overview`.
        batches: ascending numbers of the pairs of each batch.
        first_pairs: ascending numbers of a pair for each of the different images.
        device: where to hold the features.

    Raises:
        ScoresError: a part is missing or damaged.
    """
    wanted = [*batches, np.asarray(first_pairs, dtype=np.int64)]
    rows: list[list[tuple[Tensor, Tensor]]] = [[] for _ in wanted]
    # Broadcast by the first part's sum, whose width is not known before.
    image_sum: NDArray[np.float64] = np.zeros(1)
    with Meter("reading embeddings", found.pairs, unit="pairs") as meter:
        for shard, (start, stop) in enumerate(zip(found.starts[:-1], found.starts[1:], strict=True)):
            part = read_part(out, shard, EMBEDDINGS)
            images, captions = features_of(part)
            image_sum = image_sum + images.numpy().sum(axis=0, dtype=np.float64)
            for numbers, into in zip(wanted, rows, strict=True):
                low, high = np.searchsorted(numbers, (start, stop))
                some = torch.from_numpy(numbers[low:high] - start)
                into.append((images[some].half().to(device), captions[some].half().to(device)))
            meter.advance(part.num_rows)
    *of_batches, of_images = ([torch.cat(features) for features in zip(*pieces, strict=True)] for pieces in rows)
    return Gathered(
        [Batch(numbers, *features) for numbers, features in zip(batches, of_batches, strict=True)],
        image_sum,
        of_images[0],
    )


def features_of(part: pa.Table) -> tuple[Tensor, Tensor]:
    """Image and caption features of a part, normalised again after their rounding to half precision.

    Returns:
        Two of `(pairs, dim)`, float32.
    """
    images, captions = (_matrix(part[name].combine_chunks()) for name in EMBEDDINGS)
    return images, captions


def _matrix(column: pa.FixedSizeListArray) -> Tensor:
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    return F.normalize(torch.from_numpy(values.astype(np.float32)), dim=1)
