"""AdapterGenerator, the paper's: hidden states -> memory -> adapter (its sections 2.2 and 2.4).

Plain torch on plain tensors: which module a target is, and where its hidden states come from, is the business of
`base_model`. Leaves out: what one target does (`target_generator`), splitting a text into chunks (`contextualizer`) and
everything about training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from generative_adapter.config import GeneratorConfig, TargetShape
from generative_adapter.errors import ConfigError
from generative_adapter.generator.low_rank import LowRankAdapter
from generative_adapter.generator.normalization import NORMALIZATION_LABEL, ridge
from generative_adapter.generator.protocol import ContextGenerator
from generative_adapter.generator.target_generator import TargetGenerator

GENERATOR_LABEL = "generator"  # names this work in a profile (`torch.profiler.record_function`)


class AdapterGenerator(ContextGenerator):
    """The trained network G that turns the hidden states of a context into an adapter.

    Args:
        targets: the adapted linear layers.
        hidden_size: d_h, width of the base model's hidden states.
        state_dim: d_r.
        rank: r; None: the same as `state_dim`. Only `svd` can have a smaller one.
        scale: factor on the generated update.
        normalization: `svd`, `frobenius`, `newton_schulz` or `ridge`.
        hidden_norm: learned RMSNorm on the hidden states.
        value_shift: how many tokens later than its key a value is taken.
        value_layer: block whose input the values are taken from; None: the target's own.
        key_windows: averages over neighbouring tokens that a key holds; see `window_weights`.
        window_gates: whether tokens can end these averages, such as the end of a sentence.
        write_gate: whether tokens can be written weakly or not at all.
        subspace_iterations: how many subspace iterations find the directions of `svd`; 0: an exact SVD.

    Raises:
        ConfigError: when there is no target, or the settings don't fit one another.
    """

    def __init__(
        self,
        targets: Sequence[TargetShape],
        hidden_size: int,
        *,
        state_dim: int = 128,
        rank: int | None = None,
        scale: float = 1 / 16,
        normalization: str = "newton_schulz",
        hidden_norm: bool = True,
        value_shift: int = 0,
        value_layer: int | None = None,
        key_windows: Sequence[int] = (),
        window_gates: bool = False,
        write_gate: bool = False,
        subspace_iterations: int = 0,
    ) -> None:
        super().__init__()
        if not targets:
            raise ConfigError("an AdapterGenerator needs at least one target layer, got none")
        lowest = min(target.layer for target in targets)
        if value_layer is not None and value_layer > lowest:
            raise ConfigError(
                f"generator.value_layer must not lie above the lowest adapted block ({lowest}), got {value_layer}: its "
                "values have to be known before that block runs"
            )
        rank = state_dim if rank is None else rank
        GeneratorConfig(  # refuses what does not fit
            state_dim=state_dim,
            rank=rank,
            scale=scale,
            normalization=normalization,
            value_shift=value_shift,
            value_layer=value_layer,
            key_windows=tuple(key_windows),
            window_gates=window_gates,
            write_gate=write_gate,
            subspace_iterations=subspace_iterations,
        )
        self.targets = tuple(targets)
        self.hidden_size = hidden_size
        self.state_dim = state_dim
        self.value_layer = value_layer
        self._index = {target.name: index for index, target in enumerate(self.targets)}
        self.generators = nn.ModuleList(
            TargetGenerator(
                hidden_size,
                target.in_features,
                target.out_features,
                state_dim,
                rank=rank,
                scale=scale,
                normalization=normalization,
                hidden_norm=hidden_norm,
                value_shift=value_shift,
                key_windows=key_windows,
                window_gates=window_gates,
                write_gate=write_gate,
                subspace_iterations=subspace_iterations,
            )
            for target in self.targets
        )

    @classmethod
    def from_config(cls, config: GeneratorConfig, targets: Sequence[TargetShape], hidden_size: int) -> AdapterGenerator:
        """A new, untrained generator of the form `config` describes."""
        return cls(
            targets,
            hidden_size,
            state_dim=config.state_dim,
            rank=config.rank,
            scale=config.scale,
            normalization=config.normalization,
            hidden_norm=config.hidden_norm,
            value_shift=config.value_shift,
            value_layer=config.value_layer,
            key_windows=config.key_windows,
            window_gates=config.window_gates,
            write_gate=config.write_gate,
            subspace_iterations=config.subspace_iterations,
        )

    def __getitem__(self, name: str) -> TargetGenerator:
        module = self.generators[self._index[name]]
        assert isinstance(module, TargetGenerator)
        return module

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the Transformer blocks whose inputs the generator reads, ascending."""
        values = set() if self.value_layer is None else {self.value_layer}
        return tuple(sorted(values | {target.layer for target in self.targets}))

    @property
    def state_shapes(self) -> dict[str, tuple[int, int]]:
        """A state a target, under the target's name."""
        return {target.name: self[target.name].state_shape for target in self.targets}

    def write(self, hidden: Mapping[int, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
        """What one chunk adds to the memory of every target, eq. (3), arXiv:2411.05877.

        Args:
            hidden: block index -> block input `[batch, tokens, d_h]`, for every index in `layers`.
            mask: True for real tokens, `[batch, tokens]`.

        Returns:
            Target name -> `[batch, *state_shape]`, float32.
        """
        values = self.value_hidden(hidden)
        return {target.name: self[target.name].write(hidden[target.layer], mask, values) for target in self.targets}

    def value_hidden(self, hidden: Mapping[int, Tensor]) -> Tensor | None:
        """Of all block inputs those that values are taken from; None: every target's own."""
        return None if self.value_layer is None else hidden[self.value_layer]

    def normalize(self, states: Tensor) -> Tensor:
        """norm(S), eqs. (6)-(8), of the states of all targets at once, `[targets, ..., d_r, d_r]`."""
        generators = [self[target.name] for target in self.targets]
        strengths = [generator.log_ridge.exp() for generator in generators if generator.log_ridge is not None]
        if strengths:
            with record_function(NORMALIZATION_LABEL):
                return ridge(states, torch.stack(strengths).view(-1, *[1] * (states.ndim - 1)))
        return generators[0].normalize(states)

    @torch.no_grad()
    def adapter(self, states: Mapping[str, Tensor]) -> LowRankAdapter:
        """The adapter of a memory, eq. (9), arXiv:2411.05877.

        Args:
            states: target name -> S, of `state_shape`, for every target.
        """
        return LowRankAdapter({target.name: self[target.name].factors(states[target.name]) for target in self.targets})

    def named_weights(self) -> dict[str, Tensor]:
        """`<target>.<projection>`."""
        return {
            f"{target.name}.{name}": parameter
            for target in self.targets
            for name, parameter in self[target.name].named_parameters()
        }


def paper_generator(generator: ContextGenerator, what: str) -> AdapterGenerator:
    """The generator itself where it has the paper's form, which `what` needs.

    Raises:
        ConfigError: when it has an encoder.
    """
    if isinstance(generator, AdapterGenerator):
        return generator
    raise ConfigError(
        f"{what} of generators with an encoder is not possible in this release; take a generator without one "
        "(generator.encoder: null)"
    )
