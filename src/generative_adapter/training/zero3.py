"""The frozen base model under DeepSpeed's ZeRO stage 3, where Accelerate is set up for it.

DeepSpeed's hooks gather a module's weights before it runs, forward and backward, and let them go afterwards. Leaves out
all that DeepSpeed does for trained weights: the generator stays whole, with DDP and the recipe's optimiser, so that its
checkpoints are the same files however a run was started. DeepSpeed is imported inside the functions; it is an extra.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from generative_adapter.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import KwargsHandler

# What the recipe decides, or what only trained weights have.
_NOT_TAKEN = {"optimizer", "scheduler", "gradient_clipping", "train_batch_size", "torch_autocast", "amp"}


def asked_for() -> bool:
    """Whether `accelerate launch` was told to use DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def make_accelerator(on_cpu: bool) -> tuple[Accelerator, dict[str, Any]]:
    """Accelerate's view of a run with DeepSpeed, and DeepSpeed's settings.

    Args:
        on_cpu: whether the run is to use the CPU alone.

    Raises:
        MissingDependencyError: when DeepSpeed is not installed.
        ConfigError: when a run on the CPU was asked for where DeepSpeed would take a GPU.
    """
    if on_cpu and torch.cuda.is_available():
        raise ConfigError(
            "the recipe says `device: cpu`, but DeepSpeed takes the GPUs it finds; leave `device` at `auto`, or start "
            "without DeepSpeed"
        )
    with redirect_stdout(sys.stderr):  # its log takes the standard output of the moment when it is imported
        try:
            import deepspeed  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDependencyError(
                "Accelerate is set up for DeepSpeed, which is not installed; pip install "
                "'generative-adapter[deepspeed]', or do without: `shard_base: true` in the recipe, and `torchrun`"
            ) from error
        from accelerate import Accelerator
        from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        plugin = DeepSpeedPlugin(zero3_init_flag=False)
        handlers: list[KwargsHandler] = []
        if on_cpu:  # with DeepSpeed, Accelerate knows no backend for CPUs and would take each process for a run of one
            handlers = [InitProcessGroupKwargs(backend="gloo")]
        accelerator = Accelerator(mixed_precision="no", deepspeed_plugin=plugin, kwargs_handlers=handlers)
    # Transformers would load models in parts already, of which no fingerprint can be taken.
    unset_hf_deepspeed_config()
    return accelerator, plugin.deepspeed_config


def frozen_config(settings: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's settings for a frozen model.

    Args:
        settings: those of the user; of `auto` values DeepSpeed's own defaults are taken.
        dtype: type of the model's parameters.
    """
    zero = {
        name: value
        for name, value in settings["zero_optimization"].items()
        if name != "offload_optimizer" and value != "auto"
    }
    taken = {name: value for name, value in settings.items() if name not in _NOT_TAKEN and value != "auto"}
    return taken | {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "fp16": {"enabled": dtype == torch.float16},
        "bf16": {"enabled": dtype == torch.bfloat16},
    }


def shard(model: nn.Module, settings: Mapping[str, Any], device: torch.device) -> None:
    """Spreads a frozen model over the processes, in place; every process then has to run it equally often.

    The model is moved to the device parameter by parameter, so it never has to fit there as a whole.
    """
    import deepspeed  # pyright: ignore[reportMissingImports]

    config = frozen_config(settings, next(model.parameters()).dtype)
    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    deepspeed.initialize(model=model, config=config)  # puts the hooks on, which keep the engine
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
