"""Optimisers by name, with the parameters of a stage grouped by learning rate."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Adafactor, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.trainer_pt_utils import get_parameter_names

from aligngpt.errors import AlignGPTError
from aligngpt.training.recipe import Part, StageRecipe
from aligngpt.training.setup.compiling import check_compiler
from aligngpt.training.setup.freezing import part_of
from aligngpt.training.setup.parameter_summary import learning_rate
from aligngpt.training.setup.quantization import bitsandbytes_for

ORDER: tuple[Part, ...] = ("language_model", "vision_tower", "projector", "level_table", "gate")
"""Order of the parameter groups. The learning rate of the first group is the one in metrics.jsonl."""
WITH_MATRICES: tuple[Part, ...] = ("language_model", "projector")
"""Parts whose hidden layers Muon trains."""
WITHOUT_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Names of parameters that do not decay, besides those of `nn.LayerNorm`; from `Trainer.get_decay_parameter_names`."""


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon) for matrices and AdamW for the rest, as one optimiser.

    Muon's updates are scaled to the magnitude of AdamW's (arXiv 2502.16982), so that one learning rate fits both.

    Args:
        matrices: groups of two-dimensional parameters, with their `lr`.
        others: groups of any parameters, with their `lr`.
        betas: of AdamW.
        weight_decay: of both.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        others: list[dict[str, Any]],
        *,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        # torch's optimisers refuse an empty list of groups.
        # The annotation is the base class's: Muon's own `step` has no type hints.
        self.muon: torch.optim.Optimizer | None = (
            torch.optim.Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw") if matrices else None
        )
        self.adamw = torch.optim.AdamW(others, betas=betas, weight_decay=weight_decay, fused=True) if others else None
        groups = [group for one in (self.muon, self.adamw) if one is not None for group in one.param_groups]
        super().__init__(groups, {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with both optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in (self.muon, self.adamw):
            if one is not None:
                # Loading a checkpoint replaces the groups and state of this object, but not of the inner optimisers.
                one.param_groups = [group for group in self.param_groups if ("ns_steps" in group) is (one is self.muon)]
                one.state = self.state
                one.step()
        return loss


def make_optimizer(model: PreTrainedModel, stage: StageRecipe) -> torch.optim.Optimizer:
    """The optimiser named by a stage, over the trainable parameters of `model`.

    `weight_decay` applies to all optimisers, except to biases and norms (see `parameter_groups`); `adam_betas` applies
    to AdamW, and its first value is the momentum of SGD.

    Raises:
        AlignGPTError: the optimiser is not installed.
    """
    groups = parameter_groups(model, stage)
    decay, betas = stage.weight_decay, stage.adam_betas
    if stage.optimizer == "adamw_8bit":
        optimizer: torch.optim.Optimizer = bitsandbytes_for("optimizer adamw_8bit", "set it to adamw").optim.AdamW8bit(
            groups, betas=betas, weight_decay=decay
        )
        return optimizer
    if stage.optimizer == "adamw_torch_8bit":
        check_compiler("optimizer adamw_torch_8bit", model.device, "set it to adamw")
        rounded = stage.weight_precision == "bfloat16"
        compiled: torch.optim.Optimizer = _torchao_optim().AdamW8bit(
            groups, betas=betas, weight_decay=decay, bf16_stochastic_round=rounded
        )
        return compiled
    if stage.optimizer == "adafactor":
        return Adafactor(groups, scale_parameter=False, relative_step=False, weight_decay=decay)
    if stage.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=betas[0], weight_decay=decay)
    if stage.optimizer == "muon":
        matrices = hidden_matrices(model)
        return MuonWithAdamW(
            _only(groups, lambda parameter: id(parameter) in matrices),
            _only(groups, lambda parameter: id(parameter) not in matrices),
            betas=betas,
            weight_decay=decay,
        )
    return torch.optim.AdamW(groups, betas=betas, weight_decay=decay, fused=True)


def parameter_groups(model: nn.Module, stage: StageRecipe) -> list[dict[str, Any]]:
    """The trainable parameters, one group per learning rate and weight decay: `params`, `lr` and `weight_decay`.

    As in transformers' Trainer, and so in LLaVA's, biases and the weights of norms do not decay.
    """
    by_part: dict[Part, list[tuple[str, nn.Parameter]]] = {part: [] for part in ORDER}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_part[part_of(name)].append((name, parameter))
    decaying = set(get_parameter_names(model, [nn.LayerNorm], WITHOUT_DECAY)) if stage.weight_decay else set()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for part, parameters in by_part.items():
        for name, parameter in parameters:
            decay = stage.weight_decay if name in decaying else 0.0
            groups.setdefault((learning_rate(part, stage), decay), []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def hidden_matrices(model: PreTrainedModel) -> set[int]:
    """The `id` of each weight that Muon trains: linear layers in the language model and the projector.

    The head is excluded: it acts as an embedding (and may be the same tensor as the input embedding).
    """
    head = model.get_output_embeddings()
    return {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head and part_of(f"{name}.weight") in WITH_MATRICES
    }


def _torchao_optim() -> Any:
    """torchao's optimisers, an optional dependency.

    Raises:
        AlignGPTError: it is not installed.
    """
    try:
        from torchao import optim
    except ImportError as error:
        raise AlignGPTError(
            "optimizer adamw_torch_8bit needs torchao: pip install torchao, or set it to adamw"
        ) from error
    return optim


def _only(groups: list[dict[str, Any]], wanted: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
    chosen = [group | {"params": [one for one in group["params"] if wanted(one)]} for group in groups]
    return [group for group in chosen if group["params"]]
