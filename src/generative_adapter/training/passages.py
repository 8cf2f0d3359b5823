"""Passages: runs of paragraphs from a store of texts, for questions that are made of them (`data.cloze`).

A store of texts is a token store whose tokens are bytes of UTF-8: it is read from disk where it is needed, so a corpus
never has to fit into memory, and it is the same for all tokenizers. Leaves out: filling it (`token_cache`), and what is
asked about a passage (`sources`).
"""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from generative_adapter.data.paragraphs import sentence_ends
from generative_adapter.training.token_store import TokenStore
from generative_adapter.training.windows import cut

BYTES_PER_TOKEN = 4  # about, in English
_PARAGRAPH = re.compile(r".+\n*|\n+")


class Passages:
    """Runs of text from some documents of a store, about one for every `most` tokens of a document.

    Args:
        store: the documents, as bytes of UTF-8 in which every line end ends a paragraph.
        records: their numbers.
        most: about so many tokens of a document count as one passage: a document of n bytes counts as
            max(1, n // (4 most)). Which text a passage has is chosen anew each time.
    """

    def __init__(self, store: TokenStore, records: np.ndarray[Any, Any], most: int) -> None:
        self._store = store
        self._records = records
        self._first = np.concatenate(
            [[0], np.cumsum(np.maximum(1, store.lengths[records] // (most * BYTES_PER_TOKEN)))]
        )

    def __len__(self) -> int:
        """How many passages there are."""
        return int(self._first[-1])

    def text(self, number: int, wanted: int, rng: random.Random) -> str:
        """Text from a random place in a passage's part of its document on, about twice `wanted` tokens.

        It begins where the document does, or at a paragraph; at a sentence where no paragraph begins soon, and at a
        word where no sentence does.
        """
        place = int(np.searchsorted(self._first, number, side="right")) - 1
        record = int(self._records[place])
        length = int(self._store.lengths[record])
        part, parts = number - int(self._first[place]), int(self._first[place + 1] - self._first[place])
        begin, end = part * length // parts, (part + 1) * length // parts
        size = wanted * BYTES_PER_TOKEN
        start = min(rng.randrange(begin, end), max(0, length - size))
        if start == 0:
            return self._read(record, 0, 2 * size)
        text = self._read(record, start - 1, start + 3 * size)
        ahead = text[: size // 2]
        begins = ahead.find("\n") + 1 or next(sentence_ends(ahead), 0) or ahead.find(" ") + 1
        return text[begins:].lstrip()

    def _read(self, record: int, start: int, stop: int) -> str:
        return bytes(self._store.tokens(record, start, stop)).decode("utf-8", "ignore")  # a character may be cut


def fitted(text: str, most: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first paragraphs of a text, as many whole ones as have at most `most` tokens.

    Where they have less than half as many, the first sentences of the next paragraph follow. A first sentence that is
    too long alone is cut at a word.
    """

    def num_tokens(piece: str) -> int:
        return len(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])

    kept, length = "", 0
    for paragraph in _PARAGRAPH.findall(text):
        added = num_tokens(paragraph)
        if length + added > most:
            break
        kept, length = kept + paragraph, length + added
    if 2 * length < most:
        rest = next(iter(_PARAGRAPH.findall(text[len(kept) :])), "")
        stop = 0
        for end in (*sentence_ends(rest), len(rest)):
            added = num_tokens(rest[stop:end])
            if length + added > most:
                break
            stop, length = end, length + added
        kept += rest[:stop]
    return cut(kept.strip() or text.strip(), "", most, tokenizer)
