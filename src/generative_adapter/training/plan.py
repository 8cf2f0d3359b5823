"""A dry run: what a recipe would cost, from the recipe and the base model's config alone.

Nothing is read but that config, nothing is written; files that the recipe names must be there. Lengths are means
(`context_shapes`), operations and bytes estimates with the formulas stated in `base_model.costs` and `pass_costs`.
Leaves out: evaluations, optimiser operations, exchange between processes and memory that allocators leave unused.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from generative_adapter.base_model.costs import BaseSizes, base_sizes
from generative_adapter.base_model.generator_building import generator_for
from generative_adapter.base_model.skeleton import load_skeleton
from generative_adapter.config import TargetShape, require
from generative_adapter.errors import DataError
from generative_adapter.generator.generator import paper_generator
from generative_adapter.generator.protocol import ContextGenerator
from generative_adapter.training.context_shapes import context_shape, contexts_of_a_pass, num_records, pass_layout
from generative_adapter.training.pass_costs import Flops, PassLayout, pass_bytes, pass_flops
from generative_adapter.training.recipe import TrainingRecipe

_NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}


@dataclass(frozen=True)
class TrainingPlan:
    """What a run would do and cost.

    Attributes:
        base_model: its name.
        config_from: where its config was found.
        base_parameters: numbers in it.
        num_targets: adapted linears.
        generator_parameters: trained numbers.
        num_steps: optimiser steps; None: known only when the data are read.
        contexts_per_step: in a global batch.
        context_tokens_per_step: real tokens of those contexts.
        computed_tokens_per_step: tokens that the base model computes for them, padding included.
        contexts, context_tokens, computed_tokens: of the whole run.
        num_processes: that share a step.
        memory_bytes: of one process, by what it is for, and `total`.
        activation_bytes: of those the base model's activations, `plain` and with gradient checkpointing
            (`checkpointed`), whichever the recipe says.
        flops_per_step: of all processes, by what it is for, and `total`.
        flops: of the whole run.
        generator_file_bytes: of the generator on disk, float32.
        adapter_file_bytes: of one context's low-rank adapter on disk, bfloat16.
        adapter_rank: its rank.
        seconds: the time it would take at the throughput given.
        notes: what is not known or not there yet.
    """

    base_model: str
    config_from: str
    base_parameters: int
    num_targets: int
    generator_parameters: int
    num_steps: int | None
    contexts_per_step: int
    context_tokens_per_step: float
    computed_tokens_per_step: float
    contexts: int | None
    context_tokens: float | None
    computed_tokens: float | None
    num_processes: int
    memory_bytes: dict[str, float]
    activation_bytes: dict[str, float]
    flops_per_step: dict[str, float]
    flops: dict[str, float] | None
    generator_file_bytes: int
    adapter_file_bytes: int
    adapter_rank: int
    seconds: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values; tokens, bytes and operations as whole numbers."""
        values = asdict(self)
        values["notes"] = list(self.notes)
        return {name: _whole(value) for name, value in values.items()}


def plan_training(
    recipe: TrainingRecipe,
    *,
    num_processes: int = 1,
    tokens_per_second: float | None = None,
    teraflops: float | None = None,
) -> TrainingPlan:
    """Resolves a recipe and counts what it costs, without weights and data.

    Args:
        recipe: the settings.
        num_processes: processes that share a step.
        tokens_per_second: computed tokens a second, of all processes together.
        teraflops: sustained 10^12 operations a second of each process; instead of `tokens_per_second`.

    Raises:
        DataError: when a file that a source names is not there.
        BaseModelError: when the base model's config is not to be had, or a target is not found in it.
        ConfigError: when the arguments or the recipe don't fit.
    """
    require(num_processes > 0, f"the number of processes must be positive, got {num_processes}")
    require(
        num_processes <= recipe.contexts_per_step,
        f"{recipe.contexts_per_step} contexts a step can't be dealt out to {num_processes} processes; raise "
        "contexts_per_step",
    )
    require(
        tokens_per_second is None or teraflops is None,
        "give the throughput in tokens a second or in teraflops, not both",
    )
    for value in (tokens_per_second, teraflops):
        require(value is None or value > 0, f"the throughput must be positive, got {value}")
    notes = _check_files(recipe)
    skeleton = load_skeleton(recipe.base_model)
    sizes = base_sizes(skeleton.model)
    with torch.device("meta"):
        generator = paper_generator(generator_for(recipe.generator, skeleton.model, sizes.hidden_size), "a dry run")
    targets = generator.targets

    num_steps, counts = _contexts(recipe)
    if num_steps is None:
        notes.append("num_epochs: a source without max_records or max_tokens; its length is known when it is read")
    total_contexts = sum(counts)
    checkpointing = recipe.gradient_checkpointing
    step, tokens, computed = Flops(), 0.0, 0.0
    layouts: list[PassLayout] = []
    for source, count in zip(recipe.sources, counts, strict=True):
        shape = context_shape(source)
        size = contexts_of_a_pass(shape, recipe, num_processes)
        layout = pass_layout(shape, recipe, size)
        layouts.append(layout)
        passes = recipe.contexts_per_step * count / total_contexts / size  # of a step, in all processes
        step = step.plus(pass_flops(sizes, recipe.generator, targets, layout, checkpointing=checkpointing), passes)
        tokens += passes * layout.context_tokens
        computed += passes * (layout.computed_tokens + layout.teacher_tokens)
    seconds = None
    if num_steps is not None and tokens_per_second is not None:
        seconds = num_steps * computed / tokens_per_second
    if num_steps is not None and teraflops is not None:
        seconds = num_steps * step.total / (teraflops * 1e12 * num_processes)
    rank = recipe.generator.rank
    memory = _memory(recipe, sizes, targets, generator, layouts, num_processes)
    per_step = {**asdict(step), "total": step.total}
    return TrainingPlan(
        base_model=skeleton.name,
        config_from=skeleton.config_from,
        base_parameters=sizes.num_parameters,
        num_targets=len(targets),
        generator_parameters=generator.num_parameters,
        num_steps=num_steps,
        contexts_per_step=recipe.contexts_per_step,
        context_tokens_per_step=tokens,
        computed_tokens_per_step=computed,
        contexts=None if num_steps is None else num_steps * recipe.contexts_per_step,
        context_tokens=None if num_steps is None else num_steps * tokens,
        computed_tokens=None if num_steps is None else num_steps * computed,
        num_processes=num_processes,
        memory_bytes=memory,
        activation_bytes={
            name: _largest_pass(recipe, sizes, targets, layouts, checkpointing=chosen)["activations"]
            for name, chosen in (("plain", False), ("checkpointed", True))
        },
        flops_per_step=per_step,
        flops=None if num_steps is None else {name: num_steps * value for name, value in per_step.items()},
        generator_file_bytes=4 * generator.num_parameters,
        adapter_file_bytes=2 * rank * sum(target.in_features + target.out_features for target in targets),
        adapter_rank=rank,
        seconds=seconds,
        notes=tuple(notes),
    )


def _check_files(recipe: TrainingRecipe) -> list[str]:
    """Notes on what is not there yet; what only the user can provide must be."""
    for source in recipe.sources:
        for path in source.paths:
            if not Path(path).is_file():
                raise DataError(
                    f"{path}: there is no such file, but a source of kind {source.kind!r} names it; name your own in "
                    "the recipe or with --set sources.N.paths=[FILE]"
                )
    first = recipe.initial_generator
    if first is not None and not Path(first).is_file():
        return [f"initial_generator {first} is not there yet: make it first"]
    return []


def _contexts(recipe: TrainingRecipe) -> tuple[int | None, list[float]]:
    """Steps of the run, and contexts of each source in it (where there are no steps yet: in proportion to these)."""
    if recipe.num_epochs is not None:
        records = [num_records(source) for source in recipe.sources]
        known = [count for count in records if count is not None]
        if len(known) < len(records):
            return None, [source.share for source in recipe.sources]
        return max(1, round(recipe.num_epochs * sum(known) / recipe.contexts_per_step)), known
    ends = {edge for source in recipe.sources for edge in (source.start_step, source.end_step) if edge is not None}
    edges = sorted({0, recipe.num_steps, *(edge for edge in ends if edge < recipe.num_steps)})
    counts = [0.0] * len(recipe.sources)
    for start, end in itertools.pairwise(edges):
        shares = [source.share if source.takes_part(start) else 0.0 for source in recipe.sources]
        for index, share in enumerate(shares):
            counts[index] += (end - start) * recipe.contexts_per_step * share / (sum(shares) or 1.0)
    return recipe.num_steps, counts


def _largest_pass(
    recipe: TrainingRecipe,
    sizes: BaseSizes,
    targets: Sequence[TargetShape],
    layouts: Sequence[PassLayout],
    *,
    checkpointing: bool,
) -> dict[str, float]:
    """Bytes of the pass that keeps most."""
    passes = [
        pass_bytes(
            sizes,
            recipe.generator,
            targets,
            layout,
            _NUMBER_BYTES.get(recipe.dtype, 4),
            attention=recipe.attention,
            checkpointing=checkpointing,
        )
        for layout in layouts
    ]
    return max(passes, key=lambda kept: sum(kept.values()))


def _memory(
    recipe: TrainingRecipe,
    sizes: BaseSizes,
    targets: Sequence[TargetShape],
    generator: ContextGenerator,
    layouts: Sequence[PassLayout],
    num_processes: int,
) -> dict[str, float]:
    """Bytes of one process."""
    largest = _largest_pass(recipe, sizes, targets, layouts, checkpointing=recipe.gradient_checkpointing)
    count = generator.num_parameters
    matrices = sum(parameter.numel() for parameter in generator.parameters() if parameter.ndim > 1)
    moments = 8 * count - (4 * matrices if recipe.optimizer == "muon" else 0)
    parts: dict[str, float] = {
        "base_weights": _NUMBER_BYTES.get(recipe.dtype, 4) * sizes.num_parameters,
        "generator": 4 * count,
        "gradients": 4 * count * (2 if num_processes > 1 else 1),  # DDP exchanges copies
        "optimizer": moments + (4 * matrices if recipe.whitening_contexts else 0),
        **largest,
    }
    return {**parts, "total": sum(parts.values())}


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    return round(value) if isinstance(value, float) else value
