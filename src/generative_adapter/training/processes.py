"""The processes of one run, through Accelerate: each takes part of every step's contexts, DDP averages the gradients.

All processes hold the same generator and draw the same contexts, so nothing but gradients and sums is exchanged, and,
where the frozen base model is sharded (FSDP2, or DeepSpeed: `zero3`), its weights, block by block. Process 0 alone
writes and reports. `torchrun`, or on GPUs `accelerate launch`, starts them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from generative_adapter.base_model.targets import find_blocks
from generative_adapter.errors import ConfigError, MissingDependencyError
from generative_adapter.training import zero3

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Processes:
    """This process's place among those of a run; a run of one process exchanges nothing.

    Args:
        device: `auto` (this process's own GPU where there is one), or a torch device.
        shard_base: spread the frozen base model over the processes. Also on where Accelerate is set up for FSDP2 or
            for DeepSpeed's ZeRO stage 3, which then does it. Lower stages of ZeRO split nothing that is frozen: they
            are taken for plain data parallelism.

    Attributes:
        accelerator: Accelerate's view of the run.
        rank: number of this process, from 0.
        size: how many there are.
        shards: whether the base model is spread over them.

    Raises:
        MissingDependencyError: when Accelerate is not installed, or DeepSpeed, where Accelerate is set up for it.
        ConfigError: when Accelerate was set up to split the model in another way (FSDP1, ...).
    """

    def __init__(self, device: str = "auto", shard_base: bool = False) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedType
        except ImportError as error:
            raise MissingDependencyError(
                "training needs Accelerate; pip install 'generative-adapter[train]'"
            ) from error
        # Without a word Accelerate takes several processes on a CPU for as many runs of one.
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        self.accelerator: Accelerator
        settings: dict[str, Any] = {}
        if zero3.asked_for():
            self.accelerator, settings = zero3.make_accelerator(on_cpu)
        else:
            self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")
        self.rank = self.accelerator.process_index
        self.size = self.accelerator.num_processes
        kind = self.accelerator.distributed_type
        sharded = kind == DistributedType.FSDP and self.accelerator.is_fsdp2
        plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.DEEPSPEED)
        if not sharded and kind not in plain:
            raise ConfigError(
                f"Accelerate is set up for {kind.value}; generators train with data parallelism, and `shard_base: "
                "true` in the recipe, or Accelerate's FSDP version 2 or DeepSpeed stage 3, spreads the base model: run "
                "`accelerate config` again, or start with `torchrun`"
            )
        stage = settings.get("zero_optimization", {}).get("stage", 0)
        self._zero3 = settings if stage == 3 else None
        if settings and stage < 3 and self.is_first:
            logger.warning("DeepSpeed: ZeRO stage %s splits nothing of a frozen base model, stage 3 does", stage)
        self.shards = self._zero3 is not None or (self.size > 1 and (shard_base or sharded))

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints and reports."""
        return self.accelerator.is_main_process

    def shard(self, model: nn.Module) -> None:
        """Spreads a frozen model over the processes, in place, a block at a time (PyTorch's FSDP2, or DeepSpeed).

        Every process then has to run the model equally often: see `most`.
        """
        if self._zero3 is not None:
            zero3.shard(model, self._zero3, self.device)
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in find_blocks(model)[1]:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, in DDP where there are several processes: its gradients are averages over all of them."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, device_ids=None if self.device.type == "cpu" else [self.device])

    def only_last_exchanges(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one of a step's passes: gradients go to the others with the last one only."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of this process's part of a step's loss; over all processes they become sums."""
        (loss * self.size).backward()  # DDP averages, a step's loss is a sum

    def most(self, *counts: int) -> list[int]:
        """The largest of each count over all processes, where the base model is sharded; else one's own."""
        if not self.shards:
            return list(counts)
        mine = torch.tensor([counts], device=self.device)
        return cast("Tensor", self.accelerator.gather(mine)).view(self.size, -1).amax(0).tolist()

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

    def wait(self) -> None:
        """Waits until every process is here."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()

    def leave(self) -> None:
        """Waits for the others and ends the exchange."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()
