"""Contexts laid out as one pass, read back token by token and compared with what was asked."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from torch import Tensor

from generative_adapter.base_model.dequantise import dequantised_folder
from generative_adapter.base_model.loading import BaseModel, find_embedded_gguf
from generative_adapter.errors import BaseModelError, TrainingError
from generative_adapter.training.batches import OBJECTIVES, Batch, ContextItem, Segment, assemble, split
from generative_adapter.training.loop import Trainer
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.run import make_trainer
from generative_adapter.training.sources import ContextSampler

PAD = 0
Predicted = tuple[int, tuple[tuple[int, ...], ...], tuple[int, ...], tuple[int, ...], str]


def random_items(seed: int, start: Sequence[int], num_items: int = 6) -> list[ContextItem]:
    """Contexts of 1 to 4 chunks with questions at any depth, of which no two share a token (but the start)."""
    rng = random.Random(seed)
    fresh = iter(range(100, 100_000))

    def tokens(fewest: int, most: int) -> tuple[int, ...]:
        return tuple(next(fresh) for _ in range(rng.randint(fewest, most)))

    items = []
    for _ in range(num_items):
        first = tokens(150, 300) if rng.random() < 0.3 else tokens(5, 5)  # of two size classes
        chunks = [first, *(tokens(2, 5) for _ in range(rng.randint(0, 3)))]
        segments = [
            Segment((*start, *chunk), max(1, len(start)), level, "reconstruction")
            for level, chunk in enumerate(chunks, 1)
            if rng.random() < 0.5
        ]
        for _ in range(rng.randint(0, 3)):
            asked, answer = tokens(1, 6), tokens(1, 4)
            segments.append(Segment(asked + answer, len(asked), rng.randint(1, len(chunks)), "answer"))
        rng.shuffle(segments)
        items.append(ContextItem(tuple(chunks), tuple(segments), completion=rng.random() < 0.5))
    return items


def wanted(items: Sequence[ContextItem], start: tuple[int, ...]) -> Counter[Predicted]:
    """(context, prefix, given tokens, predicted tokens, objective) of everything that is asked."""
    found: Counter[Predicted] = Counter()
    for i, item in enumerate(items):
        for segment in item.segments:
            given, predicted = segment.ids[: segment.num_prompt], segment.ids[segment.num_prompt :]
            found[i, item.chunks[: segment.level], given, predicted, segment.objective] += 1
        if item.completion:
            for level in range(1, len(item.chunks)):
                text = start + item.chunks[level]
                found[i, item.chunks[:level], text[:1], text[1:], "completion"] += 1
    return found


def runs(row_ids: Tensor, row_segments: Tensor) -> list[tuple[int, tuple[int, ...]]]:
    """(first position, tokens) of each segment of a row."""
    found: list[tuple[int, list[int]]] = []
    before = 0
    for at, (token, number) in enumerate(zip(row_ids.tolist(), row_segments.tolist(), strict=True)):
        if number == 0:
            assert token == PAD
        elif number != before:
            assert number == before + 1
            found.append((at, [token]))
        else:
            found[-1][1].append(token)
        before = number
    return [(at, tuple(tokens)) for at, tokens in found]


def written_chunks(batch: Batch, num_start: int) -> list[tuple[int, ...]]:
    """Contents of the written chunks in the order of `membership`'s columns."""
    chunks = [
        tokens
        for ids, segments in batch.first
        for row in range(len(ids))
        for _, tokens in runs(ids[row], segments[row])
    ]
    for row in batch.rows.writers.tolist():
        ((_, tokens),) = runs(batch.rows.input_ids[row], batch.rows.segments[row])
        chunks.append(tokens)
    return [chunk[num_start:] for chunk in chunks]


def prefix_of(batch: Batch, row: int, chunks: list[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Chunks that the adapter of a row is made of, in the order of their first token."""
    marks = batch.membership[int(batch.rows.reads[row])].tolist()
    return tuple(sorted(chunk for chunk, mark in zip(chunks, marks, strict=True) if mark))


def laid_out(batch: Batch, num_start: int) -> Counter[Predicted]:
    """The same as `wanted`, read from the tensors."""
    chunks = written_chunks(batch, num_start)
    found: Counter[Predicted] = Counter()
    numbers: set[int] = set()
    at_label = 0
    for row in range(len(batch.rows.input_ids)):
        prefix = prefix_of(batch, row, chunks)
        for begin, tokens in runs(batch.rows.input_ids[row], batch.rows.segments[row]):
            marks = batch.rows.supervised[row, begin : begin + len(tokens)].tolist()
            count = sum(marks)
            if not count:
                continue
            assert marks == [False] * (len(tokens) - 1 - count) + [True] * count + [False]
            here = slice(at_label, at_label + count)
            (number,), (owner,), (kind,) = (
                set(values[here].tolist()) for values in (batch.segment_index, batch.item_index, batch.objectives)
            )
            assert number not in numbers
            numbers.add(number)
            predicted = tuple(batch.labels[here].tolist())
            assert predicted == tokens[-count:]
            found[owner, prefix, tokens[:-count], predicted, OBJECTIVES[kind]] += 1
            at_label += count
    assert at_label == len(batch.labels) == int(batch.rows.supervised.sum())
    return found


@pytest.mark.parametrize("start", [(), (7,)])
@pytest.mark.parametrize("seed", range(8))
def test_everything_asked_is_laid_out_under_its_prefix(seed: int, start: tuple[int, ...]) -> None:
    items = random_items(seed, start)
    batch = assemble(items, pad_id=PAD, start_ids=start, row_tokens=23)
    assert laid_out(batch, len(start)) == wanted(items, start)
    chunks = written_chunks(batch, len(start))
    deepest = [max([s.level for s in x.segments] + [len(x.chunks) - 1 if x.completion else 1, 1]) for x in items]
    assert sorted(chunks) == sorted(
        chunk for item, depth in zip(items, deepest, strict=True) for chunk in item.chunks[:depth]
    )
    for row in batch.rows.writers.tolist():  # chunk t + 1 is read under chunks 1 .. t
        ((_, tokens),) = runs(batch.rows.input_ids[row], batch.rows.segments[row])
        (item,) = (item for item in items if tokens[len(start) :] in item.chunks)
        assert prefix_of(batch, row, chunks) == item.chunks[: item.chunks.index(tokens[len(start) :])]


@pytest.mark.parametrize("start", [(), (7,)])
def test_real_and_computed_tokens_are_counted(start: tuple[int, ...]) -> None:
    batch = assemble(random_items(3, start), pad_id=PAD, start_ids=start, row_tokens=23)
    grids = [*batch.first, (batch.rows.input_ids, batch.rows.segments)]
    assert batch.num_computed_tokens == sum(len(ids) * len(ids[0]) for ids, _ in grids)
    assert batch.num_real_tokens == sum(
        len(tokens) for ids, segments in grids for row in range(len(ids)) for _, tokens in runs(ids[row], segments[row])
    )


def test_rows_are_shared_only_by_segments_of_one_prefix() -> None:
    """Six one-token questions of each of four prefixes fill rows of 12 tokens: two rows would do without the rule."""
    items = [
        ContextItem(
            ((1, 2, 3, 4), (5, 6, 7, 8)),
            tuple(Segment((10 * i + level, 99), 1, level, "answer") for level in (1, 2) for _ in range(3)),
        )
        for i in (1, 2)
    ]
    batch = assemble(items, pad_id=PAD, start_ids=(), row_tokens=12)
    rows = [
        {tokens[0] for _, tokens in runs(ids, segments)}
        for row, (ids, segments) in enumerate(zip(batch.rows.input_ids, batch.rows.segments, strict=True))
        if row not in batch.rows.writers.tolist()
    ]
    assert sorted(map(tuple, rows)) == [(11,), (12,), (21,), (22,)]


def test_completion_alone_writes_the_chunks_it_needs() -> None:
    item = ContextItem(((1, 2), (3, 4), (5, 6), (8, 9)), (), completion=True)
    batch = assemble([item], pad_id=PAD, start_ids=(), row_tokens=8)
    assert laid_out(batch, 0) == wanted([item], ())
    assert written_chunks(batch, 0) == [(1, 2), (3, 4), (5, 6)]


def test_questions_fill_rows_as_wide_as_chunks() -> None:
    """A chunk's row sets the width anyway: eight questions of 5 tokens take one row of 40, not four of 12."""
    questions = tuple(Segment((1, 2, 3, 4, 5), 2, 2, "answer") for _ in range(8))
    item = ContextItem((tuple(range(10, 50)), tuple(range(50, 90))), questions)
    assert assemble([item], pad_id=PAD, start_ids=(), row_tokens=12).rows.input_ids.shape == (2, 40)


@pytest.mark.parametrize(
    "item",
    [
        ContextItem(((1, 2, 3),), ()),
        ContextItem(((1, 2, 3),), (), completion=True),  # no second chunk to complete
        ContextItem(((1, 2, 3),), (Segment((4,), 1, 1, "answer"),)),
    ],
)
def test_nothing_to_predict(item: ContextItem) -> None:
    with pytest.raises(TrainingError, match="anything to predict"):
        assemble([item], pad_id=PAD, start_ids=(), row_tokens=8)


def test_split_keeps_every_context_within_bounds() -> None:
    items = random_items(5, (), 20)
    parts = split(items, 120)
    assert sorted(map(id, items)) == sorted(id(item) for part in parts for item in part)
    assert all(len(part) == 1 or sum(item.num_tokens for item in part) <= 120 for part in parts)
    assert any(len(part) > 1 for part in parts) and any(len(part) == 1 for part in parts)
    assert split(items, 10**9) == [sorted(items, key=lambda item: item.num_tokens)]


FACTS = [
    {"kind": "facts", "num_facts": [2, 5], "num_questions": 5},
    {"kind": "facts", "num_facts": [5, 12], "num_questions": 6},
    {"kind": "facts", "num_facts": [12, 32], "num_questions": 8, "share": 0.5},
]


def real_share(trainer: Trainer, num_steps: int = 8) -> float:
    batches = [batch for step in range(num_steps) for batch in trainer.batches(trainer.sampler.step(step))]
    return sum(batch.num_real_tokens for batch in batches) / sum(batch.num_computed_tokens for batch in batches)


@pytest.mark.parametrize("sources", [FACTS[:1], FACTS], ids=["few facts", "mixed"])
def test_four_of_five_computed_tokens_are_real(
    base: BaseModel, make_recipe: Callable[..., TrainingRecipe], sources: list[dict[str, object]]
) -> None:
    trainer = make_trainer(make_recipe(sources=sources, contexts_per_step=8, row_tokens=112), base)
    assert real_share(trainer) >= 0.8


@pytest.mark.embedded
def test_four_of_five_computed_tokens_are_real_with_the_embedded_tokenizer(
    base: BaseModel, make_recipe: Callable[..., TrainingRecipe]
) -> None:
    from transformers import AutoTokenizer

    try:
        path = find_embedded_gguf()
    except BaseModelError as error:
        pytest.skip(str(error))
    prompt = {"question": "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"}
    settings = make_recipe(sources=FACTS, contexts_per_step=8, row_tokens=112, prompt=prompt)
    trainer = make_trainer(settings, base)
    with dequantised_folder(path) as folder:
        trainer.sampler = ContextSampler(settings, AutoTokenizer.from_pretrained(folder))
    assert real_share(trainer) >= 0.8
