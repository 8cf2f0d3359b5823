"""States of the plain base model as training keeps them: bfloat16."""

from __future__ import annotations

import torch

from generative_adapter.base_model.capture import capture_block_inputs
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.generator.encoder_generator import EncoderGenerator


def kept(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as it is kept."""
    return tensor.to(torch.bfloat16).float()


def kept_states(base: BaseModel, generator: EncoderGenerator, chunk: list[int]) -> dict[int, torch.Tensor]:
    """Block inputs of a chunk, `[1, tokens, d_h]` each."""
    found = capture_block_inputs(base.model, generator.layers, torch.tensor([chunk]))
    return {layer: kept(hidden) for layer, hidden in found.items()}
