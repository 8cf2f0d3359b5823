"""AdamW, and Muon for the projections beside it; learning rates mean the same for both.

Leaves out: schedules (`recipe.learning_rate_at`).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from generative_adapter.errors import MissingDependencyError
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.recipe import TrainingRecipe

# torch's `match_rms_adamw` gives an update of RMS 0.2 at learning rate 1; AdamW's early updates have RMS 1.
_MUON_FACTOR = 5.0


class CombinedOptimizer:
    """Several optimisers that own different parameters, used as one."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.optimizers = optimizers
        self._factors = [_MUON_FACTOR if type(optimizer).__name__ == "Muon" else 1.0 for optimizer in optimizers]
        self.state: MutableMapping[nn.Parameter, dict[str, Any]] = _States(optimizers)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the learning rate of every group, in AdamW's units."""
        for optimizer, factor in zip(self.optimizers, self._factors, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * factor * group["rate"]

    @torch.no_grad()
    def step(self) -> None:
        """One step of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


class _States(MutableMapping[nn.Parameter, "dict[str, Any]"]):
    """Per-parameter states, each kept by the optimiser that owns the parameter."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self._owners = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}

    def __getitem__(self, parameter: nn.Parameter) -> dict[str, Any]:
        state = self._owners[parameter].state
        if parameter not in state:
            raise KeyError("this parameter has no optimiser state yet")
        return state[parameter]

    def __setitem__(self, parameter: nn.Parameter, value: dict[str, Any]) -> None:
        self._owners[parameter].state[parameter] = value

    def __delitem__(self, parameter: nn.Parameter) -> None:
        del self._owners[parameter].state[parameter]

    def __iter__(self) -> Iterator[nn.Parameter]:
        return (parameter for parameter, owner in self._owners.items() if parameter in owner.state)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def build_optimizer(recipe: TrainingRecipe, generator: AdapterGenerator) -> CombinedOptimizer:
    """The recipe's optimiser: `adamw` for everything, or `muon` for the projections and AdamW for the norms.

    Raises:
        MissingDependencyError: when Muon is asked for and this torch has none.
    """
    rates: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in generator.named_parameters():
        slow = recipe.memory_rate != 1 and not name.endswith(".output_proj")
        rates.setdefault((parameter.ndim > 1, slow), []).append(parameter)

    def groups(projections: bool) -> list[dict[str, Any]]:
        sides = ((False, 1.0), (True, recipe.memory_rate))
        return [{"params": rates[projections, slow], "rate": r} for slow, r in sides if (projections, slow) in rates]

    first, second = recipe.adam_betas
    adam_groups = [{**group, "weight_decay": 0.0} for group in groups(False)]
    optimizers: list[Optimizer] = []
    if recipe.optimizer == "muon":
        try:
            from torch.optim import Muon
        except ImportError as error:
            raise MissingDependencyError(
                f"optimizer: muon needs torch 2.9 or newer, this is {torch.__version__}; pip install 'torch>=2.9'"
            ) from error
        optimizers.append(Muon(groups(True), lr=0.0, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"))
    else:
        adam_groups[:0] = [{**group, "weight_decay": recipe.weight_decay} for group in groups(True)]
    if adam_groups:
        optimizers.append(AdamW(adam_groups, lr=0.0, betas=(first, second)))
    return CombinedOptimizer(optimizers)
