"""The scaling against its formula, its gradient against finite differences and automatic differentiation."""

from __future__ import annotations

import pytest
import torch

from generative_adapter.generator.unit_rms import unit_rms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_formula(dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 5, 29, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    found = unit_rms(hidden, 0.1)
    exact = hidden.double()
    expected = exact / (exact.square().mean(-1, keepdim=True) + 0.1).sqrt()
    close = torch.finfo(dtype).eps
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=2 * close, atol=2 * close)
    probe = torch.randn(3, 5, 29, generator=torch.Generator().manual_seed(1)).to(dtype)
    (gradient,) = torch.autograd.grad(found, hidden, probe)
    (right,) = torch.autograd.grad(expected, hidden, probe.double())
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, right.to(dtype), rtol=2 * close, atol=4 * close)


def test_gradients_by_finite_differences() -> None:
    hidden = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unit_rms(x, 0.1), hidden)


def test_zeros_stay_zero() -> None:
    hidden = torch.zeros(2, 7, requires_grad=True)
    unit_rms(hidden).sum().backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()
    assert unit_rms(hidden).eq(0).all()
