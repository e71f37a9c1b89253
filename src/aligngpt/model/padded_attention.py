"""torch's attention for padded rows, without looking whether a batch has padding.

transformers leaves the mask out of a batch that has no padding, but to find out it reads the mask's values, which waits
for a GPU in every forward pass. Registered under `NAME`, the same attention always gets its mask.
"""

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "aligngpt_padded"


def padded_mask(*args: Any, **kwargs: Any) -> Tensor:
    """The mask of `sdpa_mask`, never None: boolean `(batch, 1, queries, keys)`."""
    mask: Tensor = sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
    return mask


AttentionInterface.register(NAME, sdpa_attention_forward)
AttentionMaskInterface.register(NAME, padded_mask)
