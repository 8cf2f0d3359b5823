"""Reconstruction and completion perplexity of a generator on held-out text (section 2.3 and Table 2 of the paper).

A segment of n tokens is cut into chunks; every chunk is predicted once from the adapter of the chunks up to and with it
(reconstruction) and, but for the first, once from the adapter of the chunks before it (completion). The same rows under
the plain base model, and the same tokens with all before them in its context, stand beside them. Leaves out: training
on them (`training`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import context_chunks, pad_id, start_ids
from generative_adapter.data.records import read_records
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.batches import OBJECTIVES, Batch, assemble, segment_item
from generative_adapter.training.objectives import token_losses


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean -log P of tokens; None where there was nothing to predict.

    Attributes:
        reconstruction: of every chunk, under the adapter of the chunks up to and with it.
        completion: of every chunk but the first, under the adapter of the chunks before it.
        plain_reconstruction: the same tokens, each chunk alone, without an adapter.
        plain_completion: the same for the chunks but the first.
        in_context_completion: the chunks but the first, by the plain base model with all chunks before them in its
            context: what completion strives for.
        num_segments: segments read.
        segment_tokens: tokens of each.
        chunk_tokens: tokens of a chunk.
    """

    reconstruction: float | None
    completion: float | None
    plain_reconstruction: float | None
    plain_completion: float | None
    in_context_completion: float | None
    num_segments: int
    segment_tokens: int
    chunk_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def held_out_segments(
    path: Path, base: BaseModel, num_segments: int, segment_tokens: int, seed: int = 0
) -> list[list[int]]:
    """Segments of the documents of a file, drawn at random among all that lie in one document.

    Args:
        path: a file of records, see `data.records`.
        base: whose tokenizer is used.
        num_segments: how many are wanted.
        segment_tokens: tokens of each.
        seed: decides which.

    Raises:
        DataError: the file can't be read, or has fewer such segments.
        ConfigError: a number isn't positive.
    """
    for name, value in (("segments", num_segments), ("segment_tokens", segment_tokens)):
        if value < 1:
            raise ConfigError(f"{name} must be positive, got {value}")
    found: list[list[int]] = []
    for record in read_records(path):
        (ids,) = context_chunks(base.tokenizer, record.context, 1 << 30)
        found += [ids[at : at + segment_tokens] for at in range(0, len(ids) - segment_tokens + 1, segment_tokens)]
    if len(found) < num_segments:
        raise DataError(
            f"{path} has {len(found)} segments of {segment_tokens} tokens that lie within a document, {num_segments} "
            "were asked for; ask for fewer or shorter ones"
        )
    return random.Random(seed).sample(found, num_segments)


@torch.no_grad()
def measure_perplexity(
    base: BaseModel,
    generator: AdapterGenerator,
    segments: Sequence[Sequence[int]],
    chunk_tokens: int,
    *,
    pass_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Reconstruction and completion perplexity, eq. (5), arXiv:2411.05877, each a mean over all its tokens.

    Args:
        base: the frozen base model.
        generator: made for it.
        segments: token ids, without begin-of-sequence tokens; all of one length.
        chunk_tokens: tokens of a chunk.
        pass_tokens: segments are read several at once, up to so many tokens.
        progress: is told the segments done and in all.
    """
    start = start_ids(base.tokenizer)
    sums = {name: torch.zeros(len(OBJECTIVES), dtype=torch.float64) for name in ("adapter", "plain")}
    counts = torch.zeros(len(OBJECTIVES), dtype=torch.float64)
    in_context, num_in_context = 0.0, 0
    size = len(segments[0])
    at_once = max(1, pass_tokens // size)
    for at in range(0, len(segments), at_once):
        part = segments[at : at + at_once]
        batch = assemble(
            [segment_item(ids, chunk_tokens, start) for ids in part],
            pad_id=pad_id(base.tokenizer),
            start_ids=start,
            row_tokens=1,
        )
        counts += torch.bincount(batch.objectives, minlength=len(OBJECTIVES))
        for name, laid_out in (("adapter", batch), ("plain", _without_adapters(batch))):
            losses = token_losses(base, generator, laid_out).losses.double().cpu()
            sums[name].index_add_(0, batch.objectives, losses)
        if size > chunk_tokens:
            losses = _in_context_losses(base, torch.tensor([[*start, *ids] for ids in part]), len(start) + chunk_tokens)
            in_context += losses.double().sum().item()
            num_in_context += losses.numel()
        if progress is not None:
            progress(min(at + at_once, len(segments)), len(segments))

    def perplexity(name: str, objective: str) -> float | None:
        index = OBJECTIVES.index(objective)
        return math.exp((sums[name][index] / counts[index]).item()) if counts[index] else None

    return Perplexity(
        perplexity("adapter", "reconstruction"),
        perplexity("adapter", "completion"),
        perplexity("plain", "reconstruction"),
        perplexity("plain", "completion"),
        math.exp(in_context / num_in_context) if num_in_context else None,
        len(segments),
        size,
        chunk_tokens,
    )


def _without_adapters(batch: Batch) -> Batch:
    """The same rows under the plain base model."""
    return replace(batch, rows=replace(batch.rows, reads=torch.full_like(batch.rows.reads, -1)))


def _in_context_losses(base: BaseModel, ids: Tensor, first: int) -> Tensor:
    """-log P of each token from place `first` on, given all before it: `[rows, tokens - first]`."""
    ids = ids.to(base.device)
    logits = base.model(input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1] - first + 1).logits
    return F.cross_entropy(logits[:, :-1].float().mT, ids[:, first:], reduction="none")
