"""Runs of sentences: windows around answers, facts among the sentences of real texts, where an answer stands.

Leaves out: which records they are cut from (`sources`).
"""

from __future__ import annotations

import bisect
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from generative_adapter.data.records import Question, Record
from generative_adapter.training.source_config import SourceConfig

_CHARACTERS_PER_TOKEN = 4  # about, in English
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def window(record: Record, rng: random.Random, config: SourceConfig, tokenizer: PreTrainedTokenizerBase) -> Record:
    """A run of whole sentences around one answer, of a random length within `context_tokens`, with its questions.

    A sentence that is too long alone, as a table without a full stop is, is cut at words around the answer.
    """
    fewest, most = config.context_tokens
    wanted = rng.randint(fewest, most)
    spans = list(sentences(record.context))
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
    text = cut(record.context[spans[first][0] : spans[last][1]], anchor, most, tokenizer)
    whole = text == record.context[spans[0][0] : spans[-1][1]]
    questions = []
    for question in record.questions:
        answers = question.answers if whole else tuple(answer for answer in question.answers if answer in text)
        if answers:
            questions.append(Question(question.question, answers))
    return Record(text, tuple(questions), record.source)


def cut(text: str, anchor: str, most: int, tokenizer: PreTrainedTokenizerBase) -> str:
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


def among_texts(facts: str, texts: Sequence[Record], rng: random.Random, config: SourceConfig) -> str:
    """Facts in a run of sentences from real texts: plain ones scattered among them, other styles in one piece."""
    wanted = rng.randint(*config.context_tokens) * _CHARACTERS_PER_TOKEN
    around: list[str] = []
    while sum(map(len, around)) < wanted:
        text = rng.choice(texts).context
        spans = list(sentences(text))
        for start, end in spans[rng.randrange(len(spans)) :]:
            if sum(map(len, around)) < wanted:
                around.append(text[start:end].strip())
    pieces = [facts[start:end].strip() for start, end in sentences(facts)] if config.style == "plain" else [facts]
    places = sorted(rng.randint(0, len(around)) for _ in pieces)
    for place, piece in reversed(list(zip(places, pieces, strict=True))):
        around.insert(place, piece if config.style == "plain" else f"\n\n{piece}\n\n")
    joined = "".join(piece + (" " if rng.random() < 0.85 else "\n\n") for piece in around)
    return re.sub(r" *\n\s*\n\s*", "\n\n", joined).strip()


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence or line of a text."""
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if match.start() > start:
            yield start, match.start()
        start = match.end()
    if start < len(text):
        yield start, len(text)


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
