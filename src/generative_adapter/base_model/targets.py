"""Finds the Transformer blocks and the target linears of any decoder-only Hugging Face model.

Works from the module tree alone: the blocks are the longest `nn.ModuleList` of equal modules that is not inside another
one, a target is a linear inside each block, found by role or by name. Leaves out: any list of supported model classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from generative_adapter.config import TargetShape
from generative_adapter.errors import ConfigError, UnsupportedArchitectureError

# Role -> names it goes by, inside a block, in the order they are tried.
ROLES: dict[str, tuple[str, ...]] = {
    "attention_output": (
        "self_attn.o_proj",
        "attn.o_proj",
        "attention.o_proj",
        "self_attn.out_proj",
        "attn.out_proj",
        "attn.c_proj",
        "attention.dense",
        "self_attention.dense",
        "self_attn.dense",
        "attention.wo",
        "norm_attn_norm.attn.out_proj",
    ),
    "feed_forward_down": (
        "mlp.down_proj",
        "feed_forward.down_proj",
        "mlp.dense_4h_to_h",
        "mlp.c_proj",
        "mlp.fc2",
        "fc2",
        "mlp.fc_out",
        "feed_forward.w2",
        "mlp.output_linear",
    ),
    "feed_forward_gate": ("mlp.gate_proj", "feed_forward.gate_proj", "feed_forward.w1"),
    "feed_forward_up": ("mlp.up_proj", "feed_forward.up_proj", "feed_forward.w3"),
}
FEED_FORWARD = ("feed_forward_gate", "feed_forward_up", "feed_forward_down")


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the model's Transformer blocks.

    Raises:
        UnsupportedArchitectureError: when no list of equal modules that hold linears is found.
    """
    best: tuple[str, nn.ModuleList] | None = None
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0 or len({type(block) for block in module}) != 1:
            continue
        if not any(linear_shape(inner) for inner in module[0].modules()):
            continue
        if best is not None and path.startswith(best[0] + "."):  # a list inside a block, such as its experts
            continue
        if best is None or len(module) > len(best[1]):
            best = (path, module)
    if best is None:
        raise UnsupportedArchitectureError(
            f"no Transformer blocks found in {type(model).__name__}: looked for an nn.ModuleList of modules of one "
            "class that hold linear layers; pass a decoder-only causal language model"
        )
    return best


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) of a linear layer, or None for any other module; GPT-2's transposed Conv1D counts as linear."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    # Not by its weight: where the model is sharded, that may be elsewhere.
    nx, nf = getattr(module, "nx", None), getattr(module, "nf", None)
    if type(module).__name__ == "Conv1D" and isinstance(nx, int) and isinstance(nf, int):
        return nx, nf
    return None


def is_transposed(module: nn.Module) -> bool:
    """Whether the layer keeps its weight as `[d_in, d_out]` (GPT-2's Conv1D)."""
    return not isinstance(module, nn.Linear)


def find_targets(
    model: nn.Module, targets: Sequence[str], layers: Sequence[int] | None = None
) -> tuple[TargetShape, ...]:
    """The target linears, block by block, in the order of `targets`.

    Args:
        model: a causal language model.
        targets: roles (`attention_output`, `feed_forward_down`) or names inside a block (`self_attn.v_proj`, or just
            the end of one, `v_proj`).
        layers: block indices; None means all, negative ones count from the end.

    Raises:
        UnsupportedArchitectureError: when a block has no such linear; names what was looked for and what there is.
        ConfigError: when a block index is out of range.
    """
    path, blocks = find_blocks(model)
    found: list[TargetShape] = []
    for layer in _block_indices(layers, len(blocks)):
        linears = {name: shape for name, module in blocks[layer].named_modules() if (shape := linear_shape(module))}
        for target in targets:
            name = _find_linear(target, linears, type(model).__name__, f"{path}.{layer}")
            shape = TargetShape(f"{path}.{layer}.{name}", layer, *linears[name])
            if shape in found:
                raise ConfigError(f"two of the targets {tuple(targets)} name the same layer {shape.name}")
            found.append(shape)
    return tuple(found)


def all_linears(model: nn.Module, layers: Sequence[int]) -> tuple[TargetShape, ...]:
    """Every linear of some blocks, block by block, in the order of the modules.

    Raises:
        ConfigError: when a block index is out of range.
    """
    path, blocks = find_blocks(model)
    return tuple(
        TargetShape(f"{path}.{layer}.{name}", layer, *shape)
        for layer in _block_indices(layers, len(blocks))
        for name, module in blocks[layer].named_modules()
        if (shape := linear_shape(module))
    )


def _block_indices(layers: Sequence[int] | None, num_blocks: int) -> list[int]:
    if layers is None:
        return list(range(num_blocks))
    for layer in layers:
        if not -num_blocks <= layer < num_blocks:
            raise ConfigError(f"block {layer} is out of range: the base model has {num_blocks} blocks")
    return sorted({layer % num_blocks for layer in layers})


def _find_linear(target: str, linears: dict[str, tuple[int, int]], model_name: str, block: str) -> str:
    candidates = ROLES.get(target, (target,))
    for candidate in candidates:
        if candidate in linears:
            return candidate
    matches = [name for name in linears for candidate in candidates if name.endswith("." + candidate)]
    if len(matches) == 1:
        return matches[0]
    problem = f"more than one linear matches ({', '.join(matches)})" if matches else "no such linear"
    raise UnsupportedArchitectureError(
        f"target {target!r} in block {block} of {model_name}: {problem}; looked for {', '.join(candidates)}; "
        f"the block has {', '.join(linears) or 'no linear'}. Name one of these, or a role: {', '.join(ROLES)}"
    )
