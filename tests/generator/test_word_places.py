"""Places of words: codes against the kernel they stand for, and the map from words to places."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from generative_adapter.generator.word_places import WordPlaces


def test_codes_of_near_places_are_alike_and_stay():
    wide = WordPlaces(place_dim=4096)
    codes = wide.codes(torch.arange(300))
    distances = torch.arange(300.0)
    expected = 0.5 * torch.exp(-(distances**2) / 200) + 0.5 * torch.exp(-(distances**2) / 3200)
    for start in (0, 170):
        kernel = codes[start:] @ codes[start]
        torch.testing.assert_close(kernel, expected[: 300 - start], rtol=0, atol=0.08)
    again = WordPlaces(place_dim=4096)
    assert torch.equal(again.codes(torch.tensor([7])), codes[7:8])


def test_a_word_leads_to_its_places_whatever_else_stands_there():
    places = WordPlaces(place_dim=512)
    with torch.no_grad():
        places.log_ridge.fill_(-7.0)
    words = torch.randn(5, 12)
    order = torch.tensor([0, 1, 2, 0, 3, 4, 0, 0])
    values = words[order] * torch.rand(8, 1).add(0.5)
    remembered = torch.tensor([True, True, False, True, True, True, True, False])
    found = places.map(values, remembered)
    codes = places.codes(torch.arange(6))
    torch.testing.assert_close(found @ F.normalize(words[3], dim=0), codes[3], rtol=0, atol=0.02)
    thrice = F.normalize(words[0], dim=0)
    torch.testing.assert_close(found @ thrice, codes[[0, 2, 5]].mean(0), rtol=0, atol=0.02)
    assert torch.equal(places.codes_of(remembered)[remembered], codes)
    assert not places.map(values, torch.zeros(8, dtype=torch.bool)).any()
