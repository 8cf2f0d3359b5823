"""Where training contexts come from: synthetic facts, records with questions, plain text.

Every context is a function of (seed, step, index), so a resumed run sees what an uninterrupted one would. A part of
each file's records, chosen by hash, is held out for evaluation. Leaves out: laying contexts out as rows (`batches`).
"""

from __future__ import annotations

import bisect
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from generative_adapter.base_model.prompts import answer_ids, context_chunks, question_ids, start_ids
from generative_adapter.data.facts import sample_facts_record
from generative_adapter.data.records import Question, Record, read_records
from generative_adapter.errors import DataError
from generative_adapter.training.batches import ContextItem, Segment
from generative_adapter.training.recipe import SourceConfig, TrainingRecipe

_FEWEST_TOKENS = 3  # of a window of plain text: two to take in, one to predict
_CHARACTERS_PER_TOKEN = 4  # about, in English
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


class ContextSampler:
    """Draws the contexts of each step, tokenised, from a recipe's sources."""

    def __init__(self, recipe: TrainingRecipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self._records = [self._load(source) for source in recipe.sources]
        self._next_step = 0
        self._num_drawn = [0] * len(recipe.sources)  # contexts of each source before that step

    def step(self, step: int) -> list[ContextItem]:
        """The contexts of optimiser step `step`: `contexts_per_step`, less those too short to predict anything.

        Raises:
            DataError: when all of them are too short.
        """
        items = []
        for index, (source, number) in enumerate(self._plan(step), start=step * self.recipe.contexts_per_step):
            items.append(self._draw(source, number, random.Random(f"{self.recipe.seed}/{source}/{index}"), False))
        if not (askable := _askable(items)):
            raise DataError(f"step {step}: its contexts are a token or two each, nothing to predict; give longer texts")
        return askable

    def held_out(self, source: int, count: int) -> list[ContextItem]:
        """Contexts of a source for evaluation: held-out names, templates and attributes, or held-out records."""
        if self.recipe.sources[source].kind != "facts":
            count = min(count, len(self._records[source][1]))
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
        shares = [source.share if source.takes_part(step) else 0.0 for source in self.recipe.sources]
        point = (index * 0.6180339887498949) % 1.0 * sum(shares)  # golden-ratio sequence: meets every share evenly
        for source, share in enumerate(shares):
            if point < share:
                return source
            point -= share
        return max(i for i, share in enumerate(shares) if share)

    def _load(self, source: SourceConfig) -> tuple[list[Record], list[Record]]:
        train: list[Record] = []
        held_out: list[Record] = []
        for path in source.paths:
            for record in read_records(Path(path)):
                if source.kind == "questions" and not record.questions:
                    continue
                if source.kind == "text" and not self._is_long_enough(record.context):
                    continue
                digest = int.from_bytes(hashlib.sha256(record.context.encode("utf-8", "replace")).digest()[:4], "big")
                (held_out if digest / 2**32 < source.held_out_share else train).append(record)
        if source.paths and not train:
            raise DataError(f"no usable record in {', '.join(source.paths)} for a source of kind {source.kind!r}")
        return train, held_out

    def _is_long_enough(self, text: str) -> bool:
        if len(text) > 100 * _FEWEST_TOKENS:  # most texts are: they aren't tokenised here
            return True
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) >= _FEWEST_TOKENS

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
                record = replace(record, context=_among_texts(record.context, texts, rng, config))
            return self.record_item(record, rng, config)
        records = self._records[source][1 if held_out else 0]
        if held_out:
            record = records[number]
        else:
            epoch, place = divmod(number, len(records))
            record = records[_permuted(place, len(records), f"{self.recipe.seed}/{source}/{epoch}")]
        if config.kind == "text":
            return self._text_item(record, rng, config)
        return self.record_item(_window(record, rng, config, self.tokenizer), rng, config)

    def record_item(self, record: Record, rng: random.Random, config: SourceConfig) -> ContextItem:
        """A context with questions about it: answers, and with some probability its reconstruction."""
        generator, prompt = self.recipe.generator, self.recipe.prompt
        chunks = context_chunks(self.tokenizer, record.context, generator.chunk_tokens)
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
            segments += self._reconstructions(chunks)
        return ContextItem(tuple(map(tuple, chunks)), tuple(segments))

    def _text_item(self, record: Record, rng: random.Random, config: SourceConfig) -> ContextItem:
        """A window of plain text for eq. (5): every prefix reconstructs its last chunk and completes the next."""
        wanted = max(_FEWEST_TOKENS, rng.randint(*config.context_tokens))
        room = max(0, len(record.context) - wanted * 6)
        begin = rng.randint(0, room)
        chunk_tokens = self.recipe.generator.chunk_tokens
        ids: list[int] = []
        for text in (record.context[begin : begin + wanted * 8], record.context):
            if text.strip() and len(ids) < _FEWEST_TOKENS:  # the window may be blank, or nearly
                ids = context_chunks(self.tokenizer, text, 1 << 30)[0][:wanted]
        start = tuple(start_ids(self.tokenizer))
        if len(ids) > chunk_tokens:
            pieces = [tuple(ids[at : at + chunk_tokens]) for at in range(0, len(ids), chunk_tokens)]
            return ContextItem(tuple(pieces), tuple(self._reconstructions(pieces)), completion=True)
        cut = max(1, len(ids) * 2 // 3)
        segments = self._reconstructions([ids[:cut]])
        if len(ids) - cut > 1:
            segments.append(Segment((*start, *ids[cut:]), max(1, len(start)), 1, "completion"))
        return ContextItem((tuple(ids[:cut]),), tuple(segments))

    def _reconstructions(self, chunks: Sequence[Sequence[int]]) -> list[Segment]:
        start = tuple(start_ids(self.tokenizer))
        return [
            Segment((*start, *chunk), max(1, len(start)), level, "reconstruction")
            for level, chunk in enumerate(chunks, start=1)
            if len(start) + len(chunk) > 1
        ]


def found_at(
    tokenizer: PreTrainedTokenizerBase, context: str, chunk: Sequence[int], answer: str, num_target: int
) -> tuple[int, ...]:
    """Context token at which each target token of an answer stands; -1 for what ends it, () when it stands nowhere."""
    start = context.find(answer)
    if start < 0 or not tokenizer.is_fast:
        return ()
    read: Any = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    asked: Any = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    if read["input_ids"] != list(chunk) or len(asked["input_ids"]) > num_target:
        return ()
    ends = [end for _, end in read["offset_mapping"]]
    found = [bisect.bisect_right(ends, start + begin) for begin, _ in asked["offset_mapping"]]
    return (*found, *[-1] * (num_target - len(found)))


def _askable(items: list[ContextItem]) -> list[ContextItem]:
    return [item for item in items if item.completion or item.segments]


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


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence or line of a text."""
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if match.start() > start:
            yield start, match.start()
        start = match.end()
    if start < len(text):
        yield start, len(text)


def _among_texts(facts: str, texts: Sequence[Record], rng: random.Random, config: SourceConfig) -> str:
    """Facts in a run of sentences from real texts: plain ones scattered among them, other styles in one piece."""
    wanted = rng.randint(*config.context_tokens) * _CHARACTERS_PER_TOKEN
    around: list[str] = []
    while sum(map(len, around)) < wanted:
        text = rng.choice(texts).context
        spans = list(_sentences(text))
        for start, end in spans[rng.randrange(len(spans)) :]:
            if sum(map(len, around)) < wanted:
                around.append(text[start:end].strip())
    pieces = [facts[start:end].strip() for start, end in _sentences(facts)] if config.style == "plain" else [facts]
    places = sorted(rng.randint(0, len(around)) for _ in pieces)
    for place, piece in reversed(list(zip(places, pieces, strict=True))):
        around.insert(place, piece if config.style == "plain" else f"\n\n{piece}\n\n")
    joined = "".join(piece + (" " if rng.random() < 0.85 else "\n\n") for piece in around)
    return re.sub(r" *\n\s*\n\s*", "\n\n", joined).strip()


def _window(record: Record, rng: random.Random, config: SourceConfig, tokenizer: PreTrainedTokenizerBase) -> Record:
    """A run of whole sentences around one answer, of a random length within `context_tokens`, with its questions.

    A sentence that is too long alone, as a table without a full stop is, is cut at words around the answer.
    """
    fewest, most = config.context_tokens
    wanted = rng.randint(fewest, most)
    spans = list(_sentences(record.context))
    anchor = rng.choice(record.questions).answers[0]
    found = record.context.find(anchor)
    first = next((i for i, (_, end) in enumerate(spans) if found < end), 0) if found >= 0 else 0
    last = first
    while True:
        grown = [(first - 1, last)] * (first > 0) + [(first, last + 1)] * (last + 1 < len(spans))
        if not grown:
            break
        candidate = rng.choice(grown)
        text = record.context[spans[candidate[0]][0] : spans[candidate[1]][1]]
        if len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) > wanted:
            break
        first, last = candidate
    text = _cut(record.context[spans[first][0] : spans[last][1]], anchor, most, tokenizer)
    whole = text == record.context[spans[0][0] : spans[-1][1]]
    questions = []
    for question in record.questions:
        answers = question.answers if whole else tuple(answer for answer in question.answers if answer in text)
        if answers:
            questions.append(Question(question.question, answers))
    return Record(text, tuple(questions), record.source)


def _cut(text: str, anchor: str, most: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text if it has at most `most` tokens, else whole words around the anchor (or its start) that have."""

    def fits(piece: str) -> bool:
        return len(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]) <= most

    if fits(text):
        return text
    begin = max(0, text.find(anchor))
    end = begin + len(anchor) if anchor in text else 0
    reach = most * _CHARACTERS_PER_TOKEN
    while reach:
        left = text.rfind(" ", 0, begin - reach) + 1 if begin > reach else 0
        right = text.find(" ", end + reach)
        piece = text[left : right if right >= 0 else len(text)]
        if fits(piece):
            return piece
        reach //= 2
    return text[begin:end] or text[: max(1, most // 4)]  # one endless word: no character has more than four tokens
