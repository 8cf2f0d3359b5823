"""Losses of one pass: answers, and the paper's reconstruction and completion (eq. 5), all next-token predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_pass import (
    Lookups,
    PassRows,
    attention_kernel,
    prefix_logits,
    read_first_chunks,
    run_blocks,
)
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.batches import OBJECTIVES, Batch
from generative_adapter.training.cross_entropy import cross_entropy
from generative_adapter.training.distillation import distillation_losses, teacher_targets

LOOKUP_SHARPNESS = 10.0


@dataclass(frozen=True)
class TokenLosses:
    """What one pass gave, token by token, in the order of `Batch.labels`.

    Attributes:
        losses: -log P of each label, `[supervised]`, float32, with gradients.
        correct: whether the label was the likeliest token, `[supervised]`; None with gradients, where it would only
            cost time.
        lookup_losses: of each read whose token is known, mean over targets, `[lookups]`.
        lookup_correct: share of targets whose largest weight is at the right token, `[lookups]`.
        distillation_losses: divergence from the teacher of each token that has one, `[distilled]`, with gradients.
    """

    losses: Tensor
    correct: Tensor | None
    lookup_losses: Tensor | None = None
    lookup_correct: Tensor | None = None
    distillation_losses: Tensor | None = None


def token_losses(
    base: BaseModel,
    generator: AdapterGenerator,
    batch: Batch,
    attention: str | None = None,
    lookup: bool = False,
    distillation_top_k: int = 16,
    checkpointing: bool = False,
    num_reads: int = 0,
) -> TokenLosses:
    """-log P(x_i | x_<i, Theta_base + Delta) of every supervised token, eq. (5), arXiv:2411.05877.

    Args:
        base: the frozen base model.
        generator: gets gradients.
        batch: the pass.
        attention: attention kernel of the rows with gradients, `eager`, `grouped` or `sdpa`; None: the model's own.
        lookup: also the losses of looking answers up: cross-entropy of the softmax over the context's tokens of
            `LOOKUP_SHARPNESS` times the weights of a read, at the token whose value is the answer's next token.
        distillation_top_k: of a batch with a teacher, how many of its likeliest tokens count.
        checkpointing: blocks keep only their inputs and are computed again in the backward pass.
        num_reads: passes without gradients to make at least (`Batch.num_reads`); those that are missing read a token
            for nothing, since processes that share a sharded base model have to run it equally often.
    """
    rows, device = batch.rows, base.device
    labels = batch.labels.to(device)
    first = [
        read_first_chunks(base.model, generator.layers, ids.to(device), segments.to(device), rows.num_start_tokens)
        for ids, segments in batch.first
    ]
    targets = teacher_targets(base, batch.teacher, distillation_top_k) if batch.teacher is not None else None
    with torch.no_grad():
        for _ in range(batch.num_reads, num_reads):
            run_blocks(base.model, labels[:1].view(1, 1), torch.ones_like(labels[:1]).view(1, 1))
    moved = PassRows(
        rows.input_ids.to(device),
        rows.segments.to(device),
        rows.reads.to(device),
        rows.writers.to(device),
        rows.supervised.to(device),
        rows.num_start_tokens,
    )
    shift = generator[generator.targets[0].name].value_shift
    known = (batch.found_at >= shift).nonzero().squeeze(1).to(device) if lookup else None
    lookups = None if known is None or not len(known) else Lookups(known, batch.chunk_index.to(device)[known])
    with attention_kernel(base.model, attention):
        membership = batch.membership.to(device)
        logits, weights = prefix_logits(base.model, generator, first, moved, membership, lookups, checkpointing)
    correct = None if torch.is_grad_enabled() else logits.argmax(-1) == labels
    result = TokenLosses(cross_entropy(logits, labels), correct)
    if targets is not None:
        result = replace(result, distillation_losses=distillation_losses(logits, targets))
    if lookups is None or weights is None:
        return result
    lengths = torch.cat([group.mask.sum(1) for group in first])[lookups.chunks]
    outside = torch.arange(weights.shape[-1], device=device) >= lengths.unsqueeze(1)
    scores = (LOOKUP_SHARPNESS * weights).masked_fill(outside, -torch.inf)
    right = (batch.found_at.to(device)[lookups.labels] - shift).expand(len(scores), -1)
    found = F.cross_entropy(scores.flatten(0, 1), right.flatten(), reduction="none").view(right.shape)
    right_one = (scores.detach().argmax(-1) == right).float().mean(0)
    return replace(result, lookup_losses=found.mean(0), lookup_correct=right_one)


class GeneratorPass(nn.Module):
    """`token_losses` as a module whose parameters are the generator's alone, for wrappers such as DDP.

    Args:
        base: the frozen base model; not a submodule, so that nothing of it is exchanged or saved.
        generator: gets gradients.
        attention: as in `token_losses`.
        lookup: as in `token_losses`.
        distillation_top_k: as in `token_losses`.
        checkpointing: as in `token_losses`.
    """

    def __init__(
        self,
        base: BaseModel,
        generator: AdapterGenerator,
        attention: str | None = None,
        lookup: bool = False,
        distillation_top_k: int = 16,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.generator = generator
        self._base = base
        self._attention = attention
        self._lookup = lookup
        self._distillation_top_k = distillation_top_k
        self._checkpointing = checkpointing

    def forward(self, batch: Batch, num_reads: int = 0) -> TokenLosses:
        """The losses of one pass; see `token_losses`."""
        return token_losses(
            self._base,
            self.generator,
            batch,
            self._attention,
            self._lookup,
            self._distillation_top_k,
            self._checkpointing,
            num_reads,
        )


def count_labels(batches: Sequence[Batch]) -> dict[str, int]:
    """Supervised tokens of each objective in a step."""
    counts = torch.zeros(len(OBJECTIVES), dtype=torch.long)
    for batch in batches:
        counts += torch.bincount(batch.objectives, minlength=len(OBJECTIVES))
    return dict(zip(OBJECTIVES, counts.tolist(), strict=True))


def weighted_loss(
    losses: Tensor, objectives: Tensor, counts: Mapping[str, float], weights: Mapping[str, float]
) -> Tensor:
    """This pass's part of a step's loss: sum over objectives of weight * (mean over the step's tokens).

    Args:
        losses: `[supervised]`.
        objectives: index into `OBJECTIVES`, `[supervised]`.
        counts: supervised tokens of each objective in the whole step, so that the parts of all passes add up.
        weights: weight of each objective.
    """
    scale = torch.tensor([weights[name] / max(1, counts[name]) for name in OBJECTIVES], device=losses.device)
    return (losses * scale[objectives.to(losses.device)]).sum()
