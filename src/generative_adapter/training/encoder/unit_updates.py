"""What the units of several memories add to the linears of their blocks in one pass, one memory a row.

The same as `TokenUnits.factors`, without forming factors for every row. Leaves out: the pass (`passes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.generator.token_units import TokenUnits, tokens_of_blocks
from generative_adapter.training.encoder.encoding import GroupMemory

Update = Callable[[Tensor], Tensor]
_MULTIPLE = 64  # numbers of tokens are padded to one, so that few shapes occur


@dataclass(frozen=True)
class _RowTokens:
    """The tokens that a block's units hold, one memory a row.

    Attributes:
        keys: k^T (C + lambda I)^-1, `[rows, n, d_r]`, zeros behind the last token.
        values: `[rows, n, d_v]`.
        used: 1 for units with a token, `[rows, 1, n]`.
    """

    keys: Tensor
    values: Tensor
    used: Tensor


def unit_updates(
    generator: EncoderGenerator,
    memories: Sequence[GroupMemory],
    owners: Tensor,
    dtype: torch.dtype,
    on_query: Callable[[Tensor], None],
) -> dict[str, Update]:
    """For every linear of the units' blocks what is added to its output, given its input `[rows, tokens, d_in]`.

    Args:
        generator: has units.
        memories: of the groups.
        owners: number of each row's memory, `[rows]`.
        dtype: number format of the pass.
        on_query: is given each block's queries Q x, `[rows, tokens, d_r]`.
    """
    whitened = [memory.keys @ memory.inverse for memory in memories]
    taken = [
        tokens_of_blocks(each.remembered_keys.detach()[:, : generator.learned_dim], generator.unit_blocks)
        for each in memories
    ]
    updates: dict[str, Update] = {}
    for index, block in enumerate(generator.unit_blocks):
        numbers = [each[index] for each in taken]
        tokens = _row_tokens(block, whitened, memories, numbers, owners, dtype)
        updates |= _block_updates(block, tokens, generator.word_directions, dtype, on_query)
    return updates


def _row_tokens(
    block: TokenUnits,
    whitened: Sequence[Tensor],
    memories: Sequence[GroupMemory],
    numbers: Sequence[Tensor],
    owners: Tensor,
    dtype: torch.dtype,
) -> _RowTokens:
    longest = max(map(len, numbers))
    size = min(block.num_units, -(-longest // _MULTIPLE) * _MULTIPLE)

    def rows(each: Sequence[Tensor]) -> Tensor:
        padded = [F.pad(own[at], (0, 0, 0, size - len(at))) for own, at in zip(each, numbers, strict=True)]
        return torch.stack(padded).to(dtype)[owners]

    counts = torch.tensor([len(at) for at in numbers], device=owners.device)[owners]
    used = torch.arange(size, device=owners.device) < counts.unsqueeze(1)
    return _RowTokens(rows(whitened), rows([memory.values for memory in memories]), used.unsqueeze(1).to(dtype))


def _block_updates(
    block: TokenUnits,
    tokens: _RowTokens,
    word_directions: Tensor,
    dtype: torch.dtype,
    on_query: Callable[[Tensor], None],
) -> dict[str, Update]:
    size = tokens.keys.shape[1]
    order = block.order
    places = order.argsort()
    query = block.scaled_query_proj.to(dtype).mT
    gate_offset, up_offset = (each.to(dtype) for each in block.offsets)
    gate_strength, up_strength = block.gate_strength.to(dtype), block.up_strength.to(dtype)
    output = block.output_matrix(word_directions).to(dtype).mT
    found: list[Tensor] = []  # s of the tokens; the gate runs before the linear beside it

    def spread(inner: Tensor) -> Tensor:
        return F.pad(inner, (0, block.num_units - size))[..., places]

    def lookup(inputs: Tensor) -> Tensor:
        asked = inputs @ query
        on_query(asked)
        return torch.bmm(asked, tokens.keys.mT)

    def gate(inputs: Tensor) -> Tensor:
        found[:] = [lookup(inputs)]
        return spread(gate_strength * found[0] + (inputs @ gate_offset).unsqueeze(-1) * tokens.used)

    def up(inputs: Tensor) -> Tensor:
        return spread(up_strength * found.pop() + (inputs @ up_offset).unsqueeze(-1) * tokens.used)

    def down(inputs: Tensor) -> Tensor:
        return torch.bmm(inputs[..., order[:size]], tokens.values) @ output

    return {block.gate.name: gate, block.up.name: up, block.down.name: down}
