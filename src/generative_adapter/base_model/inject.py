"""Lays adapters over a running model, one a row of the batch, and always takes them off again.

The base weights are never changed: hooks add `up (down x)` to a target's output. Leaves out: making adapters
(`generator`) and writing them to disk (`export`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from generative_adapter.base_model.targets import is_transposed, linear_shape
from generative_adapter.errors import AdapterError
from generative_adapter.generator.low_rank import LowRankAdapter

ModelT = TypeVar("ModelT", bound=nn.Module)


@contextmanager
def add_to_outputs(model: nn.Module, updates: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While open, adds `updates[name](x)` to the output of each named linear, x being its input.

    Raises:
        AdapterError: when the model has no such linear.
    """
    with ExitStack() as stack:
        for name, update in updates.items():
            module = find_linear(model, name)

            def hook(
                _module: nn.Module,
                args: tuple[Any, ...],
                output: Tensor,
                update: Callable[[Tensor], Tensor] = update,
            ) -> Tensor:
                return output + update(args[0])

            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def inject(model: nn.Module, adapters: LowRankAdapter | Sequence[LowRankAdapter | None]) -> Iterator[None]:
    """While open, the model runs as base + adapter (Theta_base + Delta_t); afterwards it is what it was.

    Args:
        model: the base model.
        adapters: one adapter for all rows, or one a row of the batch; None leaves a row at the plain base model.

    Raises:
        AdapterError: when an adapter doesn't fit the model, or (while running) the batch has another number of rows.
    """
    if isinstance(adapters, LowRankAdapter):
        updates = {name: _shared_update(model, name, adapters) for name in adapters}
    else:
        rows = list(adapters)
        names = {name: None for adapter in rows if adapter is not None for name in adapter}
        updates = {name: _row_update(model, name, rows) for name in names}
    with add_to_outputs(model, updates):
        yield


def merge(model: ModelT, adapter: LowRankAdapter) -> ModelT:
    """A copy of the model whose weights hold the adapter: W = W_base + W_delta, eq. (6); `model` is unchanged.

    Raises:
        AdapterError: when the adapter doesn't fit the model.
    """
    for name in adapter:
        _check_fit(model, name, adapter)
    merged = copy.deepcopy(model)
    with torch.no_grad():
        for name, factors in adapter.items():
            module = find_linear(merged, name)
            weight = module.weight
            assert isinstance(weight, Tensor)
            delta = (factors.up.float() @ factors.down.float()).to(weight.device)
            weight.copy_(weight.float() + (delta.mT if is_transposed(module) else delta))
    return merged


def find_linear(model: nn.Module, name: str) -> nn.Module:
    """The linear layer at a module path.

    Raises:
        AdapterError: when there is none.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise AdapterError(
            f"{type(model).__name__} has no layer {name!r}; the adapter was made for another base model"
        ) from error
    if linear_shape(module) is None:
        raise AdapterError(f"{name!r} of {type(model).__name__} is a {type(module).__name__}, not a linear layer")
    return module


def _check_fit(model: nn.Module, name: str, adapter: LowRankAdapter) -> nn.Module:
    module = find_linear(model, name)
    factors = adapter[name]
    given = (factors.down.shape[1], factors.up.shape[0])
    if given != linear_shape(module):
        raise AdapterError(f"{name!r}: the adapter maps {given[0]} -> {given[1]}, the layer {linear_shape(module)}")
    return module


def _shared_update(model: nn.Module, name: str, adapter: LowRankAdapter) -> Callable[[Tensor], Tensor]:
    weight = _check_fit(model, name, adapter).weight
    assert isinstance(weight, Tensor)
    down = adapter[name].down.to(weight).mT
    up = adapter[name].up.to(weight).mT
    return lambda inputs: (inputs @ down) @ up


def _row_update(model: nn.Module, name: str, rows: Sequence[LowRankAdapter | None]) -> Callable[[Tensor], Tensor]:
    module = find_linear(model, name)
    weight = module.weight
    shape = linear_shape(module)
    assert isinstance(weight, Tensor) and shape is not None
    rank = max(adapter[name].rank for adapter in rows if adapter is not None and name in adapter)
    down = weight.new_zeros(len(rows), rank, shape[0])
    up = weight.new_zeros(len(rows), shape[1], rank)
    for row, adapter in enumerate(rows):
        if adapter is not None and name in adapter:
            _check_fit(model, name, adapter)
            factors = adapter[name]
            down[row, : factors.rank] = factors.down.to(weight)
            up[row, :, : factors.rank] = factors.up.to(weight)

    def update(inputs: Tensor) -> Tensor:
        if inputs.shape[0] != len(rows):
            raise AdapterError(
                f"{len(rows)} adapters were injected, the batch has {inputs.shape[0]} rows; give one a row"
            )
        return (inputs @ down.mT) @ up.mT

    return update
