"""The words synthetic facts are made of, and how one is drawn at random.

A pool is a list of words, a range of numbers, or patterns over other pools ("the {surnames} {building_words}").
Pools are split into a training and a held-out side: a word list of at least `MIN_SPLIT_WORDS` by a checksum of each
word, invented names by a checksum of the whole name. Shorter lists (colours, weekdays) and numbers are shared.
Leaves out: what the values are used for (`facts_attributes.py`).
"""

from __future__ import annotations

import json
import random
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

MIN_SPLIT_WORDS = 60
HELD_OUT_SHARE = 5  # one in this many words is held out
VOWEL_SOUND = re.compile(r"(?!one\b|once|uni|use|util|ukulele|euro|ewe)(?:[aeiou]|hour|honest|heir)", re.IGNORECASE)


def read_table(name: str) -> Any:
    """Returns the content of a JSON table that ships in this folder."""
    return json.loads(resources.files("generative_adapter.data").joinpath(name).read_text(encoding="utf-8"))


def is_held_out(word: str) -> bool:
    """Tells whether a word belongs to the held-out side; the same on every machine and in every pool."""
    return zlib.crc32(word.encode()) % HELD_OUT_SHARE == 0


def with_indefinite_article(word: str) -> str:
    """Returns "a baker" for "baker", "an oboe" for "oboe"."""
    return f"an {word}" if VOWEL_SOUND.match(word) else f"a {word}"


@dataclass(frozen=True)
class _Pattern:
    pieces: tuple[tuple[str, bool], ...]  # (literal text or pool name, whether it is a pool)


class Vocabulary:
    """All pools of the shipped table `facts_vocabulary.json`.

    Args:
        table: "words", "numbers", "patterns", "articles" and "fillers", as in the shipped table.
    """

    def __init__(self, table: dict[str, Any]) -> None:
        self.words: dict[str, dict[bool, tuple[str, ...]]] = {}
        for name, words in table["words"].items():
            if len(words) >= MIN_SPLIT_WORDS:
                sides = {side: tuple(word for word in words if is_held_out(word) == side) for side in (False, True)}
            else:
                sides = {False: tuple(words), True: tuple(words)}
            self.words[name] = sides
        self.numbers: dict[str, dict[str, Any]] = table["numbers"]
        self.split_whole = {name for name, entry in table["patterns"].items() if entry["split_whole"]}
        self.patterns = {
            name: tuple(self._parse(text) for text in entry["texts"]) for name, entry in table["patterns"].items()
        }
        self.articles: dict[str, str] = table["articles"]
        self.fillers: tuple[str, ...] = tuple(table["fillers"])
        self.common_words = self._find_common_words()

    @staticmethod
    def _parse(text: str) -> _Pattern:
        pieces = re.split(r"[{}]", text)
        return _Pattern(tuple((piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece))

    def _find_common_words(self) -> frozenset[str]:
        common = {"a", "an", "the", "of", "on", "and", "&"}
        for patterns in self.patterns.values():
            for pattern in patterns:
                for piece, is_pool in pattern.pieces:
                    words = self.words.get(piece, {}).get(False, ()) if is_pool else (piece,)
                    if not is_pool or len(words) < MIN_SPLIT_WORDS // 2:
                        common.update(part for word in words for part in word.split())
        return frozenset(common)

    def draw(self, rng: random.Random, pool: str, held_out: bool) -> str:
        """Returns one text of a pool, from its held-out or its training side."""
        sides = self.words.get(pool)
        if sides is not None:
            words = sides[held_out]
            return words[int(rng.random() * len(words))]
        number = self.numbers.get(pool)
        if number is not None:
            value = rng.randrange(number["low"], number["high"] + 1, number["step"])
            return number["text"].replace("{n}", str(value))
        patterns = self.patterns[pool]
        split_whole = pool in self.split_whole
        while True:
            pattern = patterns[int(rng.random() * len(patterns))]
            text = "".join(
                # A name split as a whole is made of parts of both sides.
                self.draw(rng, piece, held_out if not split_whole else rng.random() < 1 / HELD_OUT_SHARE)
                if is_pool
                else piece
                for piece, is_pool in pattern.pieces
            )
            if not split_whole or is_held_out(text) == held_out:
                return text

    def core_words(self, name: str) -> set[str]:
        """Returns the words that tell a name from others: {"Norvale"} for "the Norvale printer"."""
        return {word.removesuffix("'s") for word in name.split()} - self.common_words


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """Returns the shipped vocabulary, read once."""
    return Vocabulary(read_table("facts_vocabulary.json"))
