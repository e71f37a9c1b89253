"""The alignment module: a table of level embeddings and the gate that mixes them.

This is section 3 of the paper (arXiv 2405.14129) and nothing else: plain torch, no language model, no tokenizer.

    pre-training    a = A[level]                                  the level is known: it was measured
    instruction     s_j = <H_v[j], t>            j = 1…P          how much each image part has to do with the text
    tuning          w   = softmax(MLP(s))        (N-1)            how much of each local level this pair needs
                    a   = A[N] + Σ_{i<N} w_i A[i]                 the whole image, and the parts that matter
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AlignmentMode = Literal["adaptive", "global", "local", "mean", "none"]
ALIGNMENT_MODES: tuple[str, ...] = get_args(AlignmentMode)


class AlignmentOutput(NamedTuple):
    """What the alignment module returns: `embedding (batch, hidden)` and `weights (batch, levels - 1)`.

    `weights` are the mix of levels 1…N-1 that was used, or None where the embedding was formed without a mix.
    """

    embedding: Tensor
    weights: Tensor | None


class AlignmentModule(nn.Module):
    """Level table `A (levels, hidden)` and gate `MLP: P → hidden → levels - 1` (paper, section 3).

    The gate reads a similarity map of fixed size, `gate_grid × gate_grid`. Maps of towers with another number of
    image tokens are resampled to it; a map that has this size already is used as it is, so the published weights
    (576 image tokens, a 24 × 24 grid) give the published numbers.

    Args:
        num_levels: N, at least 2. Level N is the best aligned one.
        hidden_size: the width of the language model's embeddings.
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
        """Draw the level table anew, Xavier-uniform as in the paper's code."""
        nn.init.xavier_uniform_(self.levels)

    def forward(
        self,
        image_tokens: Tensor,
        text: Tensor,
        sample_of_image: Tensor | None = None,
        *,
        mode: str = "adaptive",
        level: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> AlignmentOutput:
        """Form one alignment embedding per sample.

        Args:
            image_tokens: projected image tokens H_v, `(images, P, hidden)`.
            text: mean text embedding t of each sample, `(batch, hidden)`, see `mean_text_embedding`.
            sample_of_image: which sample each image belongs to, `(images,)`; None when image i is sample i's only one.
                A sample with several images is gated by the mean of their similarity maps.
            mode: `adaptive` A[N] + Σ w_i A[i], `global` A[N], `local` Σ w_i A[i], `mean` the mean of the table.
            level: force a level 1…N for each sample, `(batch,)`: the embedding is A[level], as in pre-training.
            weights: use these in place of the gate's, `(batch, levels - 1)`.

        Returns:
            `AlignmentOutput`; rows of samples without an image hold values that nobody should use.

        Raises:
            ValueError: `mode` is not one of the above.
        """
        if level is not None:
            return AlignmentOutput(self.level_embedding(level), None)
        batch = text.shape[0]
        if mode == "global":
            return AlignmentOutput(self.levels[-1].expand(batch, -1), None)
        if mode == "mean":
            return AlignmentOutput(self.levels.mean(dim=0).expand(batch, -1), None)
        if mode not in ("adaptive", "local"):
            raise ValueError(f"alignment mode must be adaptive, global, local or mean, got {mode!r}")
        if weights is None:
            weights = self.gate_weights(self.sample_similarity(image_tokens, text, sample_of_image))
        return AlignmentOutput(self.combine(weights, with_global=mode == "adaptive"), weights)

    def level_embedding(self, level: Tensor) -> Tensor:
        """A[level] for levels 1…N, `(batch,)` → `(batch, hidden)`; others are an IndexError (on a GPU an assertion)."""
        # Indexing would take level 0 for the last one, the best.
        return F.embedding(level - 1, self.levels)

    def combine(self, weights: Tensor, *, with_global: bool = True) -> Tensor:
        """Σ_{i<N} w_i A[i], and A[N] on top where `with_global`: `(batch, levels - 1)` → `(batch, hidden)`."""
        local = weights.to(self.levels.dtype) @ self.levels[:-1]
        return self.levels[-1] + local if with_global else local

    def gate_weights(self, similarity: Tensor) -> Tensor:
        """softmax(MLP(s)) of similarity maps on the gate's own grid, `(batch, grid²)` → `(batch, levels - 1)`."""
        logits = self.gate(similarity.to(next(self.gate.parameters()).dtype))
        return torch.softmax(logits.float(), dim=-1)

    def sample_similarity(self, image_tokens: Tensor, text: Tensor, sample_of_image: Tensor | None) -> Tensor:
        """The similarity map of each sample on the gate's grid, `(batch, grid²)`; zero where there is no image."""
        if sample_of_image is None:
            return resample_map(similarity_map(image_tokens, text), self.gate_grid)
        maps = resample_map(similarity_map(image_tokens, text[sample_of_image]), self.gate_grid)
        batch = text.shape[0]
        images_of_sample = maps.new_zeros(batch).index_add(0, sample_of_image, maps.new_ones(len(maps)))
        summed = maps.new_zeros(batch, maps.shape[1]).index_add(0, sample_of_image, maps)
        return summed / images_of_sample.clamp(min=1).unsqueeze(-1)

    def extra_repr(self) -> str:
        return f"num_levels={self.num_levels}, gate_grid={self.gate_grid}"


def mean_text_embedding(
    text_embeds: Tensor, mask: Tensor, sample_of_token: Tensor | None = None, samples: int | None = None
) -> Tensor:
    """t: the mean of the embeddings `mask` selects, `(batch, length, hidden)`, `(batch, length)` → `(samples, hidden)`.

    What the mask leaves out, padding above all, cannot change the result. A sample with nothing selected gets zero.

    Args:
        text_embeds: `(batch, length, hidden)`.
        mask: `(batch, length)`.
        sample_of_token: which of the `samples` each token belongs to, `(batch, length)`; that of its row when None.
        samples: how many there are.
    """
    chosen = mask.bool().unsqueeze(-1)
    kept = torch.where(chosen, text_embeds, text_embeds.new_zeros(()))
    # In single precision: half precision cannot count beyond a few hundred tokens.
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
    """Bring maps of P image tokens to `grid × grid`: `(images, P)` → `(images, grid²)`.

    Maps of a square number of tokens are resampled as pictures (bilinear, with anti-aliasing where they shrink),
    others as lines. At P = grid² nothing is computed.
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
