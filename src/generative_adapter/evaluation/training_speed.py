"""How fast training runs: real tokens a second against a plain implementation of the same loss, and the time's split.

Steps of both kinds take turns on the same contexts, so that a machine's other work meets them alike. Leaves out:
runs of several processes, and the split on a GPU (`time_split`).
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as with_changes
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from generative_adapter.base_model.loading import BaseModel, load_base_model
from generative_adapter.config import require
from generative_adapter.evaluation.plain_training import PlainTrainer
from generative_adapter.evaluation.time_split import LabelledSeconds, labelled_seconds
from generative_adapter.generator.generator import GENERATOR_LABEL
from generative_adapter.generator.normalization import NORMALIZATION_LABEL
from generative_adapter.training.loop import Trainer
from generative_adapter.training.memory_blocks import keep_memory_blocks
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.run import make_trainer

ProgressCallback = Callable[[int, int], None]

LABELS = (GENERATOR_LABEL, NORMALIZATION_LABEL)
_PROFILED_STEPS = 2


@dataclass(frozen=True)
class StepTimes:
    """Measured steps of one implementation.

    Attributes:
        tokens_per_second: real tokens a second, padding not counted, the median over steps.
        median_step_seconds: from drawing the contexts to the end of the optimiser's step.
        first_loss: loss of the first step; adapters are still zero there, so every implementation has the same.
        peak_memory_bytes: most device memory in use at a time; None on a CPU.
    """

    tokens_per_second: float
    median_step_seconds: float
    first_loss: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class TimeShare:
    """One part of a training step: its seconds, and its share of the whole step."""

    seconds: float
    share: float


@dataclass(frozen=True)
class TrainingSpeed:
    """What `measure_training` found.

    Attributes:
        base_model: name of the base model.
        device: where it ran.
        num_threads: torch's threads on the CPU.
        dtype: number format of the base model; the generator is always float32.
        num_generator_parameters: trained numbers.
        state_dim: d_r.
        rank: r.
        normalization: that of the project's step; the plain one takes `torch.svd_lowrank`.
        attention: attention kernel of the project's step.
        plain_attention: that of the plain one.
        chunk_tokens: tokens of a chunk.
        contexts_per_step: contexts in a step.
        tokens_per_step: real tokens in a step, on average: every token that is run, contexts and what is asked of them.
        num_steps: measured steps of each implementation.
        ours: the project's step.
        plain: the plain step, one context after another as in the paper's reference code; None when it was left out.
        plain_batched: the plain step with all contexts of a pass side by side.
        ratio: tokens a second of ours over those of `plain`.
        batched_ratio: over those of `plain_batched`.
        split: part -> its time in the step of median length; the parts add up to it. None on a GPU.
        generator_share: share of generator and normalisation, forward and backward; None on a GPU.
    """

    base_model: str
    device: str
    num_threads: int
    dtype: str
    num_generator_parameters: int
    state_dim: int
    rank: int
    normalization: str
    attention: str
    plain_attention: str
    chunk_tokens: int
    contexts_per_step: int
    tokens_per_step: float
    num_steps: int
    ours: StepTimes
    plain: StepTimes | None
    plain_batched: StepTimes | None
    ratio: float | None
    batched_ratio: float | None
    split: Mapping[str, TimeShare] | None
    generator_share: float | None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def measure_training(
    recipe: TrainingRecipe,
    steps: int = 5,
    warmup_steps: int = 3,
    seed: int = 0,
    *,
    plain: bool = True,
    plain_attention: str = "sdpa",
    base: BaseModel | None = None,
    progress: ProgressCallback | None = None,
) -> TrainingSpeed:
    """Times optimiser steps of a recipe, the project's and the plain ones in turn; trains nothing that is kept.

    Args:
        recipe: what a step is.
        steps: measured steps of each implementation.
        warmup_steps: steps of each before those.
        seed: decides initial weights, contexts and the plain implementation's random numbers.
        plain: whether to run the plain implementations.
        plain_attention: its attention kernel, `eager` or `sdpa`, which Transformers gives a model unless told
            otherwise.
        base: the recipe's base model, when it is loaded already.
        progress: is given `(steps done, steps in all)`.

    Raises:
        ConfigError: when there is no step to measure, or the recipe has a loss the plain implementation lacks.
    """
    require(steps > 0, f"the number of measured steps must be positive, got {steps}")
    require(
        recipe.generator.encoder is None,
        "the speed of training with an encoder can't be measured by this command; metrics.jsonl of a run tells it",
    )
    require(warmup_steps >= 0, f"the number of warm-up steps must not be negative, got {warmup_steps}")
    with tempfile.TemporaryDirectory() as folder:
        recipe = with_changes(recipe, seed=seed, output=folder)
        base = base or load_base_model(recipe.base_model, device=recipe.device, dtype=recipe.dtype)
        on_cpu = base.device.type == "cpu"
        if on_cpu:
            keep_memory_blocks()
        trainer = make_trainer(recipe, base)
        assert isinstance(trainer, Trainer)
    plain_recipe = with_changes(recipe, attention=plain_attention)
    plain_trainers = {
        name: PlainTrainer(plain_recipe, base, copy.deepcopy(trainer.generator), contexts_at_once)
        for name, contexts_at_once in (("plain", 1), ("plain_batched", None))
        if plain
    }
    profiled_steps = _PROFILED_STEPS if on_cpu else 0
    total = warmup_steps + steps + profiled_steps
    ours: list[dict[str, float]] = []
    theirs: dict[str, list[dict[str, float]]] = {name: [] for name in plain_trainers}
    for step in range(warmup_steps + steps):
        values, seconds, memory = _timed(base, lambda step=step: trainer.train_step(step))
        ours.append(values | {"seconds": seconds, "memory": memory})
        for name, other in plain_trainers.items():
            loss, seconds, memory = _timed(
                base, lambda step=step, other=other: other.train_step(trainer.sampler.step(step), step)
            )
            measured = {"loss": loss, "seconds": seconds, "memory": memory, "real_tokens": values["real_tokens"]}
            theirs[name].append(measured)
        if progress is not None:
            progress(step + 1, total)
    split: dict[str, TimeShare] | None = None
    if on_cpu:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            slowed = [trainer.train_step(step) for step in range(warmup_steps + steps, total)]
        split = split_step(
            ours[warmup_steps:], slowed, labelled_seconds(profiled.events() or [], LABELS, GENERATOR_LABEL)
        )
        if progress is not None:
            progress(total, total)
    first = _summary(ours, warmup_steps, on_cpu)
    others = {name: _summary(steps_of, warmup_steps, on_cpu) for name, steps_of in theirs.items()}
    ratios = {name: first.tokens_per_second / other.tokens_per_second for name, other in others.items()}
    generator = recipe.generator
    return TrainingSpeed(
        base_model=base.name,
        device=str(base.device),
        num_threads=torch.get_num_threads(),
        dtype=str(base.dtype).removeprefix("torch."),
        num_generator_parameters=trainer.generator.num_parameters,
        state_dim=generator.state_dim,
        rank=generator.rank,
        normalization=generator.normalization,
        attention=recipe.attention,
        plain_attention=plain_attention,
        chunk_tokens=generator.chunk_tokens,
        contexts_per_step=recipe.contexts_per_step,
        tokens_per_step=statistics.mean(step["real_tokens"] for step in ours[warmup_steps:]),
        num_steps=steps,
        ours=first,
        plain=others.get("plain"),
        plain_batched=others.get("plain_batched"),
        ratio=ratios.get("plain"),
        batched_ratio=ratios.get("plain_batched"),
        split=split,
        generator_share=None
        if split is None
        else sum(part.share for name, part in split.items() if name.startswith(LABELS)),
    )


def split_step(
    steps: Sequence[Mapping[str, float]], profiled: Sequence[Mapping[str, float]], labelled: LabelledSeconds
) -> dict[str, TimeShare]:
    """The time of the step of median length, in parts that add up to it.

    Forward, backward and optimiser are what that step took itself; the profile, which slows a step down, says what
    part of its own forward and backward passes is the generator's and the normalisation's.

    Args:
        steps: measured steps, as `Trainer.train_step` gives them.
        profiled: the same for the steps in the profile.
        labelled: what the profile says.
    """
    typical = sorted(steps, key=lambda step: step["step_seconds"])[len(steps) // 2]
    seconds: dict[str, float] = {}
    for name, inside in (("forward", labelled.forward), ("backward", labelled.backward)):
        own = typical[f"{name}_seconds"]
        slowed = sum(step[f"{name}_seconds"] for step in profiled)
        parts = {f"{label}_{name}": own * inside[label] / slowed for label in LABELS}
        seconds |= {f"base_{name}": own - sum(parts.values()), **parts}
    seconds["optimizer"] = typical["optimizer_seconds"]
    whole = typical["step_seconds"]
    seconds["rest"] = whole - sum(seconds.values())
    return {name: TimeShare(value, value / whole) for name, value in seconds.items()}


def _timed(base: BaseModel, run: Callable[[], Any]) -> tuple[Any, float, int]:
    """What a call gives, the seconds until its work is done, and the most memory it held on a GPU."""
    on_gpu = base.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(base.device)
        torch.cuda.reset_peak_memory_stats(base.device)
    started = time.perf_counter()
    result = run()
    if on_gpu:
        torch.cuda.synchronize(base.device)
    seconds = time.perf_counter() - started
    return result, seconds, torch.cuda.max_memory_allocated(base.device) if on_gpu else 0


def _summary(steps: Sequence[Mapping[str, float]], warmup_steps: int, on_cpu: bool) -> StepTimes:
    measured = steps[warmup_steps:]
    return StepTimes(
        statistics.median(step["real_tokens"] / step["seconds"] for step in measured),
        statistics.median(step["seconds"] for step in measured),
        steps[0]["loss"],
        None if on_cpu else int(max(step["memory"] for step in measured)),
    )
