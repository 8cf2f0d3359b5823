"""Two real processes (gloo) against one with the same global batch."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.targets import find_blocks
from generative_adapter.checkpoint import named_weights
from generative_adapter.errors import ConfigError, MissingDependencyError
from generative_adapter.training import zero3
from generative_adapter.training.processes import Processes
from generative_adapter.training.recipe import load_recipe
from generative_adapter.training.run import make_trainer
from metric_lines import metric_lines


def test_shares_are_a_partition_of_like_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes()
    assert (processes.rank, processes.size, processes.is_first) == (0, 1, True)
    assert processes.share("abc", [1, 3, 2]) == ["a", "b", "c"]
    parts = []
    for rank in range(3):
        monkeypatch.setattr(processes, "size", 3)
        monkeypatch.setattr(processes, "rank", rank)
        parts.append(processes.share("abcdefg", [5, 1, 4, 4, 2, 9, 3]))
    assert sorted("".join(map("".join, parts))) == list("abcdefg")
    assert [part[0] for part in parts] == ["f", "a", "c"]
    with pytest.raises(ConfigError, match="contexts_per_step"):
        processes.share("ab", [1, 1])


def test_sharded_setups_of_accelerate_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate.Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match="FSDP"):
        Processes("cpu")


def test_a_missing_accelerate_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependencyError, match=r"generative-adapter\[train\]"):
        Processes("cpu")


def test_lower_stages_of_zero_are_plain_data_parallelism(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for stage, shards in ((2, False), (3, True)):
        given = {"zero_optimization": {"stage": stage}}
        monkeypatch.setattr(zero3, "make_accelerator", lambda on_cpu, given=given: (Processes().accelerator, given))
        monkeypatch.setattr(zero3, "asked_for", iter([True, False]).__next__)
        caplog.clear()
        assert Processes("cpu").shards is shards
        assert ("ZeRO stage 2 splits nothing" in caplog.text) is not shards


SHARDED = {
    "shard_base": True,
    "gradient_checkpointing": True,
    "distillation_weight": 0.5,
    "micro_batch_tokens": 150,  # parts of a step that differ in their number of passes
    "whitening_contexts": 4,
    "evaluation_contexts": 3,
}


# Below its threshold DeepSpeed keeps weights whole, which would be all of the tiny model's.
ZERO3 = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "reduce_bucket_size": "auto"},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_clipping": 1.0,
}
TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
with_deepspeed = pytest.param(
    {**SHARDED, "shard_base": False},
    ["accelerate.commands.launch", "--use_deepspeed", "--num_processes", "2", "--main_process_port", "0"],
    id="deepspeed",
    marks=[
        pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
        pytest.mark.skipif(torch.cuda.is_available(), reason="DeepSpeed would want a GPU for each process"),
    ],
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "launcher"),
    [pytest.param({}, TORCHRUN, id="plain"), pytest.param(SHARDED, TORCHRUN, id="sharded"), with_deepspeed],
)
def test_two_processes_give_the_losses_and_weights_of_one(
    base: BaseModel, write_recipe: Callable[..., Path], tmp_path: Path, extra: dict[str, Any], launcher: list[str]
) -> None:
    settings = {
        "device": "cpu" if torch.cuda.is_available() else "auto",
        "num_steps": 3,
        "contexts_per_step": 5,
        "log_steps": 1,
        "evaluation_steps": 2,
        "evaluation_contexts": 5,
        **extra,
    }
    one = make_trainer(load_recipe(write_recipe("one.yaml", output=str(tmp_path / "one"), **settings)), base)
    one.run()
    path = write_recipe("two.yaml", output=str(tmp_path / "two"), **settings)
    if "--use_deepspeed" in launcher:
        config = tmp_path / "zero3.json"
        config.write_text(json.dumps(ZERO3))
        launcher = [*launcher, "--deepspeed_config_file", str(config)]
    command = [sys.executable, "-m", *launcher]
    script = Path(__file__).parent / "two_processes.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run([*command, str(script), str(path), str(tmp_path)], check=True, timeout=300, env=environment)
    weights = [load_file(tmp_path / f"rank-{rank}.safetensors") for rank in (0, 1)]
    kept = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    whole = sum(parameter.numel() for parameter in find_blocks(base.model)[1].parameters())
    expected_part = (0.4 * whole, 0.6 * whole) if extra else (whole, whole)
    assert {numbers["fingerprint"] for numbers in kept} == {base.fingerprint}
    assert all(expected_part[0] <= numbers["blocks"] <= expected_part[1] for numbers in kept)
    if extra:
        assert len({numbers["passes"] for numbers in kept}) == 2  # what idle passes are for
    for name, expected in named_weights(one.generator).items():
        assert torch.equal(weights[0][name], weights[1][name])
        assert (weights[0][name] - expected).norm() < 0.01 * expected.norm(), name
    lines = [metric_lines(tmp_path / run) for run in ("one", "two")]
    assert [line["step"] for line in lines[1] if line["kind"] == "training"] == [1, 2, 3]
    for single, double in zip(*lines, strict=True):
        if single["kind"] == "training":
            assert double["loss"] == pytest.approx(single["loss"], rel=1e-3)
            assert double["gradient_norm"] == pytest.approx(single["gradient_norm"], rel=1e-2)  # AdamW hides its scale
            assert double["num_tokens"] == single["num_tokens"]
        else:
            for name, values in single.items():
                assert double[name] == (pytest.approx(values, rel=1e-2) if isinstance(values, dict) else values)
