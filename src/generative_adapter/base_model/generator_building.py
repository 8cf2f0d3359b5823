"""New generators: for a base model, or of the shapes of weights alone.

Leaves out: the weights themselves, which training or a file brings (`checkpoint`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from generative_adapter.base_model.final_norm import final_norm_gains
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.targets import FEED_FORWARD, all_linears, find_blocks, find_targets
from generative_adapter.config import GeneratorConfig, TargetShape
from generative_adapter.errors import ConfigError
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.generator.protocol import ContextGenerator


def build_generator(config: GeneratorConfig, base: BaseModel) -> ContextGenerator:
    """A new, untrained generator for a base model, in float32 on its device.

    Raises:
        UnsupportedArchitectureError: when a target isn't found in the base model.
        ConfigError: when the form doesn't fit the base model.
    """
    hidden_size = base.model.config.get_text_config().hidden_size
    return generator_for(config, base.model, hidden_size).to(base.device)


def generator_for(config: GeneratorConfig, model: nn.Module, hidden_size: int) -> ContextGenerator:
    """A new, untrained generator for a model, which may be on the meta device; see `build_generator`."""
    targets = find_targets(model, config.targets, config.layers)
    encoder = config.encoder
    if encoder is None:
        return AdapterGenerator.from_config(config, targets, hidden_size)
    num_blocks = len(find_blocks(model)[1])
    highest = max(encoder.states[-1], encoder.constant_from_layer if encoder.constant_rank else 0)
    if highest >= num_blocks:
        raise ConfigError(
            f"generator.encoder: block {highest} is out of range: the base model has {num_blocks} blocks; see states "
            "and constant_from_layer"
        )
    reading = range(encoder.reading_from_layer, encoder.states[-1]) if encoder.reading_rank else ()
    constant = range(encoder.constant_from_layer, num_blocks)
    return _with_encoder(
        config,
        targets,
        hidden_size,
        final_norm=final_norm_gains(model, hidden_size),
        reading_targets=all_linears(model, reading),
        constant_targets=find_targets(model, encoder.constant_targets, constant) if encoder.constant_rank else (),
        unit_targets=find_targets(model, FEED_FORWARD, encoder.unit_layers) if encoder.unit_layers else (),
    )


def generator_of_weights(config: GeneratorConfig, tensors: Mapping[str, Tensor]) -> ContextGenerator:
    """A new generator without a base model, for targets of the shapes that its weights on disk show.

    Args:
        config: the form it has.
        tensors: its weights by their names on disk; they are not copied into it.

    Raises:
        KeyError: when a weight isn't there from whose shape something follows; names it.
    """

    def shapes(down: str, up: str) -> list[TargetShape]:
        found = []
        for name, tensor in tensors.items():
            target, _, part = name.rpartition(".")
            if part == down:
                found.append(
                    TargetShape(target, _block_of(target), tensor.shape[1], tensors[f"{target}.{up}"].shape[0])
                )
        return sorted(found, key=lambda shape: (shape.layer, shape.name))

    targets = shapes("query_proj", "output_proj")
    if config.encoder is None:
        return AdapterGenerator.from_config(config, targets, tensors[f"{targets[0].name}.value_proj"].shape[1])
    hidden_size = tensors["memory.word_proj"].shape[1]
    return _with_encoder(
        config,
        targets,
        hidden_size,
        final_norm=torch.ones(hidden_size),  # only new word directions need it; these are loaded
        reading_targets=shapes("reading_down", "reading_up"),
        constant_targets=shapes("constant_down", "constant_up"),
        unit_targets=_unit_targets(tensors),
    )


def _with_encoder(
    config: GeneratorConfig,
    targets: Sequence[TargetShape],
    hidden_size: int,
    *,
    final_norm: Tensor,
    **other_targets: Sequence[TargetShape],
) -> EncoderGenerator:
    """A generator with an encoder; see there."""
    assert config.encoder is not None
    return EncoderGenerator(
        targets,
        hidden_size,
        state_dim=config.state_dim,
        value_dim=config.rank,
        scale=config.scale,
        encoder=config.encoder,
        final_norm=final_norm,
        **other_targets,
    )


def _unit_targets(tensors: Mapping[str, Tensor]) -> list[TargetShape]:
    """Gate, up and down of every block whose units take tokens."""
    found = []
    for kind, turned in (("unit_query", 0), ("unit_strength", 0), ("unit_activity", 1)):
        names = [name.rpartition(".")[0] for name in tensors if name.endswith(f".{kind}")]
        found.append(sorted((_block_of(name), name) for name in names if turned or f"{name}.unit_offset" in tensors))
    gates, strengths, downs = found
    targets = []
    for (block, gate), (_, down) in zip(gates, downs, strict=True):
        up = next(name for at, name in strengths if at == block and name != gate)
        width, units = tensors[f"{gate}.unit_query"].shape[1], len(tensors[f"{down}.unit_activity"])
        targets += [TargetShape(name, block, width, units) for name in (gate, up)]
        targets.append(TargetShape(down, block, units, width))
    return targets


def _block_of(target: str) -> int:
    return next(int(piece) for piece in target.split(".") if piece.isdigit())
