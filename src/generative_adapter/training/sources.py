"""Where training contexts come from: synthetic facts, records with questions, plain text, instructions, cloze.

Every context is a function of (seed, step, index), so a resumed run sees what an uninterrupted one would. A part of
each source's records, chosen by hash, is held out for evaluation. Leaves out: laying contexts out as rows (`batches`),
and tokenising whole sources once (`token_cache`).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from generative_adapter.base_model.prompts import answer_ids, context_chunks, end_ids, question_ids, start_ids
from generative_adapter.base_model.text_blocks import block_chunks
from generative_adapter.config import PromptConfig
from generative_adapter.data.cloze import cloze_questions
from generative_adapter.data.facts import sample_facts_record
from generative_adapter.data.records import Record
from generative_adapter.errors import DataError
from generative_adapter.training.batches import ContextItem, Segment, reconstructions, segment_item
from generative_adapter.training.passages import Passages, fitted
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.segments import Segments
from generative_adapter.training.source_config import SENTENCE_TOKENS, SourceConfig
from generative_adapter.training.token_cache import (
    CACHED_KINDS,
    FEWEST_TOKENS,
    digest_of,
    open_store,
    records_of,
    source_name,
)
from generative_adapter.training.windows import among_texts, found_at, window

Pool: TypeAlias = Sequence[Any] | Segments | Passages | np.ndarray

_PASSAGES_TRIED = 8  # before a passage without questions is taken


class ContextSampler:
    """Draws the contexts of each step, tokenised, from a recipe's sources."""

    def __init__(self, recipe: TrainingRecipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self._records = [self._load(source) for source in recipe.sources]
        self._stores = [
            open_store(recipe, source, tokenizer) if source.kind in CACHED_KINDS else None for source in recipe.sources
        ]
        self._segments = [self._cut(number) for number in range(len(recipe.sources))]
        self._next_step = 0
        self._num_drawn = [0] * len(recipe.sources)  # contexts of each source before that step

    def step(self, step: int) -> list[ContextItem]:
        """The contexts of optimiser step `step`: `contexts_per_step`, less those too short to predict anything.

        Raises:
            DataError: when all of them are too short.
        """
        return [item for _, item in self.step_by_source(step)]

    def step_by_source(self, step: int) -> list[tuple[int, ContextItem]]:
        """The contexts of a step as `step` gives them, each with the number of its source.

        Raises:
            DataError: when all of them are too short.
        """
        items = []
        for index, (source, number) in enumerate(self._plan(step), start=step * self.recipe.contexts_per_step):
            rng = random.Random(f"{self.recipe.seed}/{source}/{index}")
            items.append((source, self._draw(source, number, rng, False)))
        if not (askable := [(source, item) for source, item in items if _askable([item])]):
            raise DataError(f"step {step}: its contexts are a token or two each, nothing to predict; give longer texts")
        return askable

    def held_out(self, source: int, count: int) -> list[ContextItem]:
        """Contexts of a source for evaluation: held-out names, templates and attributes, or held-out records."""
        if self.recipe.sources[source].kind != "facts":
            count = min(count, len(self._pool(source, True)))
        return _askable([self._draw(source, n, random.Random(f"held-out/{source}/{n}"), True) for n in range(count)])

    def _plan(self, step: int) -> list[tuple[int, int]]:
        """Source of each context of a step, and its number among the contexts of that source in the whole run."""
        if step < self._next_step:
            self._next_step, self._num_drawn = 0, [0] * len(self._num_drawn)
        plan: list[tuple[int, int]] = []
        while self._next_step <= step:  # the steps before are counted, so that a resumed run goes on where it was
            first = self._next_step * self.recipe.contexts_per_step
            plan = []
            for index in range(first, first + self.recipe.contexts_per_step):
                source = self._source(index, self._next_step)
                plan.append((source, self._num_drawn[source]))
                self._num_drawn[source] += 1
            self._next_step += 1
        return plan

    def _source(self, index: int, step: int) -> int:
        """Source of the index-th context of the run, among those that take part at that step."""
        shares = [
            self._share(number) if source.takes_part(step) else 0.0 for number, source in enumerate(self.recipe.sources)
        ]
        point = (index * 0.6180339887498949) % 1.0 * sum(shares)  # golden-ratio sequence: meets every share evenly
        for source, share in enumerate(shares):
            if point < share:
                return source
            point -= share
        return max(i for i, share in enumerate(shares) if share)

    def _share(self, source: int) -> float:
        by_size = self.recipe.num_epochs is not None
        return float(len(self._pool(source, False))) if by_size else self.recipe.sources[source].share

    def num_steps(self) -> int:
        """Optimiser steps of the run: `num_steps`, or as many as `num_epochs` takes."""
        if self.recipe.num_epochs is None:
            return self.recipe.num_steps
        contexts = self.recipe.num_epochs * sum(self._share(source) for source in range(len(self.recipe.sources)))
        return max(1, math.ceil(contexts / self.recipe.contexts_per_step))

    def _load(self, source: SourceConfig) -> tuple[list[Record], list[Record]]:
        """Records to train on and held-out ones, of sources that are cut anew each time."""
        if source.kind in CACHED_KINDS:
            return [], []
        train: list[Record] = []
        held_out: list[Record] = []
        for _, record in records_of(source, held_out=self.recipe.held_out_texts):
            if source.kind == "questions" and not record.questions:
                continue
            (held_out if _is_held_out(digest_of(record.context), source) else train).append(record)
            if source.max_records is not None and len(train) + len(held_out) >= source.max_records:
                break
        if source.paths and not train:
            raise DataError(f"no usable record in {', '.join(source.paths)} for a source of kind {source.kind!r}")
        return train, held_out

    def _cut(self, source: int) -> tuple[Pool, Pool]:
        """Segments or record numbers to train on, and held-out ones, of a cached source."""
        config, store = self.recipe.sources[source], self._stores[source]
        if store is None:
            return (), ()
        held_out = _is_held_out(store.digests, config)
        if held_out.all():
            raise DataError(f"no usable record in {source_name(config)} for a source of kind {config.kind!r}")
        pools: list[Pool] = []
        for chosen in (~held_out, held_out):
            numbers = np.flatnonzero(chosen)
            if config.kind == "text":
                ends = end_ids(self.tokenizer, PromptConfig())
                pools.append(Segments(store, numbers, config.context_tokens[1], config.packing, ends))
            elif config.kind == "cloze":
                pools.append(Passages(store, numbers, config.context_tokens[1]))
            else:
                pools.append(numbers)
        return pools[0], pools[1]

    def _pool(self, source: int, held_out: bool) -> Pool:
        """What contexts of a source are drawn from."""
        cached = self.recipe.sources[source].kind in CACHED_KINDS
        return (self._segments if cached else self._records)[source][1 if held_out else 0]

    def _draw(self, source: int, number: int, rng: random.Random, held_out: bool) -> ContextItem:
        config = self.recipe.sources[source]
        if config.kind == "facts":
            record = sample_facts_record(
                rng,
                num_facts=rng.randint(*config.num_facts),
                num_questions=config.num_questions,
                split="held_out" if held_out else "train",
                style=config.style,
                attributes=config.attributes,
            )
            if config.paths:
                texts = self._records[source][1 if held_out else 0] or self._records[source][0]
                record = replace(record, context=among_texts(record.context, texts, rng, config))
            return self.record_item(record, rng, config)
        pool = self._pool(source, held_out)
        if not held_out:
            epoch, place = divmod(number, len(pool))
            number = _permuted(place, len(pool), f"{self.recipe.seed}/{source}/{epoch}")
        if isinstance(pool, Segments):
            wanted = max(FEWEST_TOKENS, rng.randint(*config.context_tokens))
            return self._text_item(pool.window(number, wanted, rng))
        if isinstance(pool, Passages):
            return self.record_item(self._cloze_record(pool, number, rng, config), rng, config)
        picked = pool[number]
        if isinstance(picked, Record):
            return self.record_item(window(picked, rng, config, self.tokenizer), rng, config)
        store = self._stores[source]
        assert store is not None
        return self._instructions_item(store.parts(int(picked)), rng, config)

    def _cloze_record(self, pool: Passages, number: int, rng: random.Random, config: SourceConfig) -> Record:
        """A passage with questions made from it; one without (a table) gives way to another, at random."""
        for _ in range(_PASSAGES_TRIED):
            wanted = max(SENTENCE_TOKENS, rng.randint(*config.context_tokens))
            text = fitted(pool.text(number, wanted, rng), wanted, self.tokenizer)
            if questions := cloze_questions(text, rng, config.num_questions):
                return Record(text, tuple(questions))
            number = rng.randrange(len(pool))
        return Record(text)

    def record_item(self, record: Record, rng: random.Random, config: SourceConfig) -> ContextItem:
        """A context with questions about it: answers, and with some probability its reconstruction."""
        generator, prompt = self.recipe.generator, self.recipe.prompt
        split = context_chunks if generator.encoder is None else block_chunks
        chunks = split(self.tokenizer, record.context, generator.chunk_tokens)
        questions = list(record.questions)
        rng.shuffle(questions)
        segments = []
        for question in questions[: config.num_questions]:
            asked = question_ids(self.tokenizer, prompt, question.question)
            answer = answer_ids(self.tokenizer, prompt, question.answers[0])
            stands: tuple[int, ...] = ()
            if self.recipe.lookup_weight > 0:
                stands = found_at(self.tokenizer, record.context, chunks[0], question.answers[0], len(answer))
            segments.append(Segment((*asked, *answer), len(asked), len(chunks), "answer", stands))
        if rng.random() < config.reconstruction or not segments:
            segments += reconstructions(chunks, start_ids(self.tokenizer))
        return ContextItem(tuple(map(tuple, chunks)), tuple(segments))

    def _instructions_item(self, parts: list[list[int]], rng: random.Random, config: SourceConfig) -> ContextItem:
        """A whole context, up to `context_tokens`, with its questions: loss on the responses."""
        context = parts[0][: config.context_tokens[1]]
        chunk_tokens = self.recipe.generator.chunk_tokens
        chunks = [context[at : at + chunk_tokens] for at in range(0, len(context), chunk_tokens)]
        pairs = list(zip(parts[1::2], parts[2::2], strict=True))
        rng.shuffle(pairs)
        segments = [
            Segment((*asked, *answer), len(asked), len(chunks), "answer")
            for asked, answer in pairs[: config.num_questions]
        ]
        if rng.random() < config.reconstruction:
            segments += reconstructions(chunks, start_ids(self.tokenizer))
        return ContextItem(tuple(map(tuple, chunks)), tuple(segments))

    def _text_item(self, ids: list[int]) -> ContextItem:
        """A run of plain text for eq. (5): every prefix reconstructs its last chunk and completes the next."""
        chunk_tokens = self.recipe.generator.chunk_tokens
        start = start_ids(self.tokenizer)
        if len(ids) > chunk_tokens:
            return segment_item(ids, chunk_tokens, start)
        cut = max(1, len(ids) * 2 // 3)
        segments = reconstructions([ids[:cut]], start)
        if len(ids) - cut > 1:
            segments.append(Segment((*start, *ids[cut:]), max(1, len(start)), 1, "completion"))
        return ContextItem((tuple(ids[:cut]),), tuple(segments))


def _askable(items: list[ContextItem]) -> list[ContextItem]:
    return [item for item in items if item.completion or item.segments]


def _is_held_out(digest: Any, source: SourceConfig) -> Any:
    """Whether a record is kept for evaluation, by `digest_of` its context; of a number or an array of them."""
    return digest / 2**32 < source.held_out_share


def _permuted(place: int, size: int, key: str) -> int:
    """The place-th element of a pseudo-random permutation of range(size), by cycle walking over a Feistel network."""
    half_bits = max(1, (max(1, size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    value = place
    while True:
        left, right = value >> half_bits, value & mask
        for turn in range(4):
            digest = hashlib.blake2b(f"{key}/{turn}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        value = left << half_bits | right
        if value < size:
            return value
