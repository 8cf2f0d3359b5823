"""TrainedAdapter: a LoRA that is learned once, the same for every context; a part of a generator, not a memory's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from generative_adapter.config import TargetShape
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors


class TrainedAdapter(nn.Module):
    """Low-rank factors of several linears as trained weights; the up factors start at zero.

    Args:
        targets: the linears.
        rank: of each pair of factors.
    """

    def __init__(self, targets: Sequence[TargetShape], rank: int) -> None:
        super().__init__()
        self.targets = tuple(targets)
        self.down = nn.ParameterList(
            torch.randn(rank, target.in_features) * target.in_features**-0.5 for target in self.targets
        )
        self.up = nn.ParameterList(torch.zeros(target.out_features, rank) for target in self.targets)

    def adapter(self) -> LowRankAdapter:
        """The factors as an adapter; differentiable."""
        pairs = zip(self.targets, self.down, self.up, strict=True)
        return LowRankAdapter({target.name: LowRankFactors(down, up) for target, down, up in pairs})

    def named_weights(self, kind: str) -> dict[str, Tensor]:
        """The weights by name, `<target>.<kind>_down` and `<target>.<kind>_up`."""
        named: dict[str, Tensor] = {}
        for target, down, up in zip(self.targets, self.down, self.up, strict=True):
            named |= {f"{target.name}.{kind}_down": down, f"{target.name}.{kind}_up": up}
        return named
