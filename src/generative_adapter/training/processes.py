"""The processes of one run, through Accelerate: each takes part of every step's contexts, DDP averages the gradients.

All processes hold the same weights and draw the same contexts, so nothing but gradients and sums is exchanged. Process
0 alone writes and reports. `torchrun`, or on GPUs `accelerate launch`, starts them. Leaves out: sharding the base
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from generative_adapter.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class Processes:
    """This process's place among those of a run; a run of one process exchanges nothing.

    Args:
        device: `auto` (this process's own GPU where there is one), or a torch device.

    Attributes:
        accelerator: Accelerate's view of the run.
        rank: number of this process, from 0.
        size: how many there are.

    Raises:
        MissingDependencyError: when Accelerate is not installed.
        ConfigError: when Accelerate was set up to shard or to split the model (FSDP, DeepSpeed, ...).
    """

    def __init__(self, device: str = "auto") -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedType
        except ImportError as error:
            raise MissingDependencyError(
                "training needs Accelerate; pip install 'generative-adapter[train]'"
            ) from error
        # Without a word Accelerate takes several processes on a CPU for as many runs of one.
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        self.accelerator: Accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")
        self.rank = self.accelerator.process_index
        self.size = self.accelerator.num_processes
        kind = self.accelerator.distributed_type
        if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            raise ConfigError(
                f"Accelerate is set up for {kind.value}; generators train with plain data parallelism: run `accelerate "
                "config` again, or start with `torchrun`"
            )

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints and reports."""
        return self.accelerator.is_main_process

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, in DDP where there are several processes: its gradients are averages over all of them."""
        return cast("nn.Module", self.accelerator.prepare_model(module)) if self.size > 1 else module

    def only_last_exchanges(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one of a step's passes: gradients go to the others with the last one only."""
        return nullcontext() if last or self.size == 1 else self.accelerator.no_sync(module)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of this process's part of a step's loss; over all processes they become sums."""
        self.accelerator.backward(loss * self.size)  # DDP averages, a step's loss is a sum

    def share(self, items: Sequence[T], sizes: Sequence[int]) -> list[T]:
        """This process's part of the items: dealt out from the largest down, so that the parts cost about the same.

        Raises:
            ConfigError: when there are fewer items than processes.
        """
        if self.size == 1:
            return list(items)
        if len(items) < self.size:
            raise ConfigError(
                f"{len(items)} contexts can't be dealt out to {self.size} processes; raise contexts_per_step to at "
                "least the number of processes"
            )
        order = sorted(range(len(items)), key=lambda index: (-sizes[index], index))
        return [items[index] for index in order[self.rank :: self.size]]

    def sums(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Sums over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        return cast("Tensor", self.accelerator.reduce(tensor, "sum")).tolist()

    def leave(self) -> None:
        """Waits for the others and ends the exchange."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()
