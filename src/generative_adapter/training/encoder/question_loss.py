"""The loss of a pass and of its questions, and which of them it leaves out: loss truncation (Kang & Hashimoto 2020).

Of questions that a model wrote, many aren't answered by what stands as their answer; these have the largest losses, as
soon as others are learned. Leaves out: the losses of single tokens (`passes`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from generative_adapter.training.encoder.passes import PassLosses
from generative_adapter.training.encoder.settings import EncoderTraining


def question_loss(losses: Tensor, question: Tensor, kept: Tensor | None = None) -> Tensor:
    """Mean over tokens, each weighted by its answer's length to the power -1/2: long answers count somewhat more.

    Args:
        losses: of the answers' tokens, `[tokens]`.
        question: number of the question of each, `[tokens]`.
        kept: the questions that count, `[questions]`, bool; None: all.
    """
    weights = torch.bincount(question).to(losses).rsqrt()[question]
    if kept is not None:
        weights = weights * kept[question]
    return (losses * weights).sum() / weights.sum().clamp_min(1e-9)


def kept_questions(losses: Tensor, question: Tensor, sources: Tensor, dropped_shares: Sequence[float]) -> Tensor:
    """The questions that are left when of each source's the share with the largest mean loss is dropped.

    Args:
        losses: of the answers' tokens, `[tokens]`.
        question: number of the question of each, `[tokens]`.
        sources: of each question, `[questions]`.
        dropped_shares: of each source, in [0, 1); of n questions floor(share n) are dropped. Sources beyond: none.

    Returns:
        `[questions]`, bool.
    """
    counts = torch.bincount(question, minlength=len(sources))
    means = losses.new_zeros(len(sources)).index_add(0, question, losses.detach()) / counts.clamp_min(1)
    kept = torch.ones(len(sources), dtype=torch.bool, device=losses.device)
    for source, share in enumerate(dropped_shares):
        own = (sources == source).nonzero().squeeze(1)
        kept[own[means[own].topk(int(share * len(own))).indices]] = False
    return kept


def weighted_losses(found: PassLosses, settings: EncoderTraining, position_weight: float) -> Tensor:
    """The loss of a pass: its parts by their weights, those of questions of the ones that count.

    Args:
        found: what the pass gave.
        settings: the weights.
        position_weight: of `found.places`, which falls in a run.
    """
    counted = kept_questions(found.answers, found.question, found.sources, settings.dropped_shares)
    total = question_loss(found.token_losses(settings.teacher_share), found.question, counted)
    total = total + settings.kept_weight * mean_or_zero(found.kept_losses(settings.kept_text_share))
    for weight, losses, question in (
        (position_weight, found.places, found.place_question),
        (settings.repeat_weight, found.repeats, found.repeat_question),
        (settings.question_word_weight, found.words, found.word_question),
    ):
        if weight:
            total = total + weight * mean_or_zero(losses[counted[question]])
    return total


def mean_or_zero(losses: Tensor) -> Tensor:
    """Their mean; zero for none."""
    return losses.mean() if len(losses) else losses.sum()
