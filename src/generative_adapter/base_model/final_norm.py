"""The gains of a base model's final norm, the one between its last block and the language-model head.

Found by what the norm does, since families differ in how they keep its weights (Gemma's are one less than the gains).
Leaves out: the norms inside the blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from generative_adapter.base_model.targets import find_blocks


@torch.no_grad()
def final_norm_gains(model: nn.Module, hidden_size: int) -> Tensor:
    """What the final norm multiplies each channel by, `[d_h]`, float32; ones where the model has no such norm.

    An RMSNorm or LayerNorm leaves x of alternating signs as it is but for the gains w and a bias b, so that
    w = x (norm(x) - norm(-x)) / 2; for a LayerNorm of an odd width to 1/d_h.

    Args:
        model: a causal language model.
        hidden_size: d_h.
    """
    path, _ = find_blocks(model)
    holder, _, blocks_name = path.rpartition(".")
    norm = None
    is_later = False
    for name, module in model.get_submodule(holder).named_children():
        if is_later and _is_norm(module, hidden_size):
            norm = module
        is_later = is_later or name == blocks_name
    if norm is None:
        return torch.ones(hidden_size)
    weight = next(norm.parameters())
    signs = torch.ones(hidden_size, device=weight.device, dtype=weight.dtype)
    signs[1::2] = -1
    return (signs * (norm(signs) - norm(-signs)) / 2).float()


def _is_norm(module: nn.Module, hidden_size: int) -> bool:
    """Whether a module has vectors of the hidden width and nothing else."""
    shapes = {tuple(parameter.shape) for parameter in module.parameters()}
    return shapes == {(hidden_size,)}
