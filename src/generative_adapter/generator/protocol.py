"""ContextGenerator: what every form of generator can do, and all that readers, files and exports know of it.

Leaves out: how it is done (`generator.py` for the paper's form, `encoder_generator.py` for the one with an encoder) and
how either is trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

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
    @abstractmethod
    def state_shapes(self) -> dict[str, tuple[int, int]]:
        """Name and shape of every state of a memory."""

    @property
    def reading_adapter(self) -> LowRankAdapter | None:
        """The adapter that contexts are read under, whatever the memory; None: the plain base model reads."""
        return None

    @abstractmethod
    def write(self, hidden: Mapping[int, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
        """What one chunk adds to every state, eq. (3), arXiv:2411.05877.

        Args:
            hidden: block index -> block input `[batch, tokens, d_h]`, for every index in `layers`.
            mask: True for real tokens, `[batch, tokens]`, padding on the right.

        Returns:
            State name -> `[batch, *shape]`, float32.
        """

    @abstractmethod
    def adapter(self, states: Mapping[str, Tensor]) -> LowRankAdapter:
        """The adapter of a memory, eq. (9), arXiv:2411.05877; that of the empty memory changes nothing.

        Args:
            states: state name -> S, of the shapes of `state_shapes`.
        """

    @abstractmethod
    def named_weights(self) -> dict[str, Tensor]:
        """Every tensor that a file has to hold, by its name there; the tensors themselves, to be read or filled."""

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights."""
        return sum(tensor.numel() for tensor in self.named_weights().values())
