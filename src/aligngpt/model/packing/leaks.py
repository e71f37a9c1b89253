"""Whether a language model computes the same for the samples of a packed row as for each alone.

Tested on a few tokens rather than looked up: a model may or may not pass what it is given on to its attention, and may
have other layers than attention, such as convolutions, that read across samples.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from aligngpt.model.packing.attention import NAME, packed_attention
from aligngpt.model.packing.pieces import PROBE, Piece, Pieces

TOLERANCE = {True: 1e-4, False: 0.05}
"""Relative tolerance of a comparison with samples apart, keyed by whether the precision is single (or lower)."""

LISTENING = f"{NAME}_listening"
"""Name under which transformers knows the attention function of `_tells_windows`."""

WINDOWED = "sliding_attention"
"""What transformers calls a layer with a sliding window."""

SMALL = 1e-3
"""Factor of the embeddings in the second test: what a layer adds then outweighs what passes it by."""


def can_pack(language_model: PreTrainedModel, length: int) -> bool:
    """Whether a language model computes the same for packed samples of up to `length` tokens as for each alone."""
    config = language_model.config
    if language_model._is_stateful or ((window := _window_of_masks(config)) and window < length):
        return False
    kind = config._attn_implementation
    try:
        if (window := shortest_window(config)) and window < length and not _tells_windows(language_model):
            return False
        language_model.set_attn_implementation(NAME)
        probe = Pieces(PROBE)
        return computes_as_alone(
            language_model,
            PROBE,
            together=lambda ids, positions: _run(
                language_model, ids, position_ids=positions, pieces=probe.to(ids.device)
            ),
            reference=lambda ids: _as(language_model, kind, ids),
        )
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # Language models that do not support the attention or its arguments may raise anything.
        return False
    finally:
        language_model.set_attn_implementation(kind)


def _tells_windows(language_model: PreTrainedModel) -> bool:
    """Whether each layer with a sliding window tells the attention function its width, so that it can be kept."""
    config, told = language_model.config, []

    def listening(*args: Any, sliding_window: int | None = None, **kwargs: Any) -> tuple[Tensor, None]:
        told.append(sliding_window)
        return packed_attention(*args, sliding_window=sliding_window, **kwargs)

    AttentionInterface.register(LISTENING, listening)
    language_model.set_attn_implementation(LISTENING)
    length = PROBE[-1].stop
    ids = torch.zeros(1, length, dtype=torch.long, device=language_model.device)
    with torch.no_grad():
        _run(language_model, ids, pieces=Pieces([Piece(0, length, 0, 0)]).to(ids.device))
    kinds = getattr(config, "layer_types", None) or [WINDOWED] * config.num_hidden_layers
    return told == [config.sliding_window if kind == WINDOWED else None for kind in kinds]


def _window_of_masks(config: PretrainedConfig) -> int | None:
    """The smallest window that layers are given as a mask, which packed rows do not have; None without."""
    return shortest_window(config, besides="sliding_window")


def shortest_window(config: PretrainedConfig, *, besides: str | None = None) -> int | None:
    """The smallest number of tokens that any layer attends to; None if the configuration sets no limit.

    A limit of the name `besides` is left out.

    Configurations call it `sliding_window`, `window_size`, `attention_chunk_size` and more, or `index_topk` if a
    layer selects the tokens it attends to; 0 means no limit.
    """
    found = [
        value
        for name, value in config.to_dict().items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 0 and _is_window(name) and name != besides
    ]
    return min(found, default=None)


def _is_window(name: str) -> bool:
    # Excludes settings that list the layers with a window or split a layer's computation into chunks.
    return name == "index_topk" or (
        ("window" in name or "chunk" in name)
        and not any(other in name for other in ("layers", "pattern", "feed_forward", "lm_head", "mamba"))
    )


def computes_as_alone(
    language_model: PreTrainedModel,
    pieces: Sequence[Piece],
    *,
    together: Callable[[Tensor, Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
) -> bool:
    """Whether pieces in one row have the same hidden states as each alone with its prefix, and see nothing else.

    Changing one piece must change the pieces that see it and leave all others bit-identical.

    Args:
        language_model: provides device and vocabulary size; in evaluation mode while this runs.
        pieces: the pieces of the row, as in `packed_attention`.
        together: returns the hidden states of a row, given ids and positions `(1, length)`.
        reference: returns the hidden states of one sequence, given ids `(1, length)`.
    """
    vocabulary, device = language_model.config.vocab_size, language_model.device
    length = pieces[-1].stop
    ids = torch.arange(length, device=device).unsqueeze(0) % (vocabulary - 1)
    positions = torch.cat([_places(piece)[piece.prefix_stop - piece.prefix_start :] for piece in pieces])
    positions = positions.unsqueeze(0).to(device)
    was_training = language_model.training
    language_model.eval()
    try:
        with torch.no_grad():
            found = together(ids, positions)[0]
            tolerance = TOLERANCE[found.dtype == torch.float32 and _multiplies_in_single(language_model)]
            if not _as_alone(found, ids, pieces, reference, tolerance):
                return False
            with _small_embeddings(language_model.get_input_embeddings()):
                small = _keeps_apart(ids, positions, pieces, together, vocabulary)
            return small and _keeps_apart(ids, positions, pieces, together, vocabulary)
    finally:
        language_model.train(was_training)


def _multiplies_in_single(language_model: PreTrainedModel) -> bool:
    """Whether no layer has a lower precision of its own, as those in 4 bits do."""
    own = (getattr(module, "compute_dtype", None) for module in language_model.modules())
    return all(dtype in (None, torch.float32) for dtype in own)


def _as_alone(
    found: Tensor,
    ids: Tensor,
    pieces: Sequence[Piece],
    reference: Callable[[Tensor], Tensor],
    tolerance: float,
) -> bool:
    for piece in pieces:
        before, own = slice(piece.prefix_start, piece.prefix_stop), slice(piece.start, piece.stop)
        expected = reference(torch.cat([ids[:, before], ids[:, own]], dim=1))[0, piece.prefix :]
        if not (found[own] - expected).norm() <= tolerance * expected.norm():
            return False
    return True


def _keeps_apart(
    ids: Tensor,
    positions: Tensor,
    pieces: Sequence[Piece],
    together: Callable[[Tensor, Tensor], Tensor],
    vocabulary: int,
) -> bool:
    """Whether changing one piece changes what sees it, and no bit of all else."""
    found = together(ids, positions)[0]
    for piece in pieces:
        own = slice(piece.start, piece.stop)
        changed = ids.clone()
        changed[0, own] = (changed[0, own] + 1) % vocabulary
        difference = (together(changed, positions)[0] - found).norm(dim=-1)
        for other in pieces:
            sees = other == piece or (other.prefix_start, other.prefix_stop) == (piece.start, piece.stop)
            of_other = difference[other.start : other.stop]
            if sees and not (of_other > 0).all():
                return False
            # Experts are computed in groups, whose size may change the last bit of other tokens.
            exact = found.dtype == torch.float32
            rounding = 1e-5 * found[other.start : other.stop].norm(dim=-1) if exact else 0
            if not sees and (of_other > rounding).any():
                return False
    return True


@contextmanager
def _small_embeddings(embeddings: nn.Module) -> Iterator[None]:
    """Scale what enters the first layer.

    What a layer adds to its input is large beside the input then. Otherwise a leak through one layer may be smaller
    than the last bit of what it is added to, in half precision above all.
    """
    hook = embeddings.register_forward_hook(lambda module, args, output: SMALL * output)
    try:
        yield
    finally:
        hook.remove()


def _places(piece: Piece) -> Tensor:
    return torch.arange(piece.prefix_stop - piece.prefix_start + piece.stop - piece.start)


def _as(language_model: PreTrainedModel, kind: str, ids: Tensor) -> Tensor:
    language_model.set_attn_implementation(kind)
    try:
        return _run(language_model, ids)
    finally:
        language_model.set_attn_implementation(NAME)


def _run(language_model: PreTrainedModel, ids: Tensor, **inputs: object) -> Tensor:
    return language_model(input_ids=ids, use_cache=False, **inputs).last_hidden_state
