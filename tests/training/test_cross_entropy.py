"""Losses and gradients against torch's own cross-entropy of float32 copies, and against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generative_adapter.training import cross_entropy as module
from generative_adapter.training.cross_entropy import cross_entropy

ROWS, WORDS = 37, 101


@pytest.fixture(params=[1, 5 * WORDS, 2**20], ids=["row by row", "slices of five", "at once"], autouse=True)
def slice_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_SLICE", request.param)


def sample(dtype: torch.dtype, scale: float = 5.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and weights of the losses, some of them zero or negative."""
    random = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(ROWS, WORDS, generator=random)).to(dtype).requires_grad_()
    weights = torch.randn(ROWS, generator=random)
    weights[::4] = 0.0
    return logits, torch.randint(WORDS, (ROWS,), generator=random), weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [5.0, 300.0])
def test_equals_torch(dtype: torch.dtype, scale: float) -> None:
    logits, labels, weights = sample(dtype, scale)
    losses = cross_entropy(logits, labels)
    expected = F.cross_entropy(logits.float(), labels, reduction="none")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6 * scale)
    (gradient,) = torch.autograd.grad((weights * losses).sum(), logits)
    (right,) = torch.autograd.grad((weights * expected).sum(), logits)
    assert gradient.dtype == dtype
    # Both are rounded once to the type of the logits, which may go either way.
    torch.testing.assert_close(gradient, right, rtol=max(2e-5, torch.finfo(dtype).eps), atol=1e-7)
    assert right.abs().max() > 0.1


def test_gradients_by_finite_differences() -> None:
    logits, labels, _ = sample(torch.float64, 1.0)
    assert cross_entropy(logits, labels).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels), logits)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at_label", [True, False])
def test_what_is_not_finite_shows(value: float, at_label: bool) -> None:
    logits, labels, _ = sample(torch.bfloat16)
    with torch.no_grad():
        logits[6, (labels[6] + (not at_label)) % WORDS] = value
    losses = cross_entropy(logits, labels)
    losses.sum().backward()
    assert logits.grad is not None
    others = torch.arange(ROWS) != 6
    assert not losses[6].isfinite() and losses[others].isfinite().all()
    assert not logits.grad[6].isfinite().all() and logits.grad[others].isfinite().all()


def test_impossible_tokens() -> None:
    logits, labels, _ = sample(torch.float32)
    with torch.no_grad():
        logits[3, (labels[3] + 1) % WORDS] = -math.inf
        logits[4, labels[4]] = -math.inf
    losses = cross_entropy(logits, labels)
    losses.sum().backward()
    torch.testing.assert_close(losses, F.cross_entropy(logits, labels, reduction="none"))
    assert losses[4] == math.inf
    assert logits.grad is not None
    assert logits.grad.isfinite().all() and logits.grad[3, (labels[3] + 1) % WORDS] == 0


def test_no_rows() -> None:
    logits = torch.empty(0, WORDS, requires_grad=True)
    losses = cross_entropy(logits, torch.empty(0, dtype=torch.long))
    losses.sum().backward()
    assert losses.shape == (0,) and logits.grad is not None and logits.grad.shape == (0, WORDS)


def test_keeps_nothing_but_the_logits_as_they_came() -> None:
    logits, labels, _ = sample(torch.bfloat16)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cross_entropy(logits, labels)
    assert sorted(tensor.nbytes for tensor in kept) == [4 * ROWS, 8 * ROWS, 2 * ROWS * WORDS]
