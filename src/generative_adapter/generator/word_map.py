"""WordMap: how words become values of a memory, and how values become words again. Fixed while a generator is trained.

Leaves out: where the frequencies of words come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_DAMPING = 0.05  # of the whitening, relative to the mean eigenvalue
_FLATTENING = 0.75  # power of the words' frequencies: rare words count for more than their share
_SMALLEST_GAIN = 0.1  # of the base's final norm; a channel that it all but switches off isn't blown up in return


@dataclass(frozen=True, eq=False)
class WordMap:
    """A map of embeddings to values and its way back.

    Attributes:
        projection: P, `[d_v, d_h]`; the value of a word is P e - b.
        bias: b, `[d_v]`.
        directions: D, `[d_h, d_v]`: what to add to the hidden state so that the model says the word of a value.
    """

    projection: Tensor
    bias: Tensor
    directions: Tensor


def measure_word_map(embeddings: Tensor, counts: Tensor, gains: Tensor, value_dim: int, seed: int = 1) -> WordMap:
    """The word map that keeps words apart: centred and whitened by how often words are used, in random directions.

    With u_i the embeddings at a common scale (mean square one), shares p_i ~ (n_i + 1/2)^0.75, their mean m and
    covariance K, T = (K + damping I)^-1/2 and R `[d_h, d_v]` of orthonormal random columns: V = T R, P = V^T / rms and
    b = V^T m, D = diag(1/w) V. Embeddings share a large part, which tells no word from another, and a few directions
    carry most of the rest; whitened, a sum over many words disturbs each of them least.

    Args:
        embeddings: of the base model, `[words, d_h]`.
        counts: n, how often each word is used, `[words]`.
        gains: w, of the base's final norm, `[d_h]`; behind it, a tied head scores words by their embeddings.
        value_dim: d_v, at most d_h.
        seed: of the random directions.
    """
    scale = embeddings.float().square().mean().sqrt()
    words = embeddings.float() / scale
    shares = (counts.to(words) + 0.5) ** _FLATTENING
    shares = (shares / shares.sum()).unsqueeze(1)
    mean = (shares * words).sum(0)
    centred = words - mean
    values, vectors = torch.linalg.eigh((centred * shares).mT @ centred)
    whitening = (vectors * (values + _DAMPING * values.mean()).rsqrt()) @ vectors.mT
    width = embeddings.shape[1]
    random = torch.randn(width, width, generator=torch.Generator().manual_seed(seed)).to(words)
    projection = (whitening @ torch.linalg.qr(random)[0][:, :value_dim]).mT
    return WordMap(projection / scale, projection @ mean, word_directions(projection, gains))


def word_directions(projection: Tensor, gains: Tensor) -> Tensor:
    """D of a projection V^T `[d_v, d_h]` and gains w: diag(1/w) V, gains near zero taken as 0.1 of their sign."""
    gains = gains.to(projection)
    signs = torch.where(gains < 0, -1.0, 1.0)
    divisors = signs * gains.abs().clamp_min(_SMALLEST_GAIN)
    return (projection.mT / divisors.unsqueeze(1)).contiguous()
