"""Mixtures of experts on tensors that have shapes but no values, for the estimate of memory.

Which expert reads which token depends on values, so that transformers' own ways to compute experts do not run on such
tensors. Here the first expert reads all tokens: what autograd saves has the same sizes.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "first_expert"
"""Of this way in `config._experts_implementation`."""


def first_expert(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What a module of experts computes, with the first expert in place of each chosen one.

    Args:
        self: the module, as transformers' `use_experts_implementation` makes it.
        hidden_states: `(tokens, hidden)`.
        top_k_index, top_k_weights: experts of each token and their weights, `(tokens, k)`.
    """
    tokens, chosen = top_k_index.shape
    inner = self.gate_up_proj if self.has_gate else self.up_proj
    # Kernels for experts are not subject to autocast: they compute in the precision of the weights.
    with torch.autocast(hidden_states.device.type, enabled=False):
        states = _product(hidden_states.repeat_interleave(chosen, dim=0), inner, transposed=self.is_transposed)
        states = self._apply_gate(states) if self.has_gate else self.act_fn(states)
        states = _product(states, self.down_proj, transposed=self.is_transposed)
        if self.has_post_expert_norm:
            states = self.post_expert_norm(states)
        states = states * top_k_weights.reshape(-1, 1)
    return states.view(tokens, chosen, -1).sum(dim=1).to(hidden_states.dtype)


def _product(states: Tensor, weights: Tensor, *, transposed: bool) -> Tensor:
    weight = weights[0] if transposed else weights[0].T
    return states.to(weight.dtype) @ weight


ALL_EXPERTS_FUNCTIONS.register(NAME, first_expert)
