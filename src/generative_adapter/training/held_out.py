"""Held-out losses of a generator in training, dealt out to the processes.

Leaves out: measuring a finished generator (`generative_adapter.evaluation`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.batches import OBJECTIVES, Batch, ContextItem
from generative_adapter.training.objectives import token_losses
from generative_adapter.training.processes import Processes


def idle_passes(processes: Processes, batches: Sequence[Batch]) -> tuple[int, int]:
    """How many passes this process has to add to its own, and the reads to make in each.

    Processes that share a sharded base model have to run it equally often, though their parts differ; for all others
    both numbers are 0.
    """
    if not processes.shards:
        return 0, 0
    num_passes, num_reads = processes.most(len(batches), max((batch.num_reads for batch in batches), default=0))
    return num_passes - len(batches), num_reads


@torch.no_grad()
def held_out_values(
    base: BaseModel,
    generator: AdapterGenerator,
    items: Sequence[ContextItem],
    make_batches: Callable[[Sequence[ContextItem]], list[Batch]],
    processes: Processes,
    attention: str | None = None,
) -> dict[str, Any]:
    """Perplexity of each objective, and the part of answers that are all right.

    `answer_accuracy` counts answers of which every token is the likeliest one given the right tokens before it, which
    is what greedy decoding would produce.

    Args:
        base: the frozen base model.
        generator: as it stands.
        items: held-out contexts, at least one, the same in every process.
        make_batches: lays contexts out.
        processes: those of the run.
        attention: as in `token_losses`.
    """
    sums = torch.zeros(len(OBJECTIVES))
    counts = torch.zeros(len(OBJECTIVES))
    right = asked = 0
    batches = make_batches(items[processes.rank :: processes.size])
    num_idle, num_reads = idle_passes(processes, batches)
    for batch in batches:
        result = token_losses(base, generator, batch, attention, num_reads=num_reads)
        sums.index_add_(0, batch.objectives, result.losses.cpu())
        counts += torch.bincount(batch.objectives, minlength=len(OBJECTIVES))
        assert result.correct is not None
        wrong = torch.zeros(int(batch.segment_index.max()) + 1).index_add_(
            0, batch.segment_index, (~result.correct.cpu()).float()
        )
        answers = batch.segment_index[batch.objectives == OBJECTIVES.index("answer")].unique()
        right += int((wrong[answers] == 0).sum())
        asked += len(answers)
    for _ in range(num_idle):
        token_losses(base, generator, make_batches(items[:1])[0], attention, num_reads=num_reads)
    every = processes.sums([*sums.tolist(), *counts.tolist(), right, asked], base.device)
    sums, counts = torch.tensor(every[:-2], dtype=torch.float64).split(len(OBJECTIVES))
    right, asked = map(int, every[-2:])
    values: dict[str, Any] = {
        f"{name}_perplexity": math.exp(min(50.0, (sums[i] / counts[i]).item()))
        for i, name in enumerate(OBJECTIVES)
        if counts[i]
    }
    if asked:
        values |= {"answer_accuracy": right / asked, "num_answers": asked}
    return values
