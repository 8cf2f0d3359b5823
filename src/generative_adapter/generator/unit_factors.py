"""The factors of all blocks whose units take tokens, made from the rows of a memory.

Leaves out: one block's (`token_units`), and what else an adapter holds (`encoder_generator`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generative_adapter.generator.low_rank import LowRankFactors
from generative_adapter.generator.token_units import tokens_of_blocks

if TYPE_CHECKING:
    from generative_adapter.generator.encoder_generator import EncoderGenerator


def unit_factors(
    generator: EncoderGenerator, keys: Tensor, values: Tensor, inverse: Tensor
) -> dict[str, LowRankFactors]:
    """The updates of the blocks' linears, by name.

    Args:
        generator: has units.
        keys: of a memory's tokens, `[rows, d_r]`.
        values: `[rows, d_v]`.
        inverse: (C + lambda I)^-1, `[d_r, d_r]`.
    """
    factors: dict[str, LowRankFactors] = {}
    remembered = keys.any(-1)
    asked = lookup_keys(generator, keys, inverse, remembered)
    for block, numbers in zip(generator.unit_blocks, tokens_of_blocks(keys, generator.unit_blocks), strict=True):
        factors |= block.factors(asked[numbers], values[numbers], generator.word_directions)
    for block in generator.locating_blocks:
        words, codes, numbers = located_words(generator, values, remembered, block.num_units)
        factors |= block.factors(words[numbers], codes[numbers], None)
    return factors


def lookup_keys(generator: EncoderGenerator, keys: Tensor, inverse: Tensor, remembered: Tensor) -> Tensor:
    """What queries of units are compared with: k^T (C + lambda I)^-1 and, with `places`, the code of its place.

    Args:
        generator: has units.
        keys: of a text's tokens in their order, `[tokens, d_r]`.
        inverse: (C + lambda I)^-1, `[d_r, d_r]`.
        remembered: which tokens the memory keeps, `[tokens]`, bool; these alone are numbered.

    Returns:
        `[tokens, d_r]` or `[tokens, d_r + d_p]`.
    """
    whitened = keys @ inverse
    if generator.places is None:
        return whitened
    return torch.cat([whitened, generator.places.codes(remembered.cumsum(0) - 1)], dim=-1)


def located_words(
    generator: EncoderGenerator, values: Tensor, remembered: Tensor, num_units: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What units that locate words hold of a text: keys of words, codes of places, and which tokens they take.

    Args:
        generator: has such units.
        values: of the text's tokens in their order, `[tokens, d_v]`.
        remembered: which of them the memory keeps, `[tokens]`, bool.
        num_units: of a block.

    Returns:
        u `[tokens, d_w]`, r / n `[tokens, d_p]` with n the number of tokens with the same word, and the numbers of the
        tokens that units take, ascending.
    """
    places = generator.places
    assert places is not None
    words = places.words(values) * remembered.unsqueeze(-1)
    shares = places.shares(words)
    codes = places.codes(remembered.cumsum(0) - 1) * shares.unsqueeze(-1)
    return words, codes, places.taken(shares, remembered, num_units)
