"""WordPlaces: where a memory's words stand, and linears that tell it of a question's own words.

An answer stands near the words of its question. A lookup by one query, made where the answer begins, hardly knows them
any more. Here linears of earlier blocks, where each word of the question still stands on its own, read a map from words
to the places where the text has them; what attention then brings to where the answer begins says where to look
(docs/method.md, "Places of words"). The code of a place is made of random Fourier features of a token's number (Rahimi
and Recht 2007): r_i.r_j is about exp(-(i - j)^2 / (2 l^2)), for half of the features with l = 10 tokens, for the others
with 40. Leaves out: lookups that codes take part in (`unit_factors`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from generative_adapter.generator.low_rank import LowRankFactors
from generative_adapter.generator.normalization import ridge

_NEAR, _FAR = 10.0, 40.0  # tokens that count as one place
_SAME = 0.8  # cosine from which two tokens count as one word
_NEW_RIDGE = 0.5  # words have length one, and each counts once
_SEED = 3


class WordPlaces(nn.Module):
    """Codes of places, and the map to them.

    Args:
        place_dim: d_p, width of codes.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, place_dim: int) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(_SEED)
        lengths = torch.full((place_dim,), _FAR)
        lengths[: place_dim // 2] = _NEAR
        self.register_buffer("frequencies", torch.randn(place_dim, generator=source) / lengths)
        self.register_buffer("phases", torch.rand(place_dim, generator=source) * 2 * math.pi)
        self.log_ridge = nn.Parameter(torch.tensor([_NEW_RIDGE]).log())

    def codes(self, numbers: Tensor) -> Tensor:
        """Codes r = sqrt(2 / d_p) cos(w i + b) of numbers i `[tokens]`, `[tokens, d_p]`, of length about one."""
        angles = numbers.to(self.frequencies).unsqueeze(-1) * self.frequencies + self.phases
        return math.sqrt(2 / len(self.phases)) * torch.cos(angles)

    def codes_of(self, remembered: Tensor) -> Tensor:
        """The codes of a text's tokens, `[tokens, d_p]`, numbered as far as `remembered` `[tokens]` says so."""
        return self.codes(remembered.cumsum(0) - 1)

    def map(self, values: Tensor, remembered: Tensor) -> Tensor:
        """M = sum_i r_i u_i^T / n_i (sum_i u_i u_i^T / n_i + lambda I)^-1, from words to places, `[d_p, d_v]`.

        u_i is the value of token i at length one, n_i the number of tokens with the same word. Zeros without a token.

        Args:
            values: of a text's tokens in their order, `[tokens, d_v]`.
            remembered: which of them the memory keeps, bool; the others have neither a word nor a place.
        """
        words = functional.normalize(values[remembered], dim=-1)
        weighted = words * _shares(words).unsqueeze(-1)
        codes = self.codes(torch.arange(len(words), device=words.device))
        return ridge(torch.cat([codes.mT @ weighted, words.mT @ weighted]), self.log_ridge.exp())

    def named_weights(self) -> dict[str, Tensor]:
        """The weights by name."""
        return {
            "memory.place_frequencies": self.frequencies,
            "memory.place_phases": self.phases,
            "memory.place_log_ridge": self.log_ridge,
        }


class PlaceReader(nn.Module):
    """One linear that tells places: its update is O M Q, with M of the memory (`WordPlaces.map`).

    Args:
        in_features: d_in.
        out_features: d_out.
        value_dim: d_v.
        place_dim: d_p.
    """

    input_scales: Tensor

    def __init__(self, in_features: int, out_features: int, value_dim: int, place_dim: int) -> None:
        super().__init__()
        self.query_proj = nn.Parameter(torch.randn(value_dim, in_features) * in_features**-0.5)
        self.output_proj = nn.Parameter(torch.zeros(out_features, place_dim))
        self.register_buffer("input_scales", torch.ones(in_features))

    @property
    def scaled_query_proj(self) -> Tensor:
        """Q, `[d_v, d_in]`."""
        return self.query_proj * self.input_scales

    def factors(self, place_map: Tensor) -> LowRankFactors:
        """M Q and O, of rank d_p, for a memory's M `[d_p, d_v]`."""
        return LowRankFactors(down=place_map @ self.scaled_query_proj, up=self.output_proj)

    def named_weights(self, target: str) -> dict[str, Tensor]:
        """The weights by name, each under the linear that it belongs to."""
        return {
            f"{target}.place_query": self.query_proj,
            f"{target}.place_input_scales": self.input_scales,
            f"{target}.place_output": self.output_proj,
        }


@torch.no_grad()
def _shares(words: Tensor) -> Tensor:
    """1 / n of each token, n the number of tokens with its word, itself among them, `[tokens]`."""
    same = [(own @ words.mT > _SAME).sum(-1) for own in words.split(1024)]
    return 1 / torch.cat(same).clamp_min(1).to(words)
