"""One decoding step of a Llama-like language model in a third of the operations.

At batch 1, half of the time of a step goes into starting small operations rather than into reading the weights. Here
the projections of queries, keys and values are one matrix product, so are gate and up; normalisation is one operation;
queries and keys are rotated together; keys and values are written in place. The result is the model's own up to
rounding, which is checked with the model itself before it is relied on.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaModel, MistralModel, Qwen2Model, Qwen3Model

from aligngpt.inference.generation.cache import PooledCache, PooledLayer
from aligngpt.inference.generation.products import InPlaceOf, Product, order_all
from aligngpt.model.modeling import AlignGPTForConditionalGeneration

FAMILIES = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
"""Their layers differ in nothing but biases and the normalisation of queries and keys."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""Largest difference of a logit from the model's own, as a share of the largest logit."""


@dataclass(frozen=True)
class _Layer:
    norm: tuple[Tensor, float]
    qkv: Product
    query_norm: tuple[Tensor, float] | None
    key_norm: tuple[Tensor, float] | None
    out: Product
    after_norm: tuple[Tensor, float]
    gate_up: Product
    act: nn.Module
    down: Product
    heads: int
    groups: int
    scaling: float


class FastStep:
    """Decoding steps of one model.

    The weights of joined projections are moved into one tensor each, of which the model's own parameters become parts:
    no memory is taken.

    Args:
        model: see `of`, which decides whether it can be done.
    """

    def __init__(self, model: AlignGPTForConditionalGeneration) -> None:
        self.model = model
        self.text = model.model.language_model
        self.layers = [_layer(layer) for layer in self.text.layers]
        self.final = _norm(self.text.norm)
        self.head = Product(model.lm_head.weight, model.lm_head.bias)
        self._ordered = False
        # Beyond it, some layers attend to the latest tokens only, which only the model's own step knows.
        self.window: int | None = getattr(self.text.config, "sliding_window", None)

    @classmethod
    def of(cls, model: AlignGPTForConditionalGeneration) -> "FastStep | None":
        """The step of a model; None if its language model is of another kind, quantised, or on several devices."""
        if type(model.model.language_model) not in FAMILIES or not _is_plain(model) or _is_watched(model):
            return None
        # The model's weights become parts of the joined ones, and autograd refuses tensors of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            step = cls(model)
        with torch.inference_mode():
            return step if step._agrees() else None

    def applies(self, length: int) -> bool:
        """Whether all `length` tokens are within the attention window, and nobody watches the modules passed by."""
        return (self.window is None or length <= self.window) and not _is_watched(self.model)

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: PooledCache) -> Tensor:
        """Append a token to each row of a cache.

        Args:
            ids: `(rows, 1)`; never a placeholder.
            positions: `(rows, 1)`.
            mask: `(rows, cached + 1)`, zero at padding; None if there is none.
            cache: is extended in place.

        Returns:
            Logits `(rows, vocabulary)`.
        """
        hidden = self.text.embed_tokens(ids)
        cosine, sine = self.text.rotary_emb(hidden, position_ids=positions)
        half = sine.shape[-1] // 2
        signed = torch.cat([-sine[..., :half], sine[..., half:]], dim=-1)
        allowed = None if mask is None else mask.bool()[:, None, None, :]
        hidden = hidden.squeeze(1)
        for number, layer in enumerate(self.layers):
            normed = F.rms_norm(hidden, hidden.shape[-1:], *layer.norm)
            attended = _attend(layer, normed, cosine, signed, allowed, cache.layers[number])
            hidden = hidden + layer.out(attended)
            normed = F.rms_norm(hidden, hidden.shape[-1:], *layer.after_norm)
            gate, up = layer.gate_up(normed).chunk(2, dim=-1)
            hidden = hidden + layer.down(layer.act(gate) * up)
        hidden = F.rms_norm(hidden, hidden.shape[-1:], *self.final)
        with InPlaceOf(self.head):
            logits: Tensor = self.model._logits(hidden)
        return logits

    def order_weights(self) -> None:
        """Make steps faster by copies of all weights, if there is memory for them; once."""
        if not self._ordered:
            self._ordered = True
            order_all(
                [
                    self.head,
                    *(one for layer in self.layers for one in (layer.qkv, layer.out, layer.gate_up, layer.down)),
                ]
            )

    def _agrees(self) -> bool:
        """Whether a step gives the model's own logits, with and without padding."""
        generator = torch.Generator().manual_seed(0)
        words = min(self.text.config.vocab_size, *self.model.config.placeholder_ids)
        ids = torch.randint(max(1, words), (2, 6), generator=generator).to(self.model.device)
        for starts in ([0, 0], [0, 2]):
            caches = PooledCache(), PooledCache()
            first = torch.tensor(starts, device=ids.device).unsqueeze(1)
            places = torch.arange(5, device=ids.device)
            for cache in caches:
                self.model(
                    input_ids=ids[:, :5],
                    attention_mask=(places >= first).long(),
                    position_ids=(places - first).clamp(min=0),
                    cache=cache,
                    use_cache=True,
                )
                cache.starts = list(starts)
            positions, mask = caches[0].positions(ids.device), caches[0].mask(ids.device)
            own = self(ids[:, 5:], positions, mask, caches[0])
            expected = self.model(
                input_ids=ids[:, 5:], attention_mask=mask, position_ids=positions, cache=caches[1], use_cache=True
            ).logits[:, -1]
            finite = expected.isfinite()
            if not torch.equal(finite, own.isfinite()):
                return False
            difference = (own - expected)[finite].abs().max()
            if not difference <= TOLERANCE.get(own.dtype, 0.0) * expected[finite].abs().max():
                return False
        return True


def _is_plain(model: AlignGPTForConditionalGeneration) -> bool:
    """Whether the language model is what its class says: not quantised, adapted or spread over devices."""
    text = model.model.language_model
    linear = [part for part in text.modules() if isinstance(part, nn.Linear) or hasattr(part, "lora_A")]
    return (
        all(type(part) is nn.Linear for part in linear)
        and {parameter.device for parameter in text.parameters()} == {model.device}
        and {parameter.dtype for parameter in text.parameters()} <= {model.dtype}
        and model.dtype.is_floating_point
    )


def _is_watched(model: AlignGPTForConditionalGeneration) -> bool:
    parts = (model.lm_head, model.model.language_model)
    return any(part._forward_hooks or part._forward_pre_hooks for part in parts)


def _attend(
    layer: _Layer, hidden: Tensor, cosine: Tensor, signed: Tensor, allowed: Tensor | None, cached: PooledLayer
) -> Tensor:
    """Attention of one new token per row, `(rows, hidden)` → `(rows, heads · width)`."""
    rows = len(hidden)
    both = layer.heads + layer.groups
    joined = layer.qkv(hidden).view(rows, both + layer.groups, -1)
    turned, value = joined[:, :both], joined[:, both:]
    if layer.query_norm is not None and layer.key_norm is not None:
        query, key = turned[:, : layer.heads], turned[:, layer.heads :]
        turned = torch.cat(
            [
                F.rms_norm(query, query.shape[-1:], *layer.query_norm),
                F.rms_norm(key, key.shape[-1:], *layer.key_norm),
            ],
            dim=1,
        )
    width = turned.shape[-1]
    turned = torch.addcmul(turned * cosine, torch.roll(turned, width // 2, -1), signed)
    query, key = turned[:, : layer.heads], turned[:, layer.heads :]
    keys, values = cached.update(key.unsqueeze(2), value.unsqueeze(2))
    # The queries that share a key are given as if they were successive tokens.
    attended = F.scaled_dot_product_attention(
        query.reshape(rows, layer.groups, -1, width), keys, values, attn_mask=allowed, scale=layer.scaling
    )
    return attended.reshape(rows, -1)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    heads, groups = (part.weight.shape[0] // attention.head_dim for part in (attention.q_proj, attention.k_proj))
    return _Layer(
        norm=_norm(layer.input_layernorm),
        qkv=_joined(attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        out=Product(attention.o_proj.weight, attention.o_proj.bias),
        after_norm=_norm(layer.post_attention_layernorm),
        gate_up=_joined(mlp.gate_proj, mlp.up_proj),
        act=mlp.act_fn,
        down=Product(mlp.down_proj.weight, mlp.down_proj.bias),
        heads=heads,
        groups=groups,
        scaling=attention.scaling,
    )


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, module.variance_epsilon


def _joined(*parts: nn.Linear) -> Product:
    """The weights and biases of several projections in one tensor each, of which theirs become parts."""
    weight = torch.cat([part.weight.detach() for part in parts])
    biases = [part.bias for part in parts if part.bias is not None]
    bias = torch.cat([one.detach() for one in biases]) if biases else None
    start = 0
    for part in parts:
        end = start + part.weight.shape[0]
        part.weight.data = weight[start:end]
        if part.bias is not None and bias is not None:
            part.bias.data = bias[start:end]
        start = end
    return Product(weight, bias)
