"""AdamW, and Muon for the projections beside it; learning rates mean the same for both.

Leaves out: schedules (`recipe.learning_rate_at`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from generative_adapter.errors import MissingDependencyError
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.recipe import TrainingRecipe

# torch's `match_rms_adamw` gives an update of RMS 0.2 at learning rate 1; AdamW's early updates have RMS 1.
_MUON_FACTOR = 5.0


@dataclass(frozen=True)
class WhitenedSteps:
    """Steps of a projection W in whitened coordinates: an optimiser moves D from zero by the gradient G P, W gets D P.

    Attributes:
        parameter: W, `[..., d]`.
        step: D, of W's shape, the optimiser's parameter.
        whitener: P, symmetric, `[d, d]`.
        rate: size of a step at learning rate 1: the root mean square of W P^-1 when training starts.
    """

    parameter: nn.Parameter
    step: nn.Parameter
    whitener: Tensor
    rate: float

    @classmethod
    def of(cls, parameter: nn.Parameter, whitener: Tensor) -> WhitenedSteps:
        """Steps of one projection; one that starts at zero moves as a tenth of a new projection would."""
        whitened = torch.linalg.solve(whitener.double(), parameter.detach().double().mT)
        least = 0.1 / parameter.shape[-1] ** 0.5
        rate = max(least, whitened.square().mean().sqrt().item())
        return cls(parameter, nn.Parameter(torch.zeros_like(parameter)), whitener.to(parameter), rate)

    def give_gradient(self) -> None:
        """Gives the optimiser's parameter its gradient."""
        self.step.grad = None if self.parameter.grad is None else self.parameter.grad @ self.whitener

    @torch.no_grad()
    def apply(self) -> None:
        """Moves the projection by what the optimiser did."""
        self.parameter.add_(self.step @ self.whitener)
        self.step.zero_()


class CombinedOptimizer:
    """Several optimisers that own different parameters, used as one.

    Args:
        optimizers: they own the parameters, or the steps of `whitened` ones.
        whitened: parameters that move in whitened coordinates.
    """

    def __init__(self, optimizers: list[Optimizer], whitened: Sequence[WhitenedSteps] = ()) -> None:
        self.optimizers = optimizers
        self.whitened = tuple(whitened)
        self._factors = [_MUON_FACTOR if type(optimizer).__name__ == "Muon" else 1.0 for optimizer in optimizers]
        self.state: MutableMapping[nn.Parameter, dict[str, Any]] = _States(optimizers, self.whitened)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of the parameters that are moved, those in whitened coordinates by their own names."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return [*groups, {"params": [each.parameter for each in self.whitened]}]

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the learning rate of every group, in AdamW's units."""
        for optimizer, factor in zip(self.optimizers, self._factors, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * factor * group["rate"]

    @torch.no_grad()
    def step(self) -> None:
        """One step of each."""
        for each in self.whitened:
            each.give_gradient()
        for optimizer in self.optimizers:
            optimizer.step()
        for each in self.whitened:
            each.apply()

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for each in self.whitened:
            each.parameter.grad = None


class _States(MutableMapping[nn.Parameter, "dict[str, Any]"]):
    """Per-parameter states, each kept by the optimiser that owns the parameter."""

    def __init__(self, optimizers: list[Optimizer], whitened: Sequence[WhitenedSteps]) -> None:
        owned = {p: (o, p) for o in optimizers for group in o.param_groups for p in group["params"]}
        for each in whitened:  # the state of a step is its parameter's
            owned[each.parameter] = owned.pop(each.step)
        self._owners = owned

    def __getitem__(self, parameter: nn.Parameter) -> dict[str, Any]:
        owner, own = self._owners[parameter]
        if own not in owner.state:
            raise KeyError("this parameter has no optimiser state yet")
        return owner.state[own]

    def __setitem__(self, parameter: nn.Parameter, value: dict[str, Any]) -> None:
        owner, own = self._owners[parameter]
        owner.state[own] = value

    def __delitem__(self, parameter: nn.Parameter) -> None:
        owner, own = self._owners[parameter]
        del owner.state[own]

    def __iter__(self) -> Iterator[nn.Parameter]:
        return (parameter for parameter, (owner, own) in self._owners.items() if own in owner.state)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def build_optimizer(
    recipe: TrainingRecipe, generator: AdapterGenerator, whiteners: Mapping[str, Tensor] | None = None
) -> CombinedOptimizer:
    """The recipe's optimiser: `adamw` for everything, or `muon` for the projections and AdamW for the norms.

    Args:
        recipe: its settings.
        generator: what is trained.
        whiteners: parameter name -> P for those that move in whitened coordinates, in proportion to their size and
            without weight decay.

    Raises:
        MissingDependencyError: when Muon is asked for and this torch has none.
    """
    whitened: list[WhitenedSteps] = []
    groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    plain: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in generator.named_parameters():
        rate = 1.0 if name.endswith(".output_proj") else recipe.memory_rate
        if whiteners and name in whiteners:
            own = WhitenedSteps.of(parameter, whiteners[name])
            whitened.append(own)
            groups[True].append({"params": [own.step], "rate": rate * own.rate, "weight_decay": 0.0})
        else:
            plain.setdefault((parameter.ndim > 1, rate), []).append(parameter)
    for (projections, rate), parameters in plain.items():
        decay = recipe.weight_decay if projections else 0.0
        groups[projections].append({"params": parameters, "rate": rate, "weight_decay": decay})
    first, second = recipe.adam_betas
    optimizers: list[Optimizer] = []
    if recipe.optimizer == "muon":
        try:
            from torch.optim import Muon
        except ImportError as error:
            raise MissingDependencyError(
                f"optimizer: muon needs torch 2.9 or newer, this is {torch.__version__}; pip install 'torch>=2.9'"
            ) from error
        optimizers.append(Muon(groups.pop(True), lr=0.0, adjust_lr_fn="match_rms_adamw"))
    if adam_groups := [group for each in groups.values() for group in each]:
        optimizers.append(AdamW(adam_groups, lr=0.0, betas=(first, second)))
    return CombinedOptimizer(optimizers, whitened)
