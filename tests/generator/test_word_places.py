"""Places of words: codes against the kernel they stand for, shares of words, and who takes a unit."""

from __future__ import annotations

import torch

from generative_adapter.generator.word_places import WordPlaces


def test_codes_of_near_places_are_alike_and_stay():
    wide = WordPlaces(value_dim=5, word_dim=4, place_dim=4096)
    codes = wide.codes(torch.arange(300))
    distances = torch.arange(300.0)
    expected = 0.5 * torch.exp(-(distances**2) / 200) + 0.5 * torch.exp(-(distances**2) / 3200)
    for start in (0, 170):
        kernel = codes[start:] @ codes[start]
        torch.testing.assert_close(kernel, expected[: 300 - start], rtol=0, atol=0.08)
    again = WordPlaces(value_dim=5, word_dim=4, place_dim=4096)
    assert torch.equal(again.codes(torch.tensor([7])), codes[7:8])


def test_a_word_that_stands_often_has_a_small_share():
    places = WordPlaces(value_dim=8, word_dim=8, place_dim=2)
    values = torch.randn(6, 8)[torch.tensor([0, 1, 0, 2, 0, 2])] * torch.rand(6, 1).add(0.5)
    words = places.words(values)
    torch.testing.assert_close(words.norm(dim=-1), torch.ones(6))
    torch.testing.assert_close(places.shares(words), torch.tensor([1 / 3, 1, 1 / 3, 1 / 2, 1 / 3, 1 / 2]))
    assert places.shares(words[:0]).shape == (0,)


def test_rare_words_take_units_first():
    places = WordPlaces(value_dim=8, word_dim=8, place_dim=2)
    shares = torch.tensor([1 / 3, 1, 1 / 3, 1 / 2, 1 / 3, 1 / 2, 1])
    remembered = torch.tensor([True, True, True, True, True, True, False])
    taken = {units: places.taken(shares, remembered, units).tolist() for units in (0, 1, 3, 4, 6, 9)}
    assert taken == {
        0: [],
        1: [1],
        3: [1, 3, 5],
        4: [0, 1, 3, 5],
        6: [0, 1, 2, 3, 4, 5],
        9: [0, 1, 2, 3, 4, 5],
    }
