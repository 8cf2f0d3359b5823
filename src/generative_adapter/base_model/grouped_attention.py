"""`grouped`: the eager attention of Transformers in half the operations, for short rows on a CPU.

Heads that share a key run as one product instead of over copies of the key, and only the weights are kept, in the
model's type; the backward is written out. Weights are the same numbers as with `eager`; a gradient differs by rounding.
Leaves out: dropout, capped scores and attention sinks, and
long rows, for which `sdpa` keeps no weights at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from generative_adapter.errors import BaseModelError

GROUPED = "grouped"
_NOT_DONE = ("softcap", "s_aux", "position_bias", "head_mask")


def register_grouped_attention() -> None:
    """Makes `grouped` known to Transformers, as a kernel that a model can be set to."""
    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, eager_mask)


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling Q K^T + mask) V, as Transformers calls an attention kernel.

    Args:
        module: the attention layer.
        query: Q, `[rows, heads, tokens, d]`.
        key: K, `[rows, key heads, keys, d]`; `heads / key heads` neighbouring heads share one.
        value: V, `[rows, key heads, keys, d_v]`.
        attention_mask: added to the scores, broadcast over `[rows, heads, tokens, keys]`.
        scaling: of the scores; None: d^-1/2.
        dropout: must be 0.
        settings: what else a model tells its kernel.

    Returns:
        `[rows, tokens, heads, d_v]`, and no weights.

    Raises:
        BaseModelError: when the model's attention has more to it.
    """
    asked = [name for name in _NOT_DONE if settings.get(name) is not None] + ["dropout"] * (dropout > 0)
    if asked:
        raise BaseModelError(
            f"{type(module).__name__} attends with {', '.join(asked)}, which attention: {GROUPED} leaves out; use eager"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended: Tensor = _GroupedAttention.apply(query, key, value, attention_mask, scaling)  # type: ignore[assignment]
    return attended, None


class _GroupedAttention(torch.autograd.Function):
    """O = P V with P = softmax(X), X = s Q K^T + M.

    For a gradient G of O: dV = P^T G, dX = P * (G V^T - rowsum(P * G V^T)), dQ = s dX K, dK = s dX^T Q.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        rows, heads, tokens, _ = query.shape
        keys = key.shape[2]
        groups = rows * key.shape[1]
        ctx.shapes = query.shape, key.shape, value.shape
        ctx.scaling = scaling
        query, key, value = (each.reshape(groups, -1, each.shape[-1]) for each in (query, key, value))
        scores = torch.bmm(query, key.mT).mul_(scaling)
        if mask is not None:
            scores.view(rows, heads, tokens, keys).add_(mask)
        weights = scores.softmax(-1)
        ctx.save_for_backward(query, key, value, weights)
        return torch.bmm(weights, value).view(rows, heads, tokens, -1).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, weights = ctx.saved_tensors
        query_shape, key_shape, value_shape = ctx.shapes
        gradient = gradients[0].transpose(1, 2).reshape(len(query), -1, value.shape[-1])
        of_weights = torch.bmm(gradient, value.mT)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(ctx.scaling)
        return (
            torch.bmm(of_scores, key).view(query_shape),
            torch.bmm(of_scores.mT, query).view(key_shape),
            torch.bmm(weights.mT, gradient).view(value_shape),
            None,
            None,
        )
