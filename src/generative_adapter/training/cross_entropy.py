"""Cross-entropy of many tokens over a large vocabulary, without float32 copies of all logits.

`F.cross_entropy(logits.float())` makes four tensors of four bytes a logit: the copy, its log-softmax and the gradients
of both. Here logits stay in the base model's type, and slices of rows are worked on in float32. Leaves out: where the
logits come from, and the weights of the losses (`objectives`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits of a slice: what a CPU's cache holds in float32; on a GPU enough to keep it busy.
CPU_SLICE = 2**19
GPU_SLICE = 2**24


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(x)_y = log sum_j exp x_j - x_y of every row.

    Args:
        logits: x, `[tokens, vocabulary]`, any float type; they get a gradient in that type.
        labels: y, `[tokens]`.

    Returns:
        `[tokens]`, float32 (float64 for float64 logits). Rows with a NaN or an infinity give a loss, and get a
        gradient, that is not finite, except for logits of minus infinity, which stand for impossible tokens.
    """
    losses: Tensor = _CrossEntropy.apply(logits, labels)  # type: ignore[assignment]
    return losses


def _slices(logits: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time, and their logits in one buffer that all slices share."""
    size = max(1, (CPU_SLICE if logits.device.type == "cpu" else GPU_SLICE) // logits.shape[-1])
    buffer = logits.new_empty(min(size, len(logits)), logits.shape[-1], dtype=dtype)
    for start in range(0, len(logits), size):
        rows = slice(start, min(start + size, len(logits)))
        yield rows, buffer[: rows.stop - start].copy_(logits[rows])


class _CrossEntropy(torch.autograd.Function):
    """Keeps the logits as they came and log sum_j exp x_j; the gradient is (softmax(x) - onehot(y)) g."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        sums = torch.empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
        for rows, part in _slices(logits, sums.dtype):
            highest = part.amax(-1, keepdim=True)
            sums[rows] = part.sub_(highest).exp_().sum(-1).log_().add_(highest.squeeze(-1))
        ctx.save_for_backward(logits, labels, sums)
        return sums - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, labels, sums = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows, part in _slices(logits, sums.dtype):
            part.sub_(sums[rows].unsqueeze(-1)).exp_()
            part.scatter_add_(-1, labels[rows].unsqueeze(-1), torch.full_like(part[:, :1], -1.0))
            result[rows] = part.mul_(gradients[0][rows].unsqueeze(-1))
        return result, None
