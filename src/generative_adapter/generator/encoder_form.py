"""What targets and sizes a generator with an encoder can have."""

from __future__ import annotations

from collections.abc import Sequence

from generative_adapter.config import TargetShape
from generative_adapter.errors import ConfigError


def check_form(targets: Sequence[TargetShape], hidden_size: int, value_dim: int, surroundings_dim: int) -> None:
    """Raises a ConfigError when a target doesn't write to the hidden states, or values or surroundings are wider."""
    for target in targets:
        if target.out_features != hidden_size:
            raise ConfigError(
                f"generator.targets: {target.name} has {target.out_features} outputs, not the {hidden_size} of the "
                "hidden states; with an encoder, targets must write to these, as attention_output and "
                "feed_forward_down do"
            )
    if value_dim > hidden_size:
        raise ConfigError(
            f"generator.rank, the width of the values, must not exceed that of the hidden states ({hidden_size}) with "
            f"an encoder, got {value_dim}"
        )
    if surroundings_dim > hidden_size:
        raise ConfigError(
            f"generator.encoder.surroundings_dim must not exceed the width of the hidden states ({hidden_size}), got "
            f"{surroundings_dim}"
        )
