"""DeepSpeed's settings for a frozen base model; that it runs is test_processes.py's to show."""

from __future__ import annotations

import sys

import pytest
import torch

from generative_adapter.errors import ConfigError, MissingDependencyError
from generative_adapter.training import zero3
from generative_adapter.training.processes import Processes


def test_what_the_recipe_decides_is_taken_out_of_deepspeeds_settings() -> None:
    settings = {
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu"},
            "offload_param": {"device": "cpu"},
            "reduce_bucket_size": "auto",
        },
        "optimizer": {"type": "AdamW"},
        "scheduler": {"type": "WarmupLR"},
        "gradient_clipping": "auto",
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": 8,
        "bf16": {"enabled": "auto"},
        "wall_clock_breakdown": "auto",
        "aio": {"block_size": 1048576},
    }
    before = repr(settings)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert zero3.frozen_config(settings, dtype) == {
            "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}},
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "fp16": {"enabled": dtype == torch.float16},
            "bf16": {"enabled": dtype == torch.bfloat16},
            "aio": {"block_size": 1048576},
        }
    assert repr(settings) == before


def test_a_missing_deepspeed_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MissingDependencyError, match=r"generative-adapter\[deepspeed\].*shard_base: true"):
        Processes("cpu" if not torch.cuda.is_available() else "auto")


def test_a_run_on_the_cpu_is_not_put_on_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="device"):
        Processes("cpu")
