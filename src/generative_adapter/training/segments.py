"""Which runs of a token store's documents are drawn: pieces of each document, or of all of them joined.

Leaves out: their order and what is predicted of them (`sources`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from generative_adapter.training.token_store import TokenStore


class Segments:
    """Pieces of about `most` tokens that cover some documents of a store, none of their tokens twice.

    Args:
        store: the documents.
        records: their numbers.
        most: tokens of a piece. Without `packing` a document of n tokens is cut into max(1, n // most) equal pieces, of
            `most` tokens or somewhat more; with it every piece has `most` tokens (one that is alone may have fewer),
            and what is left over is left out.
        packing: join the documents, each followed by `end_ids`, instead of cutting each on its own.
        end_ids: the end-of-sequence token.
    """

    def __init__(
        self,
        store: TokenStore,
        records: np.ndarray[Any, Any],
        most: int,
        packing: bool = False,
        end_ids: Sequence[int] = (),
    ) -> None:
        self._store = store
        self._records = records
        self._most = most
        self._packing = packing
        self._end_ids = list(end_ids)
        lengths = store.lengths[records]
        if packing:
            self._begins = np.concatenate([[0], np.cumsum(lengths + len(self._end_ids))])
            num_pieces = max(int(self._begins[-1]) // most, 1 if len(records) else 0)
            self._first = np.array([0, num_pieces])
        else:
            self._first = np.concatenate([[0], np.cumsum(np.maximum(1, lengths // most))])

    def __len__(self) -> int:
        """How many pieces there are."""
        return int(self._first[-1])

    def window(self, number: int, wanted: int, rng: random.Random) -> list[int]:
        """At most `wanted` tokens of a piece, from a random place in it."""
        if self._packing:
            start = number * self._most
            size = min(self._most, int(self._begins[-1]) - start)
        else:
            place = int(np.searchsorted(self._first, number, side="right")) - 1
            length = int(self._store.lengths[self._records[place]])
            part, parts = number - int(self._first[place]), int(self._first[place + 1] - self._first[place])
            start = part * length // parts
            size = (part + 1) * length // parts - start
        start += rng.randint(0, max(0, size - wanted))
        stop = start + min(size, wanted)
        if self._packing:
            return self._joined(start, stop)
        return self._store.tokens(int(self._records[place]), start, stop)

    def _joined(self, start: int, stop: int) -> list[int]:
        ids: list[int] = []
        place = int(np.searchsorted(self._begins, start, side="right")) - 1
        while start + len(ids) < stop:
            begin = start + len(ids) - int(self._begins[place])
            document = self._store.tokens(int(self._records[place]), begin, stop - int(self._begins[place]))
            left = stop - start - len(ids) - len(document)
            ended = max(0, begin - int(self._store.lengths[self._records[place]]))  # of the end that is already past
            ids += document + self._end_ids[ended:][:left]
            place += 1
        return ids
