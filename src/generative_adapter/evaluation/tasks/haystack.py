"""Filler text of a wanted length, and sentences put into it at wanted depths.

Plain text and a counter of tokens. Leaves out: which sentences are hidden, and what is asked about them (`needle`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from generative_adapter.config import require
from generative_adapter.data.facts import sample_facts_record
from generative_adapter.errors import DataError

PARAGRAPH = "\n\n"
FACTS_A_DOCUMENT = 8

_WORD = re.compile(r"\w+")
_CLOSING = "\"')]\u201d\u2019"
_BOUNDARY = re.compile(rf"(?<=[.!?])[{re.escape(_CLOSING)}]*\s+|\s*\n\s*")
_NO_END = re.compile(r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|No|vs|etc|e\.g|i\.e|cf|ca|(?:[A-Z]\.)+[A-Z])\.$")


@dataclass(frozen=True)
class Piece:
    """A sentence with the white space behind it."""

    text: str
    space: str


@dataclass(frozen=True)
class Haystack:
    """Filler of about a wanted length.

    Attributes:
        pieces: its sentences in order; those before place i stand before boundary i of `boundaries`.
        starts: tokens before each boundary, one more than there are pieces: the first is 0, the last all of them.
    """

    pieces: tuple[Piece, ...]
    starts: tuple[int, ...]

    def boundary(self, depth: float) -> int:
        """The sentence boundary nearest to a depth in 0..1, in tokens; the earlier of two."""
        wanted = depth * self.starts[-1]
        return min(range(len(self.starts)), key=lambda place: abs(self.starts[place] - wanted))

    def with_needles(self, needles: Sequence[tuple[int, str]]) -> str:
        """The text with sentences at boundaries, (boundary, sentence); those at one boundary in the order given."""
        at: dict[int, list[str]] = {}
        for place, sentence in needles:
            at.setdefault(place, []).append(sentence)
        parts: list[str] = []
        for place in range(len(self.pieces) + 1):
            parts += [f"{sentence} " for sentence in at.get(place, ())]
            if place < len(self.pieces):
                piece = self.pieces[place]
                parts += [piece.text, piece.space or " "]
        return "".join(parts).rstrip()


def sentences(text: str) -> list[Piece]:
    """The sentences of a text with what stands between them; put together they are the text without its margins.

    A sentence ends with its line, and behind `.`, `!` or `?` (closing quotes and brackets included) and white space,
    unless that is an initial or a common abbreviation.
    """
    text = text.strip()
    pieces, start = [], 0
    for match in _BOUNDARY.finditer(text):
        end = match.start() + len(match[0]) - len(match[0].lstrip(_CLOSING))
        if end == start or ("\n" not in match[0] and _NO_END.search(text[start : match.start()])):
            continue
        pieces.append(Piece(text[start:end], text[end : match.end()]))
        start = match.end()
    if start < len(text):
        pieces.append(Piece(text[start:], ""))
    return pieces


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def holds_phrase(words: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether words hold a phrase's words one after another; an empty phrase is nowhere."""
    return bool(phrase) and any(
        list(words[at : at + len(phrase)]) == list(phrase) for at in range(len(words) - len(phrase) + 1)
    )


def synthetic_filler(num_tokens: int, count_tokens: Callable[[str], int], seed: int) -> tuple[str, ...]:
    """Documents of made-up facts with so many tokens or a few more, of other names and wordings than held-out ones.

    Args:
        num_tokens: of all documents together.
        count_tokens: number of tokens of a text.
        seed: decides which facts.
    """
    draw = random.Random(f"{seed}/synthetic filler")
    documents: list[str] = []
    while num_tokens > 0:
        documents.append(sample_facts_record(draw, num_facts=FACTS_A_DOCUMENT, num_questions=0, style="plain").context)
        num_tokens -= count_tokens(documents[-1])
    return tuple(documents)


def make_haystack(
    documents: Sequence[str],
    num_tokens: int,
    count_tokens: Callable[[str], int],
    *,
    seed: int,
    without: Sequence[Sequence[str]] = (),
    name: str = "filler",
) -> Haystack:
    """Filler of a wanted length from documents, in an order and from a sentence on that the seed decides.

    Sentences that hold a phrase of `without` are left out, so that nothing but the needle tells of what is hidden. The
    last sentence is cut behind a word, and closed with a full stop, where it would be too long. No text is used twice.
    Languages without spaces between words get whole sentences only, and so less text.

    Args:
        documents: the text.
        num_tokens: wanted; at most so many are given, and only a few less.
        count_tokens: number of tokens of a text.
        seed: decides order and start.
        without: phrases as lower-case words (`words_of`).
        name: of the filler, for errors.

    Raises:
        ConfigError: `num_tokens` is negative.
        DataError: the documents have fewer tokens.
    """
    require(num_tokens >= 0, f"filler of {num_tokens} tokens is asked for; give longer contexts or fewer needles")
    pieces = _enough_pieces(documents, num_tokens, count_tokens, random.Random(f"{seed}/haystack"), without)
    if (given := count_tokens(_joined(pieces))) < num_tokens:
        raise DataError(f"{name} has {given} usable tokens, {num_tokens} are wanted; give more text or shorter lengths")
    num_whole = _most(len(pieces), lambda count: count_tokens(_joined(pieces[:count])) <= num_tokens)
    kept = pieces[:num_whole]
    if num_whole < len(pieces):
        words = pieces[num_whole].text.split()
        num_words = _most(len(words), lambda count: count_tokens(_joined([*kept, _cut(words, count)])) <= num_tokens)
        kept += [_cut(words, num_words)] if num_words else []
    return Haystack(tuple(kept), (0, *accumulate(count_tokens(piece.text) for piece in kept)))


def _enough_pieces(
    documents: Sequence[str],
    num_tokens: int,
    count_tokens: Callable[[str], int],
    draw: random.Random,
    without: Sequence[Sequence[str]],
) -> list[Piece]:
    """Sentences of documents in a drawn order, from a drawn sentence of the first on, until they are long enough.

    What stands before that sentence comes last, where all is needed.
    """
    order = list(documents)
    draw.shuffle(order)
    pieces: list[Piece] = []
    skipped: list[Piece] = []
    estimate = 0
    for document in order:
        own = [piece for piece in sentences(document) if not _is_telling(piece, without)]
        if not own:
            continue
        own[-1] = Piece(own[-1].text, PARAGRAPH)
        if not pieces:
            first = draw.randrange(len(own))
            skipped, own = own[:first], own[first:]
        pieces += own
        estimate += count_tokens(_joined(own))
        if estimate > num_tokens and count_tokens(_joined(pieces)) > num_tokens:
            return pieces
    return pieces + skipped


def _is_telling(piece: Piece, phrases: Sequence[Sequence[str]]) -> bool:
    words = words_of(piece.text)
    return any(holds_phrase(words, phrase) for phrase in phrases)


def _joined(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text + piece.space for piece in pieces).rstrip()


def _cut(words: Sequence[str], count: int) -> Piece:
    """The first words of a sentence as a sentence."""
    text = " ".join(words[:count]).rstrip(",;:-")
    return Piece(text if not text or text[-1] in ".!?" else f"{text}.", "")


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest count in 0..limit that fits; 0 does, and what fits does so with less."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
