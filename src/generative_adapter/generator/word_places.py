"""WordPlaces: which words a memory holds, and where: what units of an earlier block tell of a question's own words.

An answer stands near the words of its question. A lookup by one query, made where the answer begins, hardly knows them
any more; here the units of an earlier block look each of them up where it stands in the question, and add the code of
the places where the text has it. What attention then brings to where the answer begins says where to look
(docs/method.md, "Units that locate words"). Codes are random Fourier features of a token's number (Rahimi and Recht
2007): r_i.r_j is about exp(-(i - j)^2 / (2 l^2)), half of the features with l = 10 tokens, half with 40. Leaves out:
the units themselves (`token_units`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_NEAR, _FAR = 10.0, 40.0  # tokens that count as one place
_SAME = 0.8  # cosine from which two tokens count as one word
_SEED = 3


class WordPlaces(nn.Module):
    """Keys of words, and codes of places.

    Args:
        value_dim: d_v, width of values, which words are told by.
        word_dim: d_w, width of words' keys.
        place_dim: d_p, width of codes.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, value_dim: int, word_dim: int, place_dim: int) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(_SEED)
        self.word_proj = nn.Parameter(torch.empty(word_dim, value_dim))
        nn.init.orthogonal_(self.word_proj, generator=source)
        lengths = torch.full((place_dim,), _FAR)
        lengths[: place_dim // 2] = _NEAR
        self.register_buffer("frequencies", torch.randn(place_dim, generator=source) / lengths)
        self.register_buffer("phases", torch.rand(place_dim, generator=source) * 2 * math.pi)

    def words(self, values: Tensor) -> Tensor:
        """Key u of each token's word, of length one, `[tokens, d_w]`, given values `[tokens, d_v]`."""
        return functional.normalize(values @ self.word_proj.mT, dim=-1)

    def codes(self, numbers: Tensor) -> Tensor:
        """Codes r = sqrt(2 / d_p) cos(w i + b) of numbers i `[tokens]`, `[tokens, d_p]`, of length about one."""
        angles = numbers.to(self.frequencies).unsqueeze(-1) * self.frequencies + self.phases
        return math.sqrt(2 / len(self.phases)) * torch.cos(angles)

    @torch.no_grad()
    def shares(self, words: Tensor) -> Tensor:
        """1 / n of each token, n the number of tokens with its word, itself among them, `[tokens]`.

        A word that stands everywhere tells no place.
        """
        same = [(own @ words.mT > _SAME).sum(-1) for own in words.split(1024)]
        return 1 / torch.cat(same).clamp_min(1).to(words) if same else words.new_zeros(0)

    @torch.no_grad()
    def taken(self, shares: Tensor, remembered: Tensor, num_units: int) -> Tensor:
        """The numbers of the tokens that units take, ascending: all that are remembered, or those of the rarest words.

        Args:
            shares: of all tokens, `[tokens]`.
            remembered: which of them the memory keeps, bool.
            num_units: at most so many are taken.
        """
        rarest = shares.masked_fill(~remembered, -1.0).argsort(descending=True, stable=True)
        return rarest[: min(num_units, int(remembered.sum()))].sort().values

    def named_weights(self) -> dict[str, Tensor]:
        """The weights by name."""
        return {
            "memory.word_key_proj": self.word_proj,
            "memory.place_frequencies": self.frequencies,
            "memory.place_phases": self.phases,
        }
