"""Filler text: its sentences, its length, and what stands where."""

from __future__ import annotations

import pytest

from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.tasks.haystack import (
    Haystack,
    Piece,
    holds_phrase,
    make_haystack,
    sentences,
    synthetic_filler,
    words_of,
)

TEXT = (
    'Dr. Ada Grün met J. R. Roe of the U.S. Navy at 5.30. "Is it you?" she asked.\n'
    "A title\n\nThe end of it (nearly.) Truly! no more"
)


def words(text: str) -> int:
    return len(text.split())


def characters(text: str) -> int:
    return len(text)


def test_sentences_end_where_readers_end_them() -> None:
    pieces = sentences(f"  {TEXT}\n")
    assert [piece.text for piece in pieces] == [
        "Dr. Ada Grün met J. R. Roe of the U.S. Navy at 5.30.",
        '"Is it you?"',
        "she asked.",
        "A title",
        "The end of it (nearly.)",
        "Truly!",
        "no more",
    ]
    assert "".join(piece.text + piece.space for piece in pieces) == TEXT
    assert sentences(" \n ") == []


def test_phrases_are_found_word_by_word() -> None:
    assert words_of("The Grün-Weg's 3rd!") == ["the", "grün", "weg", "s", "3rd"]
    assert holds_phrase(["in", "the", "east", "tower"], ["east", "tower"])
    assert not holds_phrase(["the", "east", "a", "tower"], ["east", "tower"])
    assert not holds_phrase(["east"], ["east", "tower"])
    assert not holds_phrase(["east"], [])


def test_boundaries_and_needles_by_hand() -> None:
    pieces = (Piece("One two three four.", " "), Piece("Five.", "\n\n"), Piece("Six seven eight nine ten.", ""))
    hay = Haystack(pieces, (0, 4, 5, 10))
    assert [hay.boundary(depth) for depth in (0, 0.19, 0.21, 0.44, 0.46, 0.74, 0.76, 1)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert hay.boundary(0.2) == 0  # as near to both
    assert hay.with_needles([]) == "One two three four. Five.\n\nSix seven eight nine ten."
    assert hay.with_needles([(0, "N.")]) == "N. One two three four. Five.\n\nSix seven eight nine ten."
    assert hay.with_needles([(2, "N."), (1, "M."), (2, "O.")]) == (
        "One two three four. M. Five.\n\nN. O. Six seven eight nine ten."
    )
    assert hay.with_needles([(3, "N.")]) == "One two three four. Five.\n\nSix seven eight nine ten. N."


@pytest.mark.parametrize("count", [words, characters])
@pytest.mark.parametrize("seed", range(4))
def test_length_is_met(count, seed: int) -> None:
    documents = synthetic_filler(6000, count, 1)
    assert 6000 <= sum(map(count, documents)) < 6000 + max(map(count, documents))
    for wanted in (0, 1, 7, 50, 333, 1000):
        hay = make_haystack(documents, wanted, count, seed=seed)
        text = hay.with_needles([])
        # a word less at most: none, or the longest of the vocabulary with its space
        assert wanted - (0 if count is words else 30) <= count(text) <= wanted
        assert hay.starts[-1] == sum(count(piece.text) for piece in hay.pieces)
        assert make_haystack(documents, wanted, count, seed=seed) == hay


def test_seeds_begin_elsewhere_and_nothing_is_used_twice() -> None:
    document = " ".join(f"Here stands sentence number {number}." for number in range(40))
    texts = {make_haystack([document], 60, words, seed=seed).with_needles([]) for seed in range(8)}
    assert len(texts) > 4
    for seed in range(8):
        whole = make_haystack([document], 200, words, seed=seed).with_needles([])
        assert sorted(piece.text for piece in sentences(whole)) == sorted(p.text for p in sentences(document))
        with pytest.raises(DataError, match="prose has 200 usable tokens, 201 are wanted"):
            make_haystack([document], 201, words, seed=seed, name="prose")
    with pytest.raises(DataError, match="has 0 usable tokens"):
        make_haystack(["  "], 5, words, seed=0)
    with pytest.raises(ConfigError, match="-3 tokens"):
        make_haystack([document], -3, words, seed=0)


def test_a_cut_sentence_is_closed() -> None:
    document = "Alpha beta, gamma delta."
    found = [make_haystack([document], number, words, seed=0).with_needles([]) for number in (1, 2, 3, 4)]
    assert found == ["Alpha.", "Alpha beta.", "Alpha beta, gamma.", document]


def test_telling_sentences_are_left_out() -> None:
    documents = ["Ulm is far. Bo's kite is red. The east tower fell. A tower in the east stays.", "Only Bo knows."]
    for seed in range(5):
        text = make_haystack(documents, 9, words, seed=seed, without=[["bo"], ["east", "tower"]]).with_needles([])
        assert sorted(piece.text for piece in sentences(text)) == ["A tower in the east stays.", "Ulm is far."]
    with pytest.raises(DataError, match="has 9 usable tokens"):
        make_haystack(documents, 10, words, seed=3, without=[["bo"], ["east", "tower"]])
