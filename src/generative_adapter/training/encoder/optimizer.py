"""The optimiser of a generator with an encoder: Muon or AdamW for matrices, AdamW for the rest, rates of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.training.optimizers import CombinedOptimizer
from generative_adapter.training.processes import Processes
from generative_adapter.training.recipe import TrainingRecipe

_SCALAR_RATE = 10.0  # of strengths and biases that are one number, beside matrices
_UNIT_QUERY_RATE = 3.0  # entries of units' queries are larger than those of linear reads
_UNIT_STRENGTH_RATE = 60.0  # numbers of about 4 and 8


def make_optimizer(
    recipe: TrainingRecipe, generator: EncoderGenerator, parameters: Sequence[nn.Parameter]
) -> CombinedOptimizer:
    """A new optimiser of some of a generator's parameters.

    Args:
        recipe: names the optimiser of matrices, weight decay and betas.
        generator: tells which parameters are queries and strengths of units.
        parameters: those that are trained.
    """
    from torch.optim import Muon

    rates: dict[int, float] = {}
    for block in generator.unit_blocks:
        rates[id(block.query_proj)] = _UNIT_QUERY_RATE
        rates |= dict.fromkeys((id(block.gate_strength), id(block.up_strength)), _UNIT_STRENGTH_RATE)
    groups: dict[str, list[dict[str, Any]]] = {"matrices": [], "others": []}
    for parameter in parameters:
        kind = "matrices" if parameter.ndim > 1 else "others"
        rate = rates.get(id(parameter), _SCALAR_RATE if parameter.numel() == 1 else 1.0)
        decay = recipe.weight_decay if kind == "matrices" else 0.0
        groups[kind].append({"params": [parameter], "rate": rate, "weight_decay": decay})
    if recipe.optimizer != "muon":
        groups["others"] += groups.pop("matrices")
    first, second = recipe.adam_betas
    optimizers: list[Any] = [AdamW(groups["others"], lr=0.0, betas=(first, second))]
    if "matrices" in groups:
        optimizers.append(Muon(groups["matrices"], lr=0.0, adjust_lr_fn="match_rms_adamw"))
    return CombinedOptimizer(optimizers)


def average_gradients(parameters: Sequence[nn.Parameter], processes: Processes) -> None:
    """Averages gradients over all processes; a parameter without one has zeros, so that all send as much."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if processes.size == 1:
        return
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    torch.distributed.all_reduce(flat)
    flat /= processes.size
    at = 0
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.copy_(flat[at : at + parameter.numel()].view_as(parameter))
        at += parameter.numel()
