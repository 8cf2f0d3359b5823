"""The map of words to values: what whitening is, against plain sums, and the way back to words."""

from __future__ import annotations

import pytest
import torch

from generative_adapter.generator.word_map import measure_word_map, word_directions

WORDS, HIDDEN = 300, 12
GAINS = torch.linspace(-2, 2, HIDDEN)


@pytest.fixture
def embeddings() -> torch.Tensor:
    """With a common part, and directions of very different sizes."""
    random = torch.Generator().manual_seed(0)
    return 0.13 * (2 + torch.randn(WORDS, HIDDEN, generator=random) * torch.logspace(-1, 0.5, HIDDEN))


def test_values_are_centred_and_white(embeddings):
    counts = torch.arange(WORDS) ** 2
    words = measure_word_map(embeddings, counts, GAINS, HIDDEN)
    values = embeddings @ words.projection.mT - words.bias
    shares = (counts + 0.5) ** 0.75
    shares = shares / shares.sum()
    mean, covariance = torch.zeros(HIDDEN), torch.zeros(HIDDEN, HIDDEN)
    for share, value in zip(shares, values, strict=True):
        mean += share * value
        covariance += share * torch.outer(value, value)
    torch.testing.assert_close(mean, torch.zeros(HIDDEN), rtol=0, atol=1e-4)
    # Along an eigenvector of size s the covariance is s / (s + damping): below one, and close to it for large ones.
    sizes = torch.linalg.eigvalsh(covariance)
    centred = (embeddings / embeddings.square().mean().sqrt()).double()
    centred = centred - (shares.unsqueeze(1) * centred).sum(0)
    before = torch.linalg.eigvalsh((centred * shares.unsqueeze(1)).mT @ centred)
    torch.testing.assert_close(sizes.double(), before / (before + 0.05 * before.mean()), rtol=1e-3, atol=1e-4)


def test_frequent_words_decide(embeddings):
    flat = measure_word_map(embeddings, torch.zeros(WORDS), GAINS, 5)
    skewed = measure_word_map(embeddings, torch.arange(WORDS), GAINS, 5)
    assert flat.projection.shape == (5, HIDDEN) and flat.directions.shape == (HIDDEN, 5)
    assert (flat.bias - skewed.bias).abs().max() > 0.01
    again = measure_word_map(embeddings, torch.zeros(WORDS), GAINS, 5)
    assert torch.equal(again.projection, flat.projection)


def test_a_value_says_its_own_word(embeddings):
    """Behind the final norm's gains, a tied head scores words by how near their values are, its own first."""
    words = measure_word_map(embeddings, torch.ones(WORDS), GAINS, HIDDEN)
    values = embeddings @ words.projection.mT - words.bias
    hidden = (values @ words.directions.mT) * GAINS
    centred = embeddings - embeddings.mean(0)
    scores = hidden @ centred.mT / embeddings.square().mean().sqrt()
    torch.testing.assert_close(scores, values @ values.mT, rtol=1e-3, atol=1e-3)
    nearest = (scores - values.square().sum(1) / 2).argmax(1)
    assert torch.equal(nearest, torch.arange(WORDS))


def test_small_gains_are_bounded_and_signs_kept():
    projection = torch.eye(5)
    directions = word_directions(projection, torch.tensor([-2.0, 0.01, 0.5, -0.01, 0.0]))
    torch.testing.assert_close(directions, torch.diag(torch.tensor([-0.5, 10.0, 2.0, -10.0, 10.0])))
