"""Contexts and what is asked of them, laid out as the rows of one pass.

A context's first chunk is read by the plain base model, several to a row. Later chunks are rows that read
the prefix before them and write the next one (completion); questions and reconstructions are segments, packed into
shared rows with the others that read the same prefix. Leaves out: where contexts come from (`sources`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generative_adapter.base_model.prefix_pass import PassRows
from generative_adapter.data.collation import best_capacity, pack
from generative_adapter.errors import TrainingError

if TYPE_CHECKING:
    from generative_adapter.training.distillation import TeacherRows

OBJECTIVES = ("answer", "reconstruction", "completion")


@dataclass(frozen=True)
class Segment:
    """Tokens to be predicted under the adapter of a prefix.

    Attributes:
        ids: prompt and target tokens.
        num_prompt: leading tokens that are given, not predicted; at least 1.
        level: chunks of the context in the adapter that is read, 1 .. T.
        objective: one of `OBJECTIVES`.
        found_at: for each target token the context token it stands at, -1 where it stands nowhere; empty: not known.
    """

    ids: tuple[int, ...]
    num_prompt: int
    level: int
    objective: str
    found_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class ContextItem:
    """One context and what is asked of it.

    Attributes:
        chunks: C_1 .. C_T, without begin-of-sequence tokens.
        segments: questions and reconstructions.
        completion: whether chunks 2 .. T are to be predicted under the prefix before them.
    """

    chunks: tuple[tuple[int, ...], ...]
    segments: tuple[Segment, ...]
    completion: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks and segments."""
        return sum(map(len, self.chunks)) + sum(len(segment.ids) for segment in self.segments)


def reconstructions(chunks: Sequence[Sequence[int]], start_ids: Sequence[int]) -> list[Segment]:
    """Each chunk C_t, to be predicted under the adapter of the chunks up to and with it, eq. (5)."""
    start = tuple(start_ids)
    return [
        Segment((*start, *chunk), max(1, len(start)), level, "reconstruction")
        for level, chunk in enumerate(chunks, start=1)
        if len(start) + len(chunk) > 1
    ]


def segment_item(ids: Sequence[int], chunk_tokens: int, start_ids: Sequence[int]) -> ContextItem:
    """A run of text of several chunks: every prefix reconstructs its last chunk and completes the next, eq. (5)."""
    chunks = tuple(tuple(ids[at : at + chunk_tokens]) for at in range(0, len(ids), chunk_tokens))
    return ContextItem(chunks, tuple(reconstructions(chunks, start_ids)), completion=len(chunks) > 1)


@dataclass(frozen=True)
class Span:
    """Where the labels of a segment stand.

    Attributes:
        item: the context it belongs to, counted in the items given.
        segment: what is predicted.
        first_label: number of its first label in `Batch.labels`.
    """

    item: int
    segment: Segment
    first_label: int


@dataclass(frozen=True)
class Batch:
    """One forward and backward pass.

    Attributes:
        first: the first chunks in groups of like length: their ids with begin-of-sequence tokens, several to a row
            `[rows, tokens]`, and 1, 2, ... for the chunk a token belongs to, 0 for padding, `[rows, tokens]`.
        rows: the rows with gradients.
        membership: `[prefixes, written chunks]`.
        labels: token ids to predict at `rows.supervised`, row-major, `[supervised]`.
        objectives: index into `OBJECTIVES` of each label, `[supervised]`.
        item_index: the context each label belongs to, counted in the items given, `[supervised]`.
        found_at: the token of the context's only chunk that each label stands at, -1 where it is not known,
            `[supervised]`.
        chunk_index: number of that chunk among the written ones, `[supervised]`.
        segment_index: number of the segment or completion row each label belongs to, `[supervised]`.
        num_real_tokens: tokens that aren't padding, first chunks and the teacher's rows included.
        num_computed_tokens: tokens that are computed.
        spans: the segments and completion rows in the order of their labels.
        teacher: what an in-context teacher reads (`distillation`); None: there is none.
    """

    first: tuple[tuple[Tensor, Tensor], ...]
    rows: PassRows
    membership: Tensor
    labels: Tensor
    objectives: Tensor
    item_index: Tensor
    found_at: Tensor
    chunk_index: Tensor
    segment_index: Tensor
    num_real_tokens: int
    num_computed_tokens: int
    spans: tuple[Span, ...] = ()
    teacher: TeacherRows | None = None

    @property
    def num_reads(self) -> int:
        """Passes of the base model without gradients: a group of first chunks each, and the teacher's."""
        return len(self.first) + (self.teacher is not None)


@dataclass(frozen=True)
class _Row:
    """A row before it is padded."""

    item: int
    prefix: int
    segments: tuple[Segment, ...]
    writes: int | None = None


def assemble(items: Sequence[ContextItem], *, pad_id: int, start_ids: Sequence[int], row_tokens: int) -> Batch:
    """Lays contexts out as one pass.

    Args:
        items: the contexts.
        pad_id: token id of padding.
        start_ids: begin-of-sequence tokens put before every chunk.
        row_tokens: questions are packed into rows of at most this many tokens (longer ones get their own).

    Raises:
        TrainingError: when nothing is to be predicted.
    """
    start = tuple(start_ids)
    sizes = [len(start) + len(item.chunks[0]) for item in items]
    packed: list[list[list[int]]] = []
    for _, alike in itertools.groupby(
        sorted(range(len(items)), key=sizes.__getitem__), lambda i: _size_class(sizes[i])
    ):
        members = list(alike)
        lengths = [sizes[i] for i in members]
        packed.append(pack(members, sizes.__getitem__, best_capacity([lengths], max(row_tokens, *lengths))))
    first = tuple(
        _pad([_Row(-1, -1, tuple(Segment(start + items[i].chunks[0], 1, 0, "") for i in row)) for row in group], pad_id)
        for group in packed
    )
    written = {(i, 1): index for index, i in enumerate(i for group in packed for row in group for i in row)}
    prefixes: dict[tuple[int, int], int] = {}
    rows: list[_Row] = []
    for i, item in enumerate(items):
        deepest = max([segment.level for segment in item.segments], default=1)
        if item.completion:  # the last chunk is completed under all chunks before it
            deepest = max(deepest, len(item.chunks) - 1)
        for level in range(1, len(item.chunks)):  # row of chunk level + 1, under the prefix of `level` chunks
            writes = level + 1 <= deepest
            if writes or item.completion:
                if writes:
                    written[i, level + 1] = len(written)
                chunk = Segment(start + item.chunks[level], 1, level, "completion" if item.completion else "")
                prefix = prefixes.setdefault((i, level), len(prefixes))
                rows.append(_Row(i, prefix, (chunk,), level + 1 if writes else None))
    by_prefix: dict[tuple[int, int], list[Segment]] = {}
    for i, item in enumerate(items):
        for segment in item.segments:
            by_prefix.setdefault((i, segment.level), []).append(segment)
    if by_prefix:
        capacity = best_capacity([[len(s.ids) for s in wanted] for wanted in by_prefix.values()], row_tokens)
        capacity = max([capacity, *(len(row.segments[0].ids) for row in rows)])  # rows of chunks set the width
        for (i, level), wanted in by_prefix.items():
            prefix = prefixes.setdefault((i, level), len(prefixes))
            rows += [_Row(i, prefix, tuple(row)) for row in pack(wanted, lambda s: len(s.ids), capacity)]
    membership = torch.zeros(len(prefixes), len(written))
    for (i, level), prefix in prefixes.items():
        for chunk_number in range(1, level + 1):
            membership[prefix, written[i, chunk_number]] = 1
    writers = [index for index, row in enumerate(rows) if row.writes is not None]
    only_chunk = [written[i, 1] if len(item.chunks) == 1 else -1 for i, item in enumerate(items)]
    return _tensors(first, rows, writers, membership, only_chunk, pad_id, len(start))


def _size_class(num_tokens: int) -> int:
    """Chunks of one class are packed together: up to 128 tokens, up to 512, up to 2,048, ..."""
    return max(0, math.ceil(math.log(num_tokens / 128, 4)))


def _tensors(
    first: tuple[tuple[Tensor, Tensor], ...],
    rows: list[_Row],
    writers: list[int],
    membership: Tensor,
    only_chunk: list[int],
    pad_id: int,
    num_start_tokens: int,
) -> Batch:
    input_ids, segments = _pad(rows, pad_id)
    supervised = torch.zeros(input_ids.shape, dtype=torch.bool)
    labels: list[int] = []
    kinds: list[int] = []
    owners: list[int] = []
    numbers: list[int] = []
    found_at: list[int] = []
    chunks: list[int] = []
    spans: list[Span] = []
    number = 0
    for index, row in enumerate(rows):
        at = 0
        for segment in row.segments:
            size = len(segment.ids)
            if segment.objective:
                predicted = segment.ids[segment.num_prompt :]
                spans.append(Span(row.item, segment, len(labels)))
                supervised[index, at + segment.num_prompt - 1 : at + size - 1] = True
                labels += predicted
                kinds += [OBJECTIVES.index(segment.objective)] * len(predicted)
                owners += [row.item] * len(predicted)
                numbers += [number] * len(predicted)
                known = segment.found_at if only_chunk[row.item] >= 0 else ()
                found_at += known or (-1,) * len(predicted)
                chunks += [only_chunk[row.item]] * len(predicted)
                number += 1
            at += size
    if not labels:
        raise TrainingError(
            "no context of this batch has anything to predict: no question, reconstruction or completion"
        )
    pass_rows = PassRows(
        input_ids,
        segments,
        torch.tensor([row.prefix for row in rows]),
        torch.tensor(writers, dtype=torch.long),
        supervised,
        num_start_tokens,
    )
    return Batch(
        first,
        pass_rows,
        membership,
        torch.tensor(labels),
        torch.tensor(kinds),
        torch.tensor(owners),
        torch.tensor(found_at),
        torch.tensor(chunks),
        torch.tensor(numbers),
        num_real_tokens=int((segments > 0).sum()) + sum(int((inner > 0).sum()) for _, inner in first),
        num_computed_tokens=segments.numel() + sum(inner.numel() for _, inner in first),
        spans=tuple(spans),
    )


def split(items: Sequence[ContextItem], max_tokens: int) -> list[list[ContextItem]]:
    """Contexts in passes of at most `max_tokens` tokens each, similar lengths together; a longer one goes alone."""
    parts: list[list[ContextItem]] = []
    room = 0
    for item in sorted(items, key=lambda item: item.num_tokens):
        if not parts or item.num_tokens > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(item)
        room -= item.num_tokens
    return parts


def _pad(rows: Sequence[_Row], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and segment numbers of packed rows, `[rows, tokens]` each."""
    width = max((sum(len(segment.ids) for segment in row.segments) for row in rows), default=0)
    ids = torch.full((len(rows), width), pad_id)
    segments = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        at = 0
        for number, segment in enumerate(row.segments, start=1):
            ids[index, at : at + len(segment.ids)] = torch.tensor(segment.ids)
            segments[index, at : at + len(segment.ids)] = number
            at += len(segment.ids)
    return ids, segments
