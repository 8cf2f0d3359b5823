"""Distillation from the in-context teacher: what the plain base model says with the context in its prompt.

Beyond the paper (its successor Doc-to-LoRA trains so): beside or instead of the right tokens, the adapted model is
taught the teacher's probabilities. The teacher reads the context, an empty line and the question's prompt; for text to
be completed, the text itself. Reconstructions have no teacher. Leaves out: the rows with gradients (`batches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_pass import attention_mask, head_at, segment_positions
from generative_adapter.training.batches import Batch, ContextItem


@dataclass(frozen=True)
class TeacherRows:
    """Rows that the plain base model reads, context and all.

    Attributes:
        input_ids: `[rows, tokens]`, padding on the right.
        segments: 1 for tokens, 0 for padding, `[rows, tokens]`.
        supervised: positions whose next-token probabilities are wanted, `[rows, tokens]`, bool.
        labels: number in `Batch.labels` of the token after each of them, row-major, `[distilled]`.
    """

    input_ids: Tensor
    segments: Tensor
    supervised: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's likeliest next tokens.

    Attributes:
        tokens: `[distilled, top_k]`.
        probabilities: of these among each other, `[distilled, top_k]`, float32.
        labels: as in `TeacherRows`.
    """

    tokens: Tensor
    probabilities: Tensor
    labels: Tensor


def with_teacher(
    batch: Batch, items: Sequence[ContextItem], separator: Sequence[int], start_ids: Sequence[int], pad_id: int
) -> Batch:
    """The batch with its teacher's rows: one a question, and one a text that is completed.

    Args:
        batch: made from `items`.
        items: its contexts.
        separator: tokens between context and prompt.
        start_ids: begin-of-sequence tokens, which every prompt starts with.
        pad_id: token id of padding.
    """
    start = tuple(start_ids)
    rows: list[tuple[int, ...]] = []
    wanted: list[list[tuple[int, int, int]]] = []  # of each row: first position, number of its label, how many
    texts: dict[int, int] = {}  # item -> its row
    for span in batch.spans:
        item = items[span.item]
        size = len(span.segment.ids) - span.segment.num_prompt
        if span.segment.objective == "completion" and item.completion:
            if span.item not in texts:
                texts[span.item] = len(rows)
                rows.append((*start, *(token for chunk in item.chunks for token in chunk)))
                wanted.append([])
            before = len(start) + sum(len(chunk) for chunk in item.chunks[: span.segment.level])
            skipped = span.segment.num_prompt - len(start)  # without a start the first token of a chunk is given
            wanted[texts[span.item]].append((before + skipped - 1, span.first_label, size))
        elif span.segment.objective in ("answer", "completion"):
            read = (*start, *(token for chunk in item.chunks[: span.segment.level] for token in chunk))
            between = tuple(separator) if span.segment.objective == "answer" else ()
            asked = span.segment.ids
            row = (*read, *between, *(asked[len(start) :] if asked[: len(start)] == start else asked))
            rows.append(row)
            wanted.append([(len(row) - size - 1, span.first_label, size)])
    if not rows:
        return batch
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad_id)
    segments = torch.zeros(len(rows), width, dtype=torch.long)
    supervised = torch.zeros(len(rows), width, dtype=torch.bool)
    labels: list[int] = []
    for number, (row, places) in enumerate(zip(rows, wanted, strict=True)):
        input_ids[number, : len(row)] = torch.tensor(row)
        segments[number, : len(row)] = 1
        for position, label, size in sorted(places):
            supervised[number, position : position + size] = True
            labels += range(label, label + size)
    teacher = TeacherRows(input_ids, segments, supervised, torch.tensor(labels))
    real, computed = int(segments.sum()), segments.numel()
    return replace(
        batch,
        teacher=teacher,
        num_real_tokens=batch.num_real_tokens + real,
        num_computed_tokens=batch.num_computed_tokens + computed,
    )


@torch.no_grad()
def teacher_targets(base: BaseModel, rows: TeacherRows, top_k: int) -> TeacherTargets:
    """The plain base model's `top_k` likeliest next tokens at the wanted positions."""
    device = base.device
    segments = rows.segments.to(device)
    mask, positions = attention_mask(base.model, segments), segment_positions(segments)
    found = likeliest_tokens(base, rows.input_ids.to(device), mask, positions, rows.supervised.to(device), top_k)
    return TeacherTargets(*found, rows.labels.to(device))


def likeliest_tokens(
    base: BaseModel, input_ids: Tensor, mask: Tensor | None, positions: Tensor, supervised: Tensor, top_k: int
) -> tuple[Tensor, Tensor]:
    """The `top_k` likeliest next tokens at the supervised positions, and their probabilities among each other.

    Args:
        base: the model.
        input_ids: `[rows, tokens]`.
        mask: additive, `[rows, 1, tokens, tokens]`; None: the model's own.
        positions: `[rows, tokens]`.
        supervised: bool, `[rows, tokens]`.
        top_k: how many.

    Returns:
        both `[supervised, top_k]`, row-major; probabilities in float32.
    """
    with head_at(base.model, supervised):
        logits = base.model(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    values, tokens = logits.float().topk(min(top_k, logits.shape[-1]), dim=-1)
    return tokens, values.softmax(-1)


def distillation_losses(logits: Tensor, targets: TeacherTargets) -> Tensor:
    """Kullback-Leibler divergence sum_k p_k (log p_k - log q_k) of each distilled token, `[distilled]`, in nats.

    Args:
        logits: of the adapted model, `[supervised, vocabulary]`; q is their softmax over all words, in float32.
        targets: the teacher's p over its likeliest tokens.
    """
    chosen = F.log_softmax(logits[targets.labels].float(), dim=-1).gather(-1, targets.tokens)
    return F.kl_div(chosen, targets.probabilities, reduction="none").sum(-1)
