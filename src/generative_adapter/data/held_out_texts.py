"""Texts that are kept for testing, as hashes: whether another text is one of them, or holds much of one.

The package carries hashes of the held-out splits that this project is evaluated on, so that training can refuse them
(`training.token_cache`) without having them. `scripts/hash_held_out.py` makes the file.

A text is normalised line by line: Unicode NFKC, lower case, one space for white space, and no label before a colon at a
line's start ("Speaker 1:", "Input:"). The hash is the first 8 bytes of SHA-256. Of a held-out text are kept

    the whole       from 60 characters on
    its parts       from 200 characters on: lines, groups of lines between blank ones, and passages, which are whole
                    sentences, as few as make 200 characters, one passage behind the other

A text is taken for held out when it, or a line or group of lines in it, is the whole of one, or when parts of held-out
texts, of which passages may start at any of its sentences, make up half of it or 500 characters. So a held-out text
is found whole, on lines of its own in a longer text, or cut to a part of it; a quoted sentence or a common table legend
is let through, and so is a text in which words were changed everywhere. A text of n sentences and lines has a part
among N hashes by mistake with probability N n / 2^64: 4 10^-7 for 7 10^4 hashes and 10^8 sentences.

Leaves out: what is done about it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from generative_adapter.data.rows import Record
from generative_adapter.errors import DataError

FORMAT = "generative-adapter-held-out-texts"
SHORTEST_TEXT = 60
SHORTEST_PART = 200
MOST_FOREIGN = 500

_LABEL = re.compile(r"\w+(?: \w+)?:(?: |$)")
_SENTENCE_END = re.compile(r"[.!?][\"')\]\u2019\u201d]* ")  # with closing quotes and brackets


@dataclass(frozen=True)
class TextHashes:
    """Hashes of one or more held-out texts.

    Attributes:
        wholes: of texts as they are.
        parts: of lines, groups of lines and passages.
    """

    wholes: set[int] = field(default_factory=set)
    parts: set[int] = field(default_factory=set)


class HeldOutTexts:
    """Hashes of held-out texts, by split.

    Args:
        splits: names of splits, with the hashes of each; one that stands in several belongs to the first.
    """

    def __init__(self, splits: Mapping[str, TextHashes]) -> None:
        self._wholes: dict[int, str] = {}
        self._parts: dict[int, str] = {}
        for name, hashes in splits.items():
            for own, given in ((self._wholes, hashes.wholes), (self._parts, hashes.parts)):
                for each in given:
                    own.setdefault(each, name)

    def __len__(self) -> int:
        return len(self._wholes) + len(self._parts)

    @property
    def digest(self) -> str:
        """Of all hashes; tells sets apart."""
        hashes = [np.array(sorted(own), dtype="<u8").tobytes() for own in (self._wholes, self._parts)]
        return hashlib.sha256(b"/".join(hashes)).hexdigest()[:16]

    def split_of(self, text: str) -> str | None:
        """The split that a text is from, wholly or in good part; None: from none."""
        whole, spans = _normalised(text)
        found: list[tuple[int, int]] = []
        split = None
        for start, end in spans:
            if end - start >= SHORTEST_TEXT:
                each = _hash(whole[start:end])
                if each in self._wholes:
                    return self._wholes[each]
                if each in self._parts:
                    split = self._parts[each]
                    found.append((start, end))
        for start, end in _passages(whole):
            each = _hash(whole[start:end])
            if each in self._parts:
                split = self._parts[each]
                found.append((start, end))
        return split if found and _covered(found) >= min(MOST_FOREIGN, len(whole) / 2) else None

    def split_of_record(self, record: Record) -> str | None:
        """The split that a record's context, or a question of it with its answer, is from; None: from none."""
        texts = (record.context, *(f"{each.question}\n{each.answers[0]}" for each in record.questions))
        return next((split for text in texts if (split := self.split_of(text)) is not None), None)


def text_hashes(text: str) -> TextHashes:
    """The hashes that are kept of a held-out text."""
    whole, spans = _normalised(text)
    parts = {(start, end) for start, end in spans[1:] if end - start >= SHORTEST_PART}
    at = 0
    for start, end in _passages(whole):
        if start >= at:
            parts.add((start, end))
            at = end
    wholes = {_hash(whole)} if len(whole) >= SHORTEST_TEXT else set()
    return TextHashes(wholes, {_hash(whole[start:end]) for start, end in parts})


@cache
def packaged() -> HeldOutTexts:
    """Those that come with this package.

    Raises:
        DataError: when the file is missing or damaged.
    """
    return load_held_out(Path(__file__).with_name("held_out_texts.safetensors"))


def load_held_out(path: Path) -> HeldOutTexts:
    """The hashes in a file that `scripts/hash_held_out.py` made.

    Raises:
        DataError: when it is missing, damaged or something else.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise DataError(f"{path} holds no hashes of held-out texts; make it with scripts/hash_held_out.py")
            hashes = {name: set(file.get_tensor(name).tolist()) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} can't be read ({error}); install this package anew") from error
    names = dict.fromkeys(name.rpartition(":")[0] for name in hashes)
    none: set[int] = set()
    return HeldOutTexts(
        {name: TextHashes(hashes.get(f"{name}:wholes", none), hashes.get(f"{name}:parts", none)) for name in names}
    )


def save_held_out(path: Path, splits: Mapping[str, TextHashes]) -> None:
    """Writes hashes of splits; one that stands in several is kept for the first."""
    known: dict[str, set[int]] = {"wholes": set(), "parts": set()}
    tensors = {}
    for name, hashes in splits.items():
        for kind, seen in known.items():
            if own := getattr(hashes, kind) - seen:
                tensors[f"{name}:{kind}"] = np.array(sorted(own), dtype=np.uint64)
                seen |= own
    path.write_bytes(save(tensors, metadata={"format": FORMAT, "version": "1"}))


def _normalised(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A text on one line, and where in it the whole, its lines, and groups of these between blank ones stand."""
    text = (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()
    lines: list[str] = []
    spans: list[tuple[int, int]] = []
    at = group = 0
    num_grouped = 0
    for raw in (*text.splitlines(), ""):
        line = " ".join(raw.split())
        if not line:
            if num_grouped > 1:
                spans.append((group, at - 1))
            group, num_grouped = at, 0
        elif line := line[label.end() :] if (label := _LABEL.match(line)) else line:
            lines.append(line)
            spans.append((at, at + len(line)))
            at += len(line) + 1
            num_grouped += 1
    whole = (0, max(0, at - 1))
    return " ".join(lines), [whole, *(span for span in spans if span != whole)]


def _passages(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of the shortest passage from each sentence on; from the last ones on there is none."""
    starts = [0, *(end.end() for end in _SENTENCE_END.finditer(text)), len(text) + 1]
    last = 0
    for start in starts[:-1]:
        while starts[last] - 1 - start < SHORTEST_PART:
            last += 1
            if last == len(starts):
                return
        yield start, starts[last] - 1


def _covered(spans: Iterable[tuple[int, int]]) -> int:
    """Characters in any of the spans."""
    total = at = 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, at))
        at = max(at, end)
    return total


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")
