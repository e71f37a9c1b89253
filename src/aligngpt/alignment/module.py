"""The alignment module: a table of level embeddings and the gate that mixes them.

This is section 3 of the paper (arXiv 2405.14129) and nothing else: plain torch, no language model, no tokenizer.

    pre-training    a = A[level]                                  the level is known: it was measured
    instruction     s_j = <H_v[j], t>            j = 1…P          relevance of each image part to the text
    tuning          w   = softmax(MLP(s))        (N-1)            weight of each local level for this pair
                    a   = A[N] + Σ_{i<N} w_i A[i]                 the whole image, plus the relevant parts
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aligngpt.alignment.modes import AlignmentMode

FIXED_MODES = ("global", "average", "mean")
"""Modes whose embedding is the same for every image and text."""


class AlignmentOutput(NamedTuple):
    """Output of the alignment module: `embedding (batch, hidden)` and `weights (batch, levels - 1)`.

    `weights` are those of levels 1…N-1 in the embedding, or None if it was formed without weights.
    """

    embedding: Tensor
    weights: Tensor | None


class AlignmentModule(nn.Module):
    """Level table `A (levels, hidden)` and gate `MLP: P → hidden → levels - 1` (paper, section 3).

    The gate reads a similarity map of fixed size, `gate_grid × gate_grid`. Maps of vision towers with another number
    of image tokens are resampled to it; a map of this size is used as it is, so the published weights (576 image
    tokens, a 24 × 24 grid) reproduce the published results.

    Args:
        num_levels: N, at least 2. Level N is the best aligned.
        hidden_size: width of the language model's embeddings.
        gate_grid: side of the square similarity map that the gate reads.
        gate_hidden_size: width of the gate's hidden layer (256 in the paper's code).
    """

    def __init__(self, num_levels: int, hidden_size: int, gate_grid: int = 24, gate_hidden_size: int = 256) -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(f"at least 2 alignment levels are needed, got {num_levels}")
        self.num_levels = num_levels
        self.gate_grid = gate_grid
        self.levels = nn.Parameter(torch.empty(num_levels, hidden_size))
        self.gate = nn.Sequential(
            nn.Linear(gate_grid * gate_grid, gate_hidden_size),
            nn.GELU(),
            nn.Linear(gate_hidden_size, num_levels - 1),
        )
        self.reset_level_table()

    def reset_level_table(self) -> None:
        """Reinitialise the level table, Xavier-uniform as in the paper's code."""
        nn.init.xavier_uniform_(self.levels)

    def forward(
        self,
        image_tokens: Tensor,
        text: Tensor,
        sample_of_image: Tensor | None = None,
        *,
        mode: AlignmentMode = "adaptive",
        level: Tensor | int | None = None,
        weights: Tensor | None = None,
    ) -> AlignmentOutput:
        """Compute one alignment embedding per sample.

        Args:
            image_tokens: projected image tokens H_v, `(images, P, hidden)`.
            text: mean text embedding t of each sample, `(batch, hidden)`, see `mean_text_embedding`.
            sample_of_image: index of the sample of each image, `(images,)`; None if image i is the only one of sample
                i. For a sample with several images, the gate reads the mean of their similarity maps.
            mode: `adaptive` A[N] + Σ w_i A[i], `local` Σ w_i A[i], or one of `fixed_embedding`.
            level: force a level 1…N for each sample, `(batch,)`, or one for all: the embedding is A[level], as in
                pre-training.
            weights: used instead of the gate's weights, `(batch, levels - 1)`.

        Returns:
            `AlignmentOutput`; rows of samples without an image hold meaningless values.

        Raises:
            ValueError: `mode` is not one of the above, or `weights` are given that would have no effect.
        """
        if weights is not None and (level is not None or mode in FIXED_MODES):
            why = "a level is forced" if level is not None else f"alignment mode {mode} has no weights"
            raise ValueError(f"the alignment weights would have no effect, because {why}; leave them out")
        if level is not None:
            levels = torch.as_tensor(level, device=self.levels.device).reshape(-1).expand(text.shape[0])
            return AlignmentOutput(self.level_embedding(levels), None)
        if mode in FIXED_MODES:
            return AlignmentOutput(self.fixed_embedding(mode).expand(text.shape[0], -1), None)
        if mode not in ("adaptive", "local"):
            raise ValueError(f"alignment mode must be adaptive, global, local, average or mean, got {mode!r}")
        if weights is None:
            weights = self.gate_weights(self.sample_similarity(image_tokens, text, sample_of_image))
        return AlignmentOutput(self.combine(weights, with_global=mode == "adaptive"), weights)

    def fixed_embedding(self, mode: str) -> Tensor:
        """The embedding of one of the `FIXED_MODES`, `(hidden)`.

        `global` A[N], `average` A[N] + Σ A[i] / (N-1) (equal weights in place of the gate's), `mean` the mean of the
        table.
        """
        if mode == "global":
            return self.levels[-1]
        if mode == "average":
            return self.levels[-1] + self.levels[:-1].mean(dim=0)
        return self.levels.mean(dim=0)

    def level_embedding(self, level: Tensor) -> Tensor:
        """A[level] for levels 1…N, `(batch,)` → `(batch, hidden)`; others raise IndexError (on a GPU, an assertion)."""
        # Plain indexing would silently map level 0 to level N, the best.
        return F.embedding(level - 1, self.levels)

    def combine(self, weights: Tensor, *, with_global: bool = True) -> Tensor:
        """Σ_{i<N} w_i A[i], plus A[N] if `with_global`: `(batch, levels - 1)` → `(batch, hidden)`."""
        local = weights.to(self.levels.dtype) @ self.levels[:-1]
        return self.levels[-1] + local if with_global else local

    def gate_weights(self, similarity: Tensor) -> Tensor:
        """softmax(MLP(s)) of similarity maps on the gate's grid, `(batch, grid²)` → `(batch, levels - 1)`."""
        # Weights in 4 or 8 bits are whole numbers, in which the similarity cannot be; biases are never quantised.
        dtype = next(part.dtype for part in self.gate.parameters() if part.is_floating_point())
        logits = self.gate(similarity.to(dtype))
        return torch.softmax(logits.float(), dim=-1)

    def sample_similarity(self, image_tokens: Tensor, text: Tensor, sample_of_image: Tensor | None) -> Tensor:
        """The similarity map of each sample on the gate's grid, `(batch, grid²)`; zero for samples without an image."""
        if sample_of_image is None:
            return resample_map(similarity_map(image_tokens, text), self.gate_grid)
        maps = resample_map(similarity_map(image_tokens, text[sample_of_image]), self.gate_grid)
        batch = text.shape[0]
        images_of_sample = maps.new_zeros(batch).index_add(0, sample_of_image, maps.new_ones(len(maps)))
        summed = maps.new_zeros(batch, maps.shape[1]).index_add(0, sample_of_image, maps)
        return summed / images_of_sample.clamp(min=1).unsqueeze(-1)

    def extra_repr(self) -> str:
        return f"num_levels={self.num_levels}, gate_grid={self.gate_grid}"


def is_as_drawn(levels: Tensor) -> bool:
    """Whether a level table `(levels, hidden)` fills the range of its Xavier-uniform draw, which training leaves."""
    bound = math.sqrt(6 / sum(levels.shape))
    # bfloat16 may round up by 1/512.
    return 0.9 * bound < float(levels.abs().max()) <= bound * (1 + 1 / 512)


def mean_text_embedding(
    text_embeds: Tensor, mask: Tensor, sample_of_token: Tensor | None = None, samples: int | None = None
) -> Tensor:
    """t: mean of the embeddings selected by `mask`, `(batch, length, hidden)`, `(batch, length)` → `(samples, hidden)`.

    Masked positions, such as padding, cannot change the result. A sample without selected tokens gets zero.

    Args:
        text_embeds: `(batch, length, hidden)`.
        mask: `(batch, length)`.
        sample_of_token: index of the sample of each token, `(batch, length)`; the row index if None.
        samples: number of samples.
    """
    chosen = mask.bool().unsqueeze(-1)
    kept = torch.where(chosen, text_embeds, text_embeds.new_zeros(()))
    # In single precision: half precision is too coarse for sums over more than a few hundred tokens.
    if sample_of_token is None or samples is None:
        total, count = kept.sum(dim=1, dtype=torch.float32), chosen.sum(dim=1)
    else:
        of_token = sample_of_token.flatten()
        total = kept.new_zeros(samples, kept.shape[-1], dtype=torch.float32)
        total = total.index_add(0, of_token, kept.flatten(0, 1).float())
        count = of_token.new_zeros(samples, 1).index_add(0, of_token, chosen.flatten(0, 1).long())
    return (total / count.clamp(min=1)).to(text_embeds.dtype)


def similarity_map(image_tokens: Tensor, text: Tensor) -> Tensor:
    """s_j = <H_v[j], t>: `(images, P, hidden)`, `(images, hidden)` → `(images, P)`."""
    return torch.einsum("npd,nd->np", image_tokens, text.to(image_tokens.dtype))


def resample_map(similarity: Tensor, grid: int) -> Tensor:
    """Resample maps of P image tokens to `grid × grid`: `(images, P)` → `(images, grid²)`.

    If P is a square, maps are resampled in two dimensions (bilinear, with anti-aliasing if they shrink), otherwise in
    one. At P = grid² they are returned unchanged.
    """
    tokens = similarity.shape[-1]
    if tokens == grid * grid:
        return similarity
    side = math.isqrt(tokens)
    if side * side == tokens:
        picture = similarity.float().unflatten(-1, (1, side, side))
        resized = F.interpolate(picture, size=(grid, grid), mode="bilinear", antialias=side > grid)
        return resized.flatten(1).to(similarity.dtype)
    line = F.interpolate(similarity.float().unsqueeze(1), size=grid * grid, mode="linear")
    return line.squeeze(1).to(similarity.dtype)
