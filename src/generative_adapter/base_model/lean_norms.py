"""The RMSNorms of a base model with a backward of few operations, while a pass with gradients runs.

Leaves out: norms of another form, such as Gemma's with 1 + weight; they stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from generative_adapter.generator.unit_rms import unit_rms


def find_plain_norms(model: nn.Module) -> list[nn.Module]:
    """The norms of a model that compute weight * x / sqrt(mean(x^2) + epsilon).

    The first norm of each class is tried out, since names alone don't tell.
    """
    plain: dict[type[nn.Module], bool] = {}
    found = []
    for module in model.modules():
        kind = type(module)
        if not kind.__name__.endswith("RMSNorm") or type(getattr(module, "weight", None)) is not nn.Parameter:
            continue
        if kind not in plain:
            plain[kind] = _is_plain(module)
        if plain[kind]:
            found.append(module)
    return found


@contextmanager
def lean_norms(norms: Sequence[nn.Module]) -> Iterator[None]:
    """While open, these norms give what they give, with less work in the backward pass.

    Args:
        norms: found by `find_plain_norms`.
    """
    with ExitStack() as stack:
        for norm in norms:
            if "forward" not in norm.__dict__:  # else a wrapper's, such as Accelerate's
                stack.callback(norm.__dict__.pop, "forward", None)
                norm.forward = _lean(norm)
        yield


def _lean(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    epsilon = _epsilon(norm)
    assert epsilon is not None

    def forward(hidden_states: Tensor) -> Tensor:
        weight = norm.weight
        assert isinstance(weight, Tensor)
        return weight * unit_rms(hidden_states, epsilon)

    return forward


def _epsilon(norm: nn.Module) -> float | None:
    for name in ("variance_epsilon", "eps"):
        value = getattr(norm, name, None)
        if isinstance(value, float):
            return value
    return None


@torch.no_grad()
def _is_plain(norm: nn.Module) -> bool:
    weight = norm.weight
    assert isinstance(weight, Tensor)
    if _epsilon(norm) is None or weight.ndim != 1 or weight.device.type == "meta" or not weight.numel():
        return False  # without numbers where a model is sharded, which are there only while it runs
    width = len(weight)
    # Small numbers, so that an epsilon of another size or in another place shows.
    probe = torch.linspace(-3e-3, 5e-3, 2 * width, device=weight.device).view(2, width).to(weight.dtype)
    expected = norm(probe)
    given = _lean(norm)(probe)
    close = 4 * torch.finfo(weight.dtype).eps
    return expected.dtype == given.dtype and torch.allclose(given, expected, rtol=close, atol=close)
