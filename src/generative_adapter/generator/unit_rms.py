"""Tokens scaled to a root mean square of one, with a backward of few operations.

Through automatic differentiation an RMSNorm keeps two float32 copies of its input and makes a dozen more on the way
back. Here the input is kept as it came. Leaves out: learned weights, which multiply the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def unit_rms(hidden: Tensor, epsilon: float = 1e-6) -> Tensor:
    """X / sqrt(mean(x^2) + epsilon) over the last axis, in the type of x; computed in float32 at least."""
    scaled: Tensor = _UnitRms.apply(hidden, epsilon)  # type: ignore[assignment]
    return scaled


class _UnitRms(torch.autograd.Function):
    """y = r x, r = (mean(x^2) + epsilon)^-1/2; for a gradient g of y that of x is r (g - y mean(y g))."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, epsilon: float) -> Tensor:
        exact = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        squares = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_()
        inverse = squares.div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden, inverse)
        return (exact * inverse).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        hidden, inverse = ctx.saved_tensors
        scaled = hidden * inverse
        gradient = gradients[0].to(scaled.dtype)
        along = (scaled * gradient).mean(-1, keepdim=True)
        return torch.addcmul(gradient, scaled, along, value=-1).mul_(inverse).to(hidden.dtype), None
