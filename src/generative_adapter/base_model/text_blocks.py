"""Texts to chunks that can be understood on their own: paragraphs, not runs of so many tokens.

For generators that read every chunk independently. The blocks between blank lines are kept whole where they fit; a
heading or a short line goes with what follows it. Leaves out: chunks that are read as the continuation of one another
(`prompts.context_chunks`) and batches.
"""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

from generative_adapter.base_model.prompts import plain_ids_of_each
from generative_adapter.errors import EmptyContextError

SHORTEST_BLOCK = 48  # tokens; a shorter one says too little of what it is about

_BLANK_LINES = re.compile(r"\n\s*\n")
# Behind a full stop where neither a number nor something in lower case follows; the last three need no space.
_SENTENCE_END = re.compile(r"(?<=[.!?\u2026])[\"'\u201d\u2019)\]]*\s+(?=[^\sa-z0-9])|(?<=[\u3002\uff01\uff1f])")
_LINE_END = re.compile(r"\n")
# A block of more lines than this, of which more than this share start in lower case, is prose wrapped at some width.
_MOST_UNWRAPPED, _MOST_LOWER_CASE = 4, 0.25


def block_chunks(tokenizer: PreTrainedTokenizerBase, text: str, chunk_tokens: int) -> list[list[int]]:
    """The chunks of a context as token ids, each of at most `chunk_tokens`, without begin-of-sequence tokens.

    A text is split at blank lines. Blocks of less than `SHORTEST_BLOCK` tokens (or `chunk_tokens`, if that is less) are
    joined with the next, a last one with the one before where that leaves room. Longer ones than `chunk_tokens` are cut
    at ends of lines or sentences into parts of about the same length, or between tokens where there is no such end.
    Every chunk's ids are those of its own text, white space around it left out; special tokens are read as plain text.

    Raises:
        EmptyContextError: when the text holds nothing but white space, or nothing the tokenizer knows.
    """
    chunks: list[list[int]] = []
    joined = _joined_blocks(tokenizer, text, chunk_tokens)
    for block, ids in zip(joined, plain_ids_of_each(tokenizer, joined), strict=True):
        chunks += [ids] if len(ids) <= chunk_tokens else _parts(tokenizer, block, chunk_tokens)
    chunks = [ids for ids in chunks if ids]
    if not chunks:
        raise EmptyContextError("the context is empty: it holds no text to make an adapter from")
    return chunks


def _joined_blocks(tokenizer: PreTrainedTokenizerBase, text: str, chunk_tokens: int) -> list[str]:
    """The blocks of a text, short ones joined; what stands between two that are joined stays as it is."""
    ends = [match.start() for match in _BLANK_LINES.finditer(text)] + [len(text)]
    starts = [0] + [match.end() for match in _BLANK_LINES.finditer(text)]
    spans = [(start, end) for start, end in zip(starts, ends, strict=True) if text[start:end].strip()]
    lengths = [len(ids) for ids in plain_ids_of_each(tokenizer, [text[start:end].strip() for start, end in spans])]
    shortest = min(SHORTEST_BLOCK, chunk_tokens)
    joined: list[tuple[int, int, int]] = []  # start, end, tokens
    for (start, end), length in zip(spans, lengths, strict=True):
        if joined and joined[-1][2] < shortest:
            start, _, before = joined.pop()
            length += before
        joined.append((start, end, length))
    if len(joined) > 1 and joined[-1][2] < shortest and joined[-2][2] + joined[-1][2] <= chunk_tokens:
        (_, end, length), (start, _, before) = joined.pop(), joined.pop()
        joined.append((start, end, before + length))
    return [text[start:end].strip() for start, end, _ in joined]


def _parts(tokenizer: PreTrainedTokenizerBase, block: str, chunk_tokens: int) -> list[list[int]]:
    """A block that is too long, cut."""
    units = _units(tokenizer, block, chunk_tokens)
    lengths = [len(ids) for ids in plain_ids_of_each(tokenizer, units)]
    parts: list[str] = []
    left, at = sum(lengths), 0
    while at < len(units):
        goal = left / -(-left // chunk_tokens)
        taken, first = lengths[at], at
        at += 1
        while at < len(units) and taken + lengths[at] / 2 <= goal and taken + lengths[at] <= chunk_tokens:
            taken += lengths[at]
            at += 1
        parts.append("".join(units[first:at]).strip())
        left -= taken
    return [piece for ids in plain_ids_of_each(tokenizer, parts) for piece in _slices(ids, chunk_tokens)]


def _units(tokenizer: PreTrainedTokenizerBase, block: str, chunk_tokens: int) -> list[str]:
    """What a block is not cut within, if it can be avoided: its lines, and the sentences of the longest ones.

    Lines of half a chunk and more are split; those of wrapped prose end anywhere and play no part.
    """
    lines = block.split("\n")
    in_lower_case = sum(line.lstrip()[:1].islower() for line in lines[1:])
    is_wrapped = len(lines) > _MOST_UNWRAPPED and in_lower_case > _MOST_LOWER_CASE * len(lines)
    units: list[str] = []
    lines = [block] if is_wrapped else _split_behind(_LINE_END, block)
    for line, ids in zip(lines, plain_ids_of_each(tokenizer, lines), strict=True):
        units += _split_behind(_SENTENCE_END, line) if 2 * len(ids) > chunk_tokens else [line]
    return units


def _split_behind(pattern: re.Pattern[str], text: str) -> list[str]:
    """The text cut behind every match, without pieces of white space."""
    ends = [*(match.end() for match in pattern.finditer(text)), len(text)]
    pieces = (text[start:end] for start, end in zip([0, *ends], ends, strict=False))
    return [piece for piece in pieces if piece.strip()]


def _slices(ids: list[int], chunk_tokens: int) -> list[list[int]]:
    """The ids in as few runs of about the same length as can be; as they are where they fit."""
    size = -(-len(ids) // max(1, -(-len(ids) // chunk_tokens)))
    return [ids[start : start + size] for start in range(0, len(ids), max(1, size))]
