"""LowRankAdapter: the factors that a memory became, one pair a target layer.

A value, never hidden state in a layer: `base_model.inject` lays it over a running model, `export` writes it to disk.
Leaves out: how factors are made (`generator.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from generative_adapter.errors import AdapterError


@dataclass(frozen=True, eq=False)
class LowRankFactors:
    """The update `up @ down` of one target layer, eq. (9), arXiv:2411.05877.

    Attributes:
        down: V^T B2, `[r, d_in]` (LoRA's A).
        up: scale * A1 U, `[d_out, r]` (LoRA's B).
    """

    down: Tensor
    up: Tensor

    def __post_init__(self) -> None:
        if self.down.ndim != 2 or self.up.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            raise AdapterError(
                f"low-rank factors must be [r, d_in] and [d_out, r], got {tuple(self.down.shape)} and "
                f"{tuple(self.up.shape)}"
            )

    @property
    def rank(self) -> int:
        """The width r of the factors."""
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """The dense update W_delta, `[d_out, d_in]`."""
        return self.up @ self.down


class LowRankAdapter(Mapping[str, LowRankFactors]):
    """The generated update of every target layer, as rank-r factors keyed by the target's module path."""

    def __init__(self, factors: Mapping[str, LowRankFactors]) -> None:
        self._factors = dict(factors)

    def __getitem__(self, name: str) -> LowRankFactors:
        return self._factors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)

    @property
    def rank(self) -> int:
        """The largest rank of any target."""
        return max((factors.rank for factors in self.values()), default=0)

    @property
    def num_parameters(self) -> int:
        """Numbers stored in all factors together."""
        return sum(factors.down.numel() + factors.up.numel() for factors in self.values())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LowRankAdapter:
        """The same adapter on another device or in another number format."""
        return LowRankAdapter(
            {
                name: LowRankFactors(
                    factors.down.to(device=device, dtype=dtype), factors.up.to(device=device, dtype=dtype)
                )
                for name, factors in self.items()
            }
        )

    def truncate(self, rank: int) -> tuple[LowRankAdapter, float]:
        """The nearest adapter of a smaller rank, and the error this makes.

        Each update is replaced by its best rank-`rank` approximation in the Frobenius norm, found from the factors
        alone (QR of both, SVD of the small core).

        Returns:
            The truncated adapter, and sqrt(sum ||W - W'||^2 / sum ||W||^2) over all targets (0 for a zero adapter).

        Raises:
            AdapterError: when `rank` is not positive.
        """
        if rank <= 0:
            raise AdapterError(f"the rank to truncate to must be positive, got {rank}")
        truncated: dict[str, LowRankFactors] = {}
        lost = total = 0.0
        for name, factors in self.items():
            basis_up, core_up = torch.linalg.qr(factors.up.float())
            basis_down, core_down = torch.linalg.qr(factors.down.float().mT)
            left, values, right = torch.linalg.svd(core_up @ core_down.mT, full_matrices=False)
            root = values[:rank].sqrt()
            truncated[name] = LowRankFactors(
                down=(root.unsqueeze(1) * (right[:rank] @ basis_down.mT)).to(factors.down.dtype),
                up=((basis_up @ left[:, :rank]) * root).to(factors.up.dtype),
            )
            lost += values[rank:].square().sum().item()
            total += values.square().sum().item()
        return LowRankAdapter(truncated), (lost / total) ** 0.5 if total else 0.0
