"""Keys and values of the groups of a pass, and the memory of each: the generator's part of a training step.

Leaves out: reading from the memories (`lookups`, `passes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.training.encoder.frozen_states import FrozenStates
from generative_adapter.training.encoder.groups import Group, group_places, read_chunks


@dataclass(frozen=True)
class GroupMemory:
    """What one group was written as.

    Attributes:
        keys: of its tokens, `[tokens, d_r]`.
        values: `[tokens, d_v]`.
        remembered: which of them the memory keeps, `[tokens]`, bool.
        inverse: (C + lambda I)^-1 of these, `[d_r, d_r]`.
        normalized: S (C + lambda I)^-1 of these, `[d_v, d_r]`.
        firsts: number of each passage's first token among them.
    """

    keys: Tensor
    values: Tensor
    remembered: Tensor
    inverse: Tensor
    normalized: Tensor
    firsts: dict[int, int]

    @property
    def remembered_keys(self) -> Tensor:
        """The keys, zeros where they aren't remembered, `[tokens, d_r]`."""
        return self.keys * self.remembered.unsqueeze(-1)


def group_memories(
    generator: EncoderGenerator, states: FrozenStates, embeddings: Tensor, groups: Sequence[Group]
) -> list[GroupMemory]:
    """The memory of each group; differentiable."""
    places = group_places(states, groups)
    width = generator.hidden_size
    layers = generator.layers
    found_keys, found_values, found_remembered, found_places = [], [], [], []
    device = generator.key_proj.device
    for chunks in read_chunks(states, embeddings, groups):
        mask, own = chunks.mask.to(device), chunks.states.to(device)
        hidden = {layer: own[..., at * width : (at + 1) * width] for at, layer in enumerate(layers)}
        keys, values = generator.keys_and_values(hidden, mask)
        found_keys.append(keys[mask])
        found_values.append(values[mask])
        found_remembered.append(generator.remembered(keys, mask)[mask])
        found_places.append(chunks.places.to(device))
    order = torch.cat(found_places).argsort()
    keys, values = torch.cat(found_keys)[order], torch.cat(found_values)[order]
    remembered = torch.cat(found_remembered)[order]
    kept = keys * remembered.unsqueeze(-1)
    spans = [slice(start, start + size) for start, _, size in places]
    stacked = torch.stack([generator.pair(kept[span].unsqueeze(0), values[span].unsqueeze(0))[0] for span in spans])
    normalized, inverses = generator.normalized(stacked)
    return [
        GroupMemory(
            keys[span],
            values[span],
            remembered[span],
            inverses[at],
            normalized[at],
            {number: first - start for number, first in firsts.items()},
        )
        for at, (span, (start, firsts, _)) in enumerate(zip(spans, places, strict=True))
    ]
