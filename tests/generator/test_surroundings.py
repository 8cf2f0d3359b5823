"""Codes of the words around a token: the formula, padding, and how rare words are."""

from __future__ import annotations

import math

import pytest
import torch

from generative_adapter.config import EncoderConfig, GeneratorConfig
from generative_adapter.errors import ConfigError
from generative_adapter.generator.surroundings import Surroundings


@pytest.fixture
def surroundings() -> Surroundings:
    torch.manual_seed(0)
    made = Surroundings(24, 6)
    made.code_mean.copy_(0.3 * torch.randn(24))
    made.rarity_proj.copy_(torch.randn(24))
    made.mean_surroundings.copy_(0.2 * torch.randn(6))
    return made


def test_codes_sum_rare_words_near_by(surroundings):
    words = torch.randn(1, 50, 24)
    found = surroundings(words)[0]
    rarity = (words[0] @ surroundings.rarity_proj + surroundings.rarity_bias).clamp_min(0)
    assert 10 < int((rarity > 0).sum()) < 40  # frequent words count nothing
    for token in (0, 17, 49):
        total = torch.zeros(6)
        for other in range(50):
            away = words[0, other] - surroundings.code_mean
            weight = rarity[other] * math.exp(-(((token - other) / 20) ** 2))
            total += weight * (surroundings.code_proj @ away) / away.norm()
        expected = 0.05 * (total / total.norm() - surroundings.mean_surroundings)
        torch.testing.assert_close(found[token], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(surroundings.code_proj @ surroundings.code_proj.mT, torch.eye(6), rtol=0, atol=1e-5)


def test_padding_counts_nothing_and_order_of_a_question_neither(surroundings):
    words = torch.randn(2, 12, 24)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    torch.testing.assert_close(surroundings(words, mask)[1, :7], surroundings(words[1:, :7])[0])
    asked = surroundings.of_words(words[0])
    torch.testing.assert_close(asked, surroundings.of_words(words[0].flip(0)))
    alone = surroundings(words[:1, :1])[0, 0]
    torch.testing.assert_close(surroundings.of_words(words[0, :1]), alone)


def test_rare_words_count_more_and_frequent_ones_nothing(surroundings):
    """Where embeddings tell how often a word is used, so does the regression."""
    torch.manual_seed(1)
    embeddings = torch.randn(400, 24)
    counts = (60 * torch.exp(1.5 * embeddings[:, 0])).round()
    surroundings.measure(embeddings, counts, 100.0)
    lengths = surroundings.words(embeddings).norm(dim=-1)
    wanted = (-((counts + 0.5) / counts.sum() * 100).log()).clamp_min(0)
    assert float(torch.corrcoef(torch.stack([lengths, wanted]))[0, 1]) > 0.6
    often = counts.argsort()[-10:]
    assert float(lengths[often].mean()) < 0.2 * float(lengths[counts.argsort()[:10]].mean())
    codes = surroundings(embeddings.view(8, 50, 24))
    surroundings.set_mean(codes.mean((0, 1)))
    centred = surroundings(embeddings.view(8, 50, 24)).mean((0, 1))
    torch.testing.assert_close(centred, torch.zeros(6), rtol=0, atol=1e-6)


def test_surroundings_need_units_alone():
    units = {"normalization": "ridge", "state_dim": 16, "rank": 8}
    GeneratorConfig(layers=(), encoder=EncoderConfig(unit_layers=(1,), surroundings_dim=15), **units)
    for layers, encoder in (
        (None, EncoderConfig(unit_layers=(1,), surroundings_dim=4)),
        ((), EncoderConfig(unit_layers=(1,), surroundings_dim=16)),
        ((), EncoderConfig(surroundings_dim=4)),
    ):
        with pytest.raises(
            ConfigError, match=r"surroundings_dim must lie below state_dim \(16\) and needs unit_layers"
        ):
            GeneratorConfig(layers=layers, encoder=encoder, **units)
    with pytest.raises(ConfigError, match="surroundings_dim must not be negative"):
        EncoderConfig(surroundings_dim=-1)
