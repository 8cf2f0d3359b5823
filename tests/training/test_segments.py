"""Pieces of documents against slices of plain lists: nothing twice, nothing from another document, packing in order."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from generative_adapter.training.segments import Segments
from generative_adapter.training.token_store import EncodedRecord, TokenStore, fill_store

LENGTHS = (7, 40, 3, 23, 100, 11)
END = [9_998, 9_999]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    """Document d holds the tokens 1000 d, 1000 d + 1, ..."""
    documents = [EncodedRecord(d, d, [[1000 * d + i for i in range(n)], [5]]) for d, n in enumerate(LENGTHS, start=1)]
    fill_store(tmp_path, {}, lambda skip: iter(documents), shard_tokens=50)
    return TokenStore(tmp_path)


def test_pieces_of_documents(store: TokenStore) -> None:
    chosen = np.array([0, 1, 3, 4])
    pieces = Segments(store, chosen, 10)
    assert len(pieces) == 1 + 4 + 2 + 10
    whole = [pieces.window(number, 1000, random.Random(0)) for number in range(len(pieces))]
    expected = [store.tokens(int(record)) for record in chosen]
    assert [*itertools.chain(*whole)] == [*itertools.chain(*expected)]  # every token once, in order
    assert [len(piece) for piece in whole] == [7, *[10] * 4, 11, 12, *[10] * 10]
    windows = {tuple(pieces.window(5, 8, random.Random(seed))) for seed in range(40)}
    assert windows == {tuple(whole[5][at : at + 8]) for at in range(4)}
    assert len(Segments(store, np.array([], dtype=int), 10)) == 0


@pytest.mark.parametrize("most", [10, 17, 64, 1000])
@pytest.mark.parametrize("ends", [[], END[:1], END])
def test_packing(store: TokenStore, most: int, ends: list[int]) -> None:
    chosen = np.array([0, 2, 3, 4])
    joined = [token for record in chosen for token in (*store.tokens(int(record)), *ends)]
    pieces = Segments(store, chosen, most, True, ends)
    assert len(pieces) == max(1, len(joined) // most)
    for number in range(len(pieces)):
        assert pieces.window(number, most, random.Random(0)) == joined[number * most : (number + 1) * most]
        for seed in range(20):
            window = pieces.window(number, 5, random.Random(seed))
            at = joined.index(window[0], number * most) if window[0] not in ends else number * most
            assert len(window) == 5
            assert any(joined[i : i + 5] == window for i in range(number * most, (number + 1) * most - 4)), at
    assert len(Segments(store, np.array([], dtype=int), most, True, ends)) == 0
