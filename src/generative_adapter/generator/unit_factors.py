"""The factors of units that take tokens, and of linears that tell places of words, made from the rows of a memory.

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
    """The updates of the linears of these blocks, and of those that tell places, by name.

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
    if generator.places is not None:
        place_map = generator.places.map(values, remembered)
        factors |= {name: reader.factors(place_map) for name, reader in generator.reads_of_places.items()}
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
    return torch.cat([whitened, generator.places.codes_of(remembered)], dim=-1)
