"""Surroundings: which rare words stand around a token, as a fixed part of its key (docs/method.md).

An answer stands near the words of its question. What a learned key says of a token is what it means there; which words
are near, in any order, is said by a code that no training changes, so a query only has to tell the question's words.
Leaves out: how often words are used (`training.encoder.starting`), and the rest of the key (`encoder_generator`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_REACH = 20.0  # tokens; a word that is so far away counts 1/e
_STRENGTH = 0.05  # length of the codes, so that entries of queries are about as large as those for learned keys
_FIT_RIDGE = 1e-3  # of the regression of rarity on embeddings, relative to their size
WEIGHTS = ("code_proj", "code_mean", "rarity_proj", "rarity_bias", "mean_surroundings")


class Surroundings(nn.Module):
    """n = c (B / |B| - m) of a token, where B sums r(e) R (e - a) / |e - a| of all tokens of its chunk, near ones most.

    A word with the embedding e counts r(e) = max(0, w.e + b), how rare it is, and exp(-(d / 20)^2) at a distance of d
    tokens; R are fixed random directions, a is the mean embedding, m the mean of all B / |B| and c = 0.05.

    Args:
        hidden_size: d_h.
        width: of the codes, N.
    """

    code_proj: Tensor
    code_mean: Tensor
    rarity_proj: Tensor
    rarity_bias: Tensor
    mean_surroundings: Tensor

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        directions = torch.randn(hidden_size, hidden_size, generator=torch.Generator().manual_seed(2))
        self.register_buffer("code_proj", torch.linalg.qr(directions)[0][:, :width].mT.contiguous())
        self.register_buffer("code_mean", torch.zeros(hidden_size))
        self.register_buffer("rarity_proj", torch.zeros(hidden_size))
        self.register_buffer("rarity_bias", torch.ones(1))
        self.register_buffer("mean_surroundings", torch.zeros(width))

    @torch.no_grad()
    def measure(self, embeddings: Tensor, counts: Tensor, typical_tokens: float) -> None:
        """Takes over what decides how rare a word is: -log of how often it occurs in a text of typical length.

        Zero for words that occur more than once. By ridge regression from embeddings, words weighted by the root of
        how often they are used, so that the embeddings are all that is needed later.

        Args:
            embeddings: of the base model, `[words, d_h]`.
            counts: how often each word is used, `[words]`.
            typical_tokens: of a text.
        """
        words, counts = embeddings.float(), counts.to(embeddings.device).float()
        self.code_mean.copy_(words.mean(0))
        shares = (counts + 0.5) / counts.sum()
        rarity = (-(shares * typical_tokens).log()).clamp_min(0)
        scale = words.square().mean().sqrt()
        inputs = torch.cat([words / scale, words.new_ones(len(words), 1)], dim=1)
        weighted = inputs * (counts + 0.5).sqrt().unsqueeze(1)
        gram = weighted.mT @ inputs
        ridge = _FIT_RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
        fitted = torch.linalg.solve(gram + ridge, weighted.mT @ rarity)
        self.rarity_proj.copy_(fitted[:-1] / scale)
        self.rarity_bias.copy_(fitted[-1:])

    @torch.no_grad()
    def set_mean(self, mean: Tensor) -> None:
        """Takes over the mean of codes that `forward` gave before, `[width]`, so that it gives what differs from it."""
        self.mean_surroundings.add_(mean / _STRENGTH)

    def words(self, embeddings: Tensor) -> Tensor:
        """The code of every word, as long as it is rare, `[..., d_h] -> [..., width]`."""
        rarity = (embeddings @ self.rarity_proj + self.rarity_bias).clamp_min(0)
        directions = functional.normalize(embeddings - self.code_mean, dim=-1)
        return (directions @ self.code_proj.mT) * rarity.unsqueeze(-1)

    def of_words(self, embeddings: Tensor) -> Tensor:
        """The code of what holds these words, in any order, `[words, d_h] -> [width]`."""
        return self._centred(self.words(embeddings.float()).sum(0))

    def forward(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """The codes of all tokens of some chunks, `[batch, tokens, width]`.

        Args:
            embeddings: `[batch, tokens, d_h]`.
            mask: True for real tokens, `[batch, tokens]`; others count nothing.
        """
        codes = self.words(embeddings.float())
        if mask is not None:
            codes = codes * mask.unsqueeze(-1)
        places = torch.arange(codes.shape[1], device=codes.device)
        near = torch.exp(-(((places.unsqueeze(0) - places.unsqueeze(1)) / _REACH) ** 2))
        return self._centred(near @ codes)

    def _centred(self, sums: Tensor) -> Tensor:
        return _STRENGTH * (functional.normalize(sums, dim=-1) - self.mean_surroundings)
