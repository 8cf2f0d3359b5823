"""ContextGenerator: what every form of generator can do, and all that readers, files and exports know of it.

Leaves out: how it is done (`generator.py` for the paper's form, `encoder_generator.py` for the one with an encoder) and
how either is trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from generative_adapter.config import TargetShape
from generative_adapter.generator.low_rank import LowRankAdapter


class ContextGenerator(nn.Module, ABC):
    """The trained network G that turns the hidden states of a context into a memory, and a memory into an adapter.

    Attributes:
        independent_chunks: whether every chunk is read without the adapter of those before it, so that chunks can be
            read side by side, and a text's memory is the sum of its chunks' memories.
        targets: the linear layers that read the memory.
        hidden_size: d_h, width of the base model's hidden states.
    """

    independent_chunks: ClassVar[bool] = False
    targets: tuple[TargetShape, ...]
    hidden_size: int

    @property
    @abstractmethod
    def layers(self) -> tuple[int, ...]:
        """Indices of the Transformer blocks whose inputs the generator reads, ascending."""

    @property
    def keeps_tokens(self) -> bool:
        """Whether a memory keeps a row for every token it takes in; else its states are sums over tokens."""
        return False

    @property
    @abstractmethod
    def state_shapes(self) -> dict[str, tuple[int, int]]:
        """Name and shape of every state of an empty memory; `(0, width)` where tokens are kept."""

    @property
    def reading_adapter(self) -> LowRankAdapter | None:
        """The adapter that contexts are read under, whatever the memory; None: the plain base model reads."""
        return None

    @abstractmethod
    def write(self, hidden: Mapping[int, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
        """What each chunk adds to every state, eq. (3), arXiv:2411.05877, or the rows of its tokens.

        Args:
            hidden: block index -> block input `[batch, tokens, d_h]`, for every index in `layers`.
            mask: True for real tokens, `[batch, tokens]`, padding on the right.

        Returns:
            State name -> `[batch, *shape]`, or where tokens are kept `[batch, tokens, width]`, padding and tokens
            that aren't remembered included; float32.
        """

    def taken_in(self, increments: Mapping[str, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
        """What the chunks that `write` has read add to the states together.

        Args:
            increments: what `write` gives.
            mask: True for real tokens, `[batch, tokens]`, as `write` was given it; sums don't need it.

        Returns:
            State name -> the sum over the chunks, float64; or where tokens are kept the rows of the real tokens that
            are remembered, chunk after chunk, `[rows, width]`, float32; `num_rows` of each chunk.
        """
        if not self.keeps_tokens:
            return {name: each.double().sum(0) for name, each in increments.items()}
        if mask is None:
            return {name: rows.float().flatten(0, 1) for name, rows in increments.items()}
        real = mask.to(torch.bool)
        return {name: rows.float()[real] for name, rows in increments.items()}

    def num_rows(self, num_tokens: int) -> int:
        """Rows that a chunk of so many tokens adds to a memory, where tokens are kept."""
        return num_tokens

    def units_taken(self, num_rows: int) -> int:
        """Units of feed-forward parts that take a token each when a memory has so many rows, in all blocks."""
        return 0

    @abstractmethod
    def adapter(self, states: Mapping[str, Tensor]) -> LowRankAdapter:
        """The adapter of a memory, eq. (9), arXiv:2411.05877; that of the empty memory changes nothing.

        Args:
            states: state name -> S, of the shapes of `state_shapes`; where tokens are kept `[rows, width]`, of any
                number of rows.
        """

    @abstractmethod
    def named_weights(self) -> dict[str, Tensor]:
        """Every tensor that a file has to hold, by its name there; the tensors themselves, to be read or filled."""

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights."""
        return sum(tensor.numel() for tensor in self.named_weights().values())
