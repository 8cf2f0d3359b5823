"""Checkpoints of a training run: a folder each, complete or absent, safetensors and JSON only.

A checkpoint is written to a temporary folder, flushed and renamed, so a kill at any moment leaves the one before it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from generative_adapter.checkpoint import GeneratorCheckpoint, load_weights, save_generator
from generative_adapter.errors import CheckpointError
from generative_adapter.generator.protocol import ContextGenerator
from generative_adapter.generator.storage import write_json, write_safetensors
from generative_adapter.training.optimizers import CombinedOptimizer

_PREFIX = "checkpoint-"
_OPTIMIZER_FORMAT = "generative-adapter-optimizer"


def save_checkpoint(
    output: Path,
    checkpoint: GeneratorCheckpoint,
    optimizer: Optimizer | CombinedOptimizer,
    progress: Mapping[str, Any],
    keep: int = 2,
    extra: Mapping[str, nn.Parameter] | None = None,
) -> Path:
    """Writes `output/checkpoint-<step>` and removes all but the newest `keep`.

    Args:
        output: folder of the run.
        checkpoint: the generator, written in float32.
        optimizer: its per-parameter tensors are written.
        progress: JSON values; `step` is the number of steps done.
        keep: how many checkpoints stay.
        extra: parameters that only training needs, by name.
    """
    final = output / f"{_PREFIX}{progress['step']:08d}"
    for left_over in output.glob(f".{_PREFIX}*.tmp"):  # of a run that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    if final in list_checkpoints(output):  # resumed from, and no step done since
        return final
    temporary = output / f".{final.name}.{os.getpid()}.tmp"
    temporary.mkdir(parents=True)
    try:
        save_generator(temporary / "generator.safetensors", checkpoint)
        parameters = _named_parameters(checkpoint.generator) | dict(extra or {})
        states = _optimizer_tensors(parameters, optimizer)
        states |= {name: parameter.detach() for name, parameter in (extra or {}).items()}
        write_safetensors(temporary / "optimizer.safetensors", states, {"format": _OPTIMIZER_FORMAT})
        write_json(temporary / "progress.json", dict(progress))
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in list_checkpoints(output)[:-keep]:
        removed = output / f".{old.name}.{os.getpid()}.tmp"  # so that half of one is never taken for a checkpoint
        os.replace(old, removed)
        shutil.rmtree(removed, ignore_errors=True)
    return final


def list_checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path for path in output.glob(f"{_PREFIX}*") if (path / "progress.json").is_file())


def read_progress(path: Path) -> dict[str, Any]:
    """The `progress` that a checkpoint was saved with.

    Raises:
        CheckpointError: when it is damaged.
    """
    try:
        progress = json.loads((path / "progress.json").read_text(encoding="utf-8"))
        if not isinstance(progress, dict) or "step" not in progress:
            raise ValueError("progress.json holds no step")
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return progress


def load_checkpoint(
    path: Path,
    generator: ContextGenerator,
    optimizer: Optimizer | CombinedOptimizer,
    extra: Mapping[str, nn.Parameter] | None = None,
) -> dict[str, Any]:
    """Puts a checkpoint's weights and optimiser state in place.

    Args:
        path: of the checkpoint.
        generator: gets the weights.
        optimizer: gets the states of the parameters that it owns.
        extra: parameters that only training needs, as given to `save_checkpoint`.

    Returns:
        The `progress` it was saved with.

    Raises:
        CheckpointError: when it is damaged or belongs to a generator of another form.
    """
    try:
        weights = load_file(path / "generator.safetensors")
        states = load_file(path / "optimizer.safetensors")
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error
    progress = read_progress(path)
    load_weights(generator, weights, str(path))
    owned = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    with torch.no_grad():
        for name, parameter in (extra or {}).items():
            parameter.copy_(states.pop(name))
    for name, parameter in (_named_parameters(generator) | dict(extra or {})).items():
        if parameter not in owned:
            continue
        prefix = f"{name}/"
        values = {key[len(prefix) :]: value for key, value in states.items() if key.startswith(prefix)}
        if not values and states:  # no state at all: no step was done yet
            raise CheckpointError(f"{path}: no optimiser state for {name}")
        if values:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in values.items()
            }
    return progress


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} can't be resumed from: {error}; remove it to resume from the one before")


def _named_parameters(generator: ContextGenerator) -> dict[str, nn.Parameter]:
    weights = generator.named_weights().items()
    return {name: weight for name, weight in weights if isinstance(weight, nn.Parameter)}


def _optimizer_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: Optimizer | CombinedOptimizer
) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
