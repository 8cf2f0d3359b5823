"""TargetGenerator: the projections of one target layer, its keys, values, gates and reads (section 2.2 of the paper).

Plain torch on plain tensors. Leaves out: the set of all targets (`generator`) and where hidden states come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from generative_adapter.generator.low_rank import LowRankFactors
from generative_adapter.generator.normalization import NORMALIZATION_LABEL, factorize, normalize, ridge
from generative_adapter.generator.unit_rms import unit_rms

_FIRST_RIDGE = 3.0  # a new generator's keys have a mean square of one in each of their entries
_OPEN_GATE = 5.0


class TargetGenerator(nn.Module):
    """The generator of one target layer: four projections and a learned RMSNorm.

    | parameter     | paper | shape          |
    |---------------|-------|----------------|
    | `value_proj`  | A2    | `[d_r, d_h]`   |
    | `key_proj`    | B1^T  | `[d_r, d_h]`   |
    | `query_proj`  | B2    | `[d_r, d_in]`  |
    | `output_proj` | A1    | `[d_out, d_r]` |

    and beyond the paper, with `key_windows` one `window_projs[i]` `[d_r, d_h]` a window (with `window_gates` also
    `gate_proj` `[2 windows, d_h]` and `gate_bias` `[2 windows]`), with `write_gate` `write_proj` `[1, d_h]` and
    `write_bias` `[1]`, and with `ridge` the logarithm of its strength, `log_ridge` `[1]`.

    `output_proj` starts at zero, so that an untrained generator leaves the base model unchanged, and so do the
    `window_projs`, so that keys start as the paper's, and `gate_proj`, so that gates start nearly open; the others
    start Kaiming-normal.
    """

    def __init__(
        self,
        hidden_size: int,
        in_features: int,
        out_features: int,
        state_dim: int,
        *,
        rank: int,
        scale: float,
        normalization: str,
        hidden_norm: bool = True,
        value_shift: int = 0,
        key_windows: Sequence[int] = (),
        window_gates: bool = False,
        write_gate: bool = False,
        subspace_iterations: int = 0,
    ) -> None:
        super().__init__()
        self.rank = rank
        self.subspace_iterations = subspace_iterations
        self.scale = scale
        self.normalization = normalization
        self.value_shift = value_shift
        self.key_windows = tuple(key_windows)
        self.backward_dtype = torch.float32
        self.norm_weight = nn.Parameter(torch.ones(hidden_size)) if hidden_norm else None
        self.value_proj = nn.Parameter(torch.empty(state_dim, hidden_size))
        self.key_proj = nn.Parameter(torch.empty(state_dim, hidden_size))
        self.query_proj = nn.Parameter(torch.empty(state_dim, in_features))
        self.output_proj = nn.Parameter(torch.zeros(out_features, state_dim))
        for projection in (self.value_proj, self.key_proj, self.query_proj):
            nn.init.kaiming_normal_(projection, nonlinearity="linear")
        self.log_ridge = nn.Parameter(torch.tensor([math.log(_FIRST_RIDGE)])) if normalization == "ridge" else None
        self.window_projs = nn.ParameterList(torch.zeros(state_dim, hidden_size) for _ in self.key_windows)
        self.gate_proj = nn.Parameter(torch.zeros(2 * len(self.key_windows), hidden_size)) if window_gates else None
        self.gate_bias = nn.Parameter(torch.full((2 * len(self.key_windows),), _OPEN_GATE)) if window_gates else None
        self.write_proj = nn.Parameter(torch.zeros(1, hidden_size)) if write_gate else None
        self.write_bias = nn.Parameter(torch.full((1,), _OPEN_GATE)) if write_gate else None

    def write(self, hidden: Tensor, mask: Tensor | None = None, value_hidden: Tensor | None = None) -> Tensor:
        """What one chunk adds to the memory: A2 H^T H B1, eq. (3), arXiv:2411.05877.

        Args:
            hidden: H, `[batch, tokens, d_h]`, any float type; projected in that type, summed in float32.
            mask: True for real tokens, `[batch, tokens]`, padding on the right; None when all are real.
            value_hidden: where the values come from, `[batch, tokens, d_h]`; None: `hidden`.

        Returns:
            `[batch, d_r, d_r]`, float32; for `ridge` `[batch, 2 d_r, d_r]`, with the sum of k_i k_i^T below.
        """
        return self.pair(*self.keys_and_values(hidden, mask, value_hidden))

    def pair(self, keys: Tensor, values: Tensor) -> Tensor:
        """The sum over tokens of v_i k_i^T, and for `ridge` of k_i k_i^T below it; see `write`."""
        return (torch.cat([values, keys], dim=-1) if self.normalization == "ridge" else values).mT @ keys

    def keys_and_values(
        self, hidden: Tensor, mask: Tensor | None = None, value_hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Key k_i and value v_i of every token, `[batch, tokens, d_r]` each, float32; zero keys for padding.

        With `value_shift` s the value of token i is taken from token i + s (the last tokens of a chunk: from its last).
        With `key_windows` the key of token i also holds projected averages over its neighbours in the chunk, so that
        the name of a thing, some tokens away from what is told of it, is in the key: k_i = B1^T h_i +
        sum_w P_w sum_j D_w[i, j] h_j, with the exponential averages D_w of `window_weights`; with `window_gates` an
        average ends where the gate sigmoid(g_w h_t + b_w) of a token t on the way closes, as at the end of a sentence,
        and token j counts by a gate of its own, as the words of a name do. With `write_gate` a pair is written with
        strength sigmoid(u h + c), h being the token that the value is taken from.

        Args:
            hidden: H, `[batch, tokens, d_h]`.
            mask: True for real tokens, `[batch, tokens]`.
            value_hidden: block inputs that the values are projected from instead of H, `[batch, tokens, d_h]`; with
                the RMSNorm's scaling but not its weights.
        """
        gates = [proj for proj in (self.gate_proj, self.write_proj) if proj is not None]
        own_values = [self.value_proj] if value_hidden is None else []
        projections = torch.cat([*own_values, self.key_proj, *self.window_projs, *gates])
        if self.norm_weight is not None:
            hidden = unit_rms(hidden)
            projections = projections * self.norm_weight
        width = len(self.key_proj)
        sizes = [width] * (len(own_values) + 1 + len(self.key_windows)) + [len(gate) for gate in gates]
        projected = list((hidden @ projections.to(hidden.dtype).mT).float().split(sizes, dim=-1))
        if value_hidden is not None:
            value_hidden = value_hidden if self.norm_weight is None else unit_rms(value_hidden)
            projected.insert(0, (value_hidden @ self.value_proj.to(value_hidden.dtype).mT).float())
        values, keys, *neighbours = projected
        strength = None if self.write_bias is None else torch.sigmoid(neighbours.pop() + self.write_bias)
        log_gates = None if self.gate_bias is None else nn.functional.logsigmoid(neighbours.pop() + self.gate_bias)
        for index, (window, neighbour) in enumerate(zip(self.key_windows, neighbours, strict=True)):
            if mask is not None and window < 0:  # padding lies on the right: only averages over later tokens reach it
                neighbour = neighbour * mask.unsqueeze(-1)
            gate = None
            if log_gates is not None:
                gate = log_gates[..., 2 * index]
                neighbour = neighbour * log_gates[..., 2 * index + 1 : 2 * index + 2].exp()
            keys = keys + window_weights(window, neighbour.shape[1], neighbour.device, gate) @ neighbour
        if self.value_shift:
            batch, tokens, width = values.shape
            positions = torch.arange(tokens, device=values.device)
            lengths = torch.full((batch,), tokens, device=values.device) if mask is None else mask.sum(-1)
            source = torch.minimum(positions + self.value_shift, (lengths - 1).clamp_min(0).unsqueeze(-1))
            values = values.gather(1, source.unsqueeze(-1).expand(batch, tokens, width))
            strength = None if strength is None else strength.gather(1, source.unsqueeze(-1).expand(batch, tokens, 1))
        if strength is not None:
            keys = keys * strength
        if mask is not None:
            keys = keys * mask.unsqueeze(-1)
        return keys, values

    @property
    def ridge_strength(self) -> Tensor:
        """Strength of `ridge`'s regularisation, `[1]`; only a generator with that normalisation has one."""
        assert self.log_ridge is not None
        return self.log_ridge.exp()

    @property
    def state_shape(self) -> tuple[int, int]:
        """Shape of the memory S: `[d_r, d_r]`, or `[2 d_r, d_r]` for `ridge`."""
        width = self.value_proj.shape[0]
        return (2 * width if self.normalization == "ridge" else width, width)

    def normalize(self, state: Tensor) -> Tensor:
        """norm(S), eqs. (6)-(8), for states of `state_shape`: `[..., d_r, d_r]`."""
        with record_function(NORMALIZATION_LABEL):
            if self.log_ridge is not None:
                return ridge(state, self.log_ridge.exp())
            return normalize(state, self.normalization, self.rank, self.backward_dtype, self.subspace_iterations)

    def read(self, inputs: Tensor, normalized: Tensor) -> Tensor:
        """The update's output scale * A1 norm(S) B2 x, eq. (6), arXiv:2411.05877.

        Args:
            inputs: x, `[batch, tokens, d_in]`.
            normalized: norm(S), `[batch, d_r, d_r]`, one a row.

        Returns:
            `[batch, tokens, d_out]` in the type of `inputs`.
        """
        dtype = inputs.dtype
        queries = inputs @ self.query_proj.to(dtype).mT
        return (queries @ normalized.to(dtype).mT) @ (self.scale * self.output_proj).to(dtype).mT

    def factors(self, state: Tensor) -> LowRankFactors:
        """The low-rank factors scale * A1 U and V^T B2 of one state, eq. (9), arXiv:2411.05877."""
        if self.log_ridge is not None:
            left, right = self.normalize(state), None
        else:
            left, right = factorize(state, self.normalization, self.rank, self.subspace_iterations)
        down = self.query_proj if right is None else right @ self.query_proj
        return LowRankFactors(down=down, up=self.scale * (self.output_proj @ left))


def window_weights(
    window: int, num_tokens: int, device: torch.device | None = None, log_gates: Tensor | None = None
) -> Tensor:
    """Weights D[i, j] of token j in the average that token i sees, `[tokens, tokens]`, float32.

    Args:
        window: w > 0: token i and those before it, D[i, j] = (1 - 1/w)^(i - j) / w for j <= i; w < 0: those after it,
            D[i, j] = (1 - 1/|w|)^(j - i - 1) / |w| for j > i.
        num_tokens: tokens of the chunk.
        device: where the weights are made.
        log_gates: logarithm of each token's gate, `[batch, tokens]`; the weights, `[batch, tokens, tokens]`, are then
            multiplied by the gates of all tokens after the earlier of i and j, up to and with the later.
    """
    positions = torch.arange(num_tokens, device=device, dtype=torch.float32)
    distance = positions.unsqueeze(1) - positions if window > 0 else positions - positions.unsqueeze(1) - 1
    width = abs(window)
    reached = distance >= 0
    weights = torch.where(reached, (1 - 1 / width) ** distance.clamp_min(0) / width, 0.0)
    if log_gates is None:
        return weights
    passed = log_gates.cumsum(-1)
    product = passed.unsqueeze(2) - passed.unsqueeze(1)
    return weights * (product if window > 0 else -product).masked_fill(~reached, 0.0).exp()
