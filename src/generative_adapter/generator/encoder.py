"""ContextEncoder: bidirectional Transformer layers over hidden states of a base model that reads from left to right.

Leaves out: which hidden states there are, and what becomes of the encoded tokens (`encoder_generator`). Products run in
the number format of the input, so that training may use a shorter one than the float32 of inference; weights stay
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from generative_adapter.generator.unit_rms import unit_rms

_MASKED = -30000.0  # finite in every number format


class ContextEncoder(nn.Module):
    """Hidden states of several blocks -> one vector a token, which knows the whole chunk.

    The states, each of unit RMS, are concatenated and projected to `width`; `num_layers` layers of attention in both
    directions and a feed-forward part follow, then an RMSNorm. What a block's attention can't give, since it is causal,
    is what comes after a token: of "The roof is black", that the roof is what "black" is told of, and the other way
    round.

    Args:
        input_size: width of all states together.
        width: of the layers.
        num_layers: how many there are.
        num_heads: attention heads of each.
        largest_distance: bias of the attention depends on the distance of two tokens, up to this one.
    """

    def __init__(self, input_size: int, width: int, num_layers: int, num_heads: int, largest_distance: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(input_size, width, bias=False)
        self.dropout = nn.Dropout(0.0)  # of the projected input; training may raise it
        self.layers = nn.ModuleList(EncoderLayer(width, num_heads, largest_distance) for _ in range(num_layers))
        self.norm_weight = nn.Parameter(torch.ones(width))

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """The encoded tokens.

        Args:
            states: `[batch, tokens, input_size]`.
            mask: True for real tokens, `[batch, tokens]`; what stands at the others is not seen.

        Returns:
            `[batch, tokens, width]`, float32.
        """
        tokens = self.dropout(_project(self.input_proj, states))
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return unit_rms(tokens.float()) * self.norm_weight


class EncoderLayer(nn.Module):
    """Attention in both directions with a learned bias a head and distance, then a feed-forward part; both residual.

    x <- x + O softmax(Q K^T / sqrt(w) + b[j - i]) V of RMSNorm(x), then x <- x + D gelu(U RMSNorm(x)); O and D start at
    zero, so that a new layer changes nothing.

    Args:
        width: of the tokens; the feed-forward part is twice as wide.
        num_heads: attention heads, of width w = width / num_heads.
        largest_distance: distances j - i beyond it count as this one.
    """

    def __init__(self, width: int, num_heads: int, largest_distance: int) -> None:
        super().__init__()
        self.num_heads, self.largest_distance = num_heads, largest_distance
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.feed_forward_norm = nn.Parameter(torch.ones(width))
        self.attention_input = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, 2 * largest_distance + 1))
        self.feed_forward_up = nn.Linear(width, 2 * width)
        self.feed_forward_down = nn.Linear(2 * width, width)
        nn.init.zeros_(self.attention_output.weight)
        nn.init.zeros_(self.feed_forward_down.weight)
        nn.init.zeros_(self.feed_forward_down.bias)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The tokens after the layer, `[batch, tokens, width]` as they came; see `ContextEncoder.forward`."""
        batch, length, width = tokens.shape
        normed = unit_rms(tokens) * self.attention_norm.to(tokens.dtype)
        heads = _project(self.attention_input, normed).view(batch, length, 3, self.num_heads, -1)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        bias = self._bias(length).to(tokens.dtype)
        if mask is not None:
            bias = bias + torch.where(mask[:, None, None], 0.0, _MASKED).to(tokens.dtype)
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        tokens = tokens + _project(self.attention_output, attended)
        normed = unit_rms(tokens) * self.feed_forward_norm.to(tokens.dtype)
        inner = functional.gelu(_project(self.feed_forward_up, normed))
        return tokens + _project(self.feed_forward_down, inner)

    def _bias(self, length: int) -> Tensor:
        """b[j - i] of query i and key j, `[1, heads, length, length]`."""
        positions = torch.arange(length, device=self.distance_bias.device)
        distance = positions.unsqueeze(0) - positions.unsqueeze(1)
        at = distance.clamp(-self.largest_distance, self.largest_distance) + self.largest_distance
        return self.distance_bias[:, at].unsqueeze(0)


def _project(linear: nn.Linear, inputs: Tensor) -> Tensor:
    """The linear's output in the number format of its input."""
    bias = None if linear.bias is None else linear.bias.to(inputs.dtype)
    return functional.linear(inputs, linear.weight.to(inputs.dtype), bias)
