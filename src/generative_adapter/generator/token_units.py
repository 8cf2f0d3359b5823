"""TokenUnits: one block's feed-forward part as a memory of single tokens: a hidden unit for each (docs/method.md).

A gated feed-forward part is down(silu(gate x) * (up x)), so it looks keys up already, one a hidden unit, and not in a
linear way: a unit whose gate is below zero says nothing. Here unit j gets the key k of one token of the context:

    gate_j x + a s + c.x,   up_j x + b s + d.x,   with s = k^T (C + lambda I)^-1 Q x
    down's column j + A v,  with the token's value v and A = O + p D as in `MemoryReader`

All three are low-rank updates of plain linears. What s says of thousands of tokens that aren't meant stays below the
threshold c.x, where a linear read adds all of it up. Units keep what they did before; those that are least active take
tokens first. Leaves out: where keys and values come from (`encoder_generator`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from generative_adapter.config import TargetShape
from generative_adapter.generator.low_rank import LowRankFactors

_GATE_STRENGTH, _UP_STRENGTH = 8.0, 4.0  # a and b of new units; s of the right token is about 1, of others about 0.1
_THRESHOLD = 3.0  # -c.x of new units where answers are given


class TokenUnits(nn.Module):
    """The units of one block.

    Args:
        gate: the linear whose output goes through the activation, `d_h -> d_ff`.
        up: the linear that is multiplied with it, `d_h -> d_ff`.
        down: the linear behind them, `d_ff -> d_h`.
        state_dim: d_r, width of keys.
        value_dim: d_v, width of values.
    """

    input_scales: Tensor
    activity: Tensor

    def __init__(self, gate: TargetShape, up: TargetShape, down: TargetShape, state_dim: int, value_dim: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down
        width, units = gate.in_features, gate.out_features
        self.query_proj = nn.Parameter(torch.randn(state_dim, width) * width**-0.5)
        self.gate_offset = nn.Parameter(torch.zeros(width))
        self.up_offset = nn.Parameter(torch.zeros(width))
        self.gate_strength = nn.Parameter(torch.tensor([_GATE_STRENGTH]))
        self.up_strength = nn.Parameter(torch.tensor([_UP_STRENGTH]))
        self.output_proj = nn.Parameter(torch.zeros(down.out_features, value_dim))
        self.word_strength = nn.Parameter(torch.zeros(1))
        self.register_buffer("input_scales", torch.ones(width))
        self.register_buffer("activity", torch.zeros(units))

    @property
    def num_units(self) -> int:
        """d_ff, so many tokens fit."""
        return self.gate.out_features

    @property
    def scaled_query_proj(self) -> Tensor:
        """Q, `[d_r, d_h]`."""
        return self.query_proj * self.input_scales

    @property
    def offsets(self) -> tuple[Tensor, Tensor]:
        """The offsets c and d, `[d_h]` each."""
        return self.gate_offset * self.input_scales, self.up_offset * self.input_scales

    @property
    def order(self) -> Tensor:
        """The units in the order in which they take tokens, `[d_ff]`: the least active first."""
        return self.activity.argsort(stable=True)

    def set_activity(self, activity: Tensor) -> None:
        """Takes over how active each unit is in the plain model, `[d_ff]`; as bfloat16, so that no copy differs."""
        self.activity.copy_(activity.to(torch.bfloat16))

    @torch.no_grad()
    def set_offset(self, answering: Tensor, other: Tensor) -> None:
        """Makes c.x about minus the threshold where answers are given and 0 elsewhere, by ridge regression.

        Args:
            answering: inputs x of the gate where answers are given, `[tokens, d_h]`.
            other: inputs elsewhere, which count as much in all.
        """
        weight = (len(answering) / max(1, len(other))) ** 0.5
        inputs = torch.cat([answering, other * weight]).float() * self.input_scales
        wanted = torch.cat([inputs.new_full((len(answering),), -_THRESHOLD), inputs.new_zeros(len(other))])
        ridge = 0.02 * len(answering) * torch.eye(inputs.shape[1], device=inputs.device)
        self.gate_offset.copy_(torch.linalg.solve(inputs.mT @ inputs + ridge, inputs.mT @ wanted))

    def output_matrix(self, word_directions: Tensor) -> Tensor:
        """The output projection A, `[d_h, d_v]`, given D of the same shape."""
        return self.output_proj + self.word_strength * word_directions

    def factors(self, keys: Tensor, values: Tensor, word_directions: Tensor) -> dict[str, LowRankFactors]:
        """The updates of the three linears for some tokens; zeros for none.

        Args:
            keys: k^T (C + lambda I)^-1 of each, `[tokens, d_r]`, at most d_ff of them.
            values: `[tokens, d_v]`.
            word_directions: D, `[d_h, d_v]`.
        """
        taken = self.order[: len(keys)]
        units = self.num_units
        gate_offset, up_offset = self.offsets
        query = self.scaled_query_proj
        one = keys.new_ones(len(keys), 1)

        def spread(columns: Tensor) -> Tensor:
            return columns.new_zeros(units, columns.shape[1]).index_copy(0, taken, columns)

        return {
            self.gate.name: LowRankFactors(
                torch.cat([query, gate_offset.unsqueeze(0)]), spread(torch.cat([self.gate_strength * keys, one], 1))
            ),
            self.up.name: LowRankFactors(
                torch.cat([query, up_offset.unsqueeze(0)]), spread(torch.cat([self.up_strength * keys, one], 1))
            ),
            self.down.name: LowRankFactors(spread(values).mT.contiguous(), self.output_matrix(word_directions)),
        }

    def named_weights(self) -> dict[str, Tensor]:
        """The weights by name, each under the linear that it belongs to."""
        return {
            f"{self.gate.name}.unit_query": self.query_proj,
            f"{self.gate.name}.unit_input_scales": self.input_scales,
            f"{self.gate.name}.unit_offset": self.gate_offset,
            f"{self.gate.name}.unit_strength": self.gate_strength,
            f"{self.up.name}.unit_offset": self.up_offset,
            f"{self.up.name}.unit_strength": self.up_strength,
            f"{self.down.name}.unit_output": self.output_proj,
            f"{self.down.name}.unit_word_strength": self.word_strength,
            f"{self.down.name}.unit_activity": self.activity,
        }


def lone_activation(weights: Tensor) -> Tensor:
    """What new units make of s, without all they do beside, so that 1 stays 1; of any shape."""
    threshold = torch.tensor(_GATE_STRENGTH - _THRESHOLD)
    return functional.silu(_GATE_STRENGTH * weights - _THRESHOLD) * weights / functional.silu(threshold)


def longest(keys: Tensor, real: Tensor, wanted: Tensor) -> Tensor:
    """Which tokens of each chunk have the longest keys, `[batch, tokens]`, bool.

    Args:
        keys: `[batch, tokens, d_r]`.
        real: False for padding, `[batch, tokens]`.
        wanted: how many of each chunk, at most as many as are real, `[batch]`.
    """
    lengths = keys.norm(dim=-1).masked_fill(~real, -1.0)
    ranks = lengths.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return ranks < wanted.unsqueeze(-1)


def tokens_of_blocks(keys: Tensor, blocks: Sequence[TokenUnits]) -> list[Tensor]:
    """Which tokens each block's units take: all of them where they fit, else every second, third, ...

    With n blocks and a step of s, block i takes the tokens t with t mod s = i mod s, so that every token is taken by
    one block at least. Of more tokens than all blocks hold those with the shortest keys are left out: they are those
    whose gate says that they matter least.

    Args:
        keys: of all tokens, `[tokens, d_r]`; those whose key is zero take no unit.
        blocks: in the order of the model.

    Returns:
        The numbers of each block's tokens, ascending.
    """
    units = min(block.num_units for block in blocks)
    numbers = keys.any(dim=-1).nonzero().squeeze(1)
    if len(numbers) > units * len(blocks):
        lengths = keys.norm(dim=-1).to(torch.bfloat16)  # so that a memory and its stored form leave out the same ones
        numbers = lengths.argsort(descending=True, stable=True)[: units * len(blocks)].sort().values
    step = max(1, -(-len(numbers) // units))
    at = torch.arange(len(numbers), device=keys.device)
    return [numbers[at % step == index % step] for index in range(len(blocks))]
