"""MemoryReader: how one target reads a memory that all targets share. Leaves out: writing it (`encoder_generator`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from generative_adapter.generator.low_rank import LowRankFactors


class MemoryReader(nn.Module):
    """Query and output projections of one target: its update is scale * A norm(S) B.

    B = Q diag(s) with the fixed scales s of the target's inputs, which differ by orders of magnitude from channel to
    channel, so that equal steps of Q mean equal steps of what is asked. A = O + p D: beside the learned O, the strength
    p with which the value's own word is said (`word_map`).

    Args:
        in_features: d_in.
        out_features: d_out.
        state_dim: d_r, width of a query.
        value_dim: d_v, width of a value.
        scale: factor on the update.
        num_readers: targets that read the memory; a new query's size falls with it, since their answers add up.
    """

    input_scales: Tensor

    def __init__(
        self, in_features: int, out_features: int, state_dim: int, value_dim: int, scale: float, num_readers: int = 1
    ) -> None:
        super().__init__()
        self.scale = scale
        self.query_proj = nn.Parameter(torch.randn(state_dim, in_features) * (in_features * num_readers) ** -0.5)
        self.register_buffer("input_scales", torch.ones(in_features))
        self.output_proj = nn.Parameter(torch.zeros(out_features, value_dim))
        self.word_strength = nn.Parameter(torch.zeros(1))

    @property
    def scaled_query_proj(self) -> Tensor:
        """B, `[d_r, d_in]`."""
        return self.query_proj * self.input_scales

    def output_matrix(self, word_directions: Tensor) -> Tensor:
        """The output projection scale * A, `[d_out, d_v]`, given D of the same shape."""
        return self.scale * (self.output_proj + self.word_strength * word_directions)

    def read(self, inputs: Tensor, normalized: Tensor, word_directions: Tensor) -> Tensor:
        """The update's output scale * A norm(S) B x.

        Args:
            inputs: x, `[batch, tokens, d_in]`.
            normalized: norm(S), `[batch, d_v, d_r]`, one a row.
            word_directions: D, `[d_out, d_v]`.

        Returns:
            `[batch, tokens, d_out]` in the type of `inputs`.
        """
        dtype = inputs.dtype
        queries = inputs @ self.scaled_query_proj.to(dtype).mT
        return (queries @ normalized.to(dtype).mT) @ self.output_matrix(word_directions).to(dtype).mT

    def factors(self, normalized: Tensor, word_directions: Tensor) -> LowRankFactors:
        """The low-rank factors norm(S) B and scale * A of one memory, of rank d_v; see `read`."""
        return LowRankFactors(down=normalized @ self.scaled_query_proj, up=self.output_matrix(word_directions))
