"""The processes of one run, as `torchrun` starts them: each takes part of every step's contexts; gradients are summed.

All processes hold the same weights and draw the same contexts, so nothing but sums is exchanged. Process 0 alone writes
and reports. Leaves out: sharding the base model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class Processes:
    """This process's place among those of a run; a run of one process exchanges nothing.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints and reports."""
        return self.rank == 0

    def share(self, items: Sequence[T], sizes: Sequence[int]) -> list[T]:
        """This process's part of the items: dealt out from the largest down, so that the parts cost about the same."""
        if self.size == 1:
            return list(items)
        order = sorted(range(len(items)), key=lambda index: (-sizes[index], index))
        return [items[index] for index in order[self.rank :: self.size]]

    def sums(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Sums over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def leave(self) -> None:
        """Waits for the others and ends the exchange."""
        if self.size > 1 and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its sum over all processes; a missing one counts as zero."""
        if self.size == 1:
            return
        every = list(parameters)
        gradients: list[Tensor] = [torch.zeros_like(p) if p.grad is None else p.grad for p in every]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, part in zip(every, flat.split([p.numel() for p in every]), strict=True):
            parameter.grad = part.view_as(parameter)
