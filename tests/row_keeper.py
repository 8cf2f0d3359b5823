"""RowKeeper: a small generator whose memories keep a row for every token, for the tests of such memories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.targets import find_targets
from generative_adapter.checkpoint import GeneratorCheckpoint
from generative_adapter.config import PromptConfig, TargetShape
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors
from generative_adapter.generator.protocol import ContextGenerator
from tiny_models import tiny_encoder_config

KEYS, VALUES = 7, 5
WIDTH = KEYS + VALUES
CHUNK_TOKENS = 60


class RowKeeper(ContextGenerator):
    """Rows [value, key] of every token; target l's update is A_l (sum_i f(i) v_i k_i^T) B_l with f(i) = 1 / (2 + i).

    f makes the order of the rows count. Rows of padding aren't zero.
    """

    independent_chunks = True

    def __init__(self, targets: Sequence[TargetShape], hidden_size: int, seed: int = 5) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)

        def weight(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=random) * columns**-0.5, requires_grad=False)

        self.targets, self.hidden_size = tuple(targets), hidden_size
        self.row_proj = weight(WIDTH, 2 * hidden_size)
        self.down = nn.ParameterList([weight(KEYS, target.in_features) for target in targets])
        self.up = nn.ParameterList([weight(target.out_features, VALUES) for target in targets])

    @property
    def layers(self) -> tuple[int, ...]:
        return (0, 1)

    @property
    def keeps_tokens(self) -> bool:
        return True

    @property
    def state_shapes(self) -> dict[str, tuple[int, int]]:
        return {"memory": (0, WIDTH)}

    def write(self, hidden: Mapping[int, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
        joined = torch.cat([hidden[layer].float() for layer in self.layers], dim=-1)
        return {"memory": joined @ self.row_proj.mT + 1.0}

    def adapter(self, states: Mapping[str, Tensor]) -> LowRankAdapter:
        values, keys = states["memory"].split([VALUES, KEYS], dim=-1)
        counted = values / (2 + torch.arange(len(values))).unsqueeze(1)
        summed = counted.mT @ keys
        return LowRankAdapter(
            {
                target.name: LowRankFactors(summed @ down, up)
                for target, down, up in zip(self.targets, self.down, self.up, strict=True)
            }
        )

    def named_weights(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())


class StreamingRowKeeper(RowKeeper):
    """The same, but chunks are read one after another, each under the adapter of those before it."""

    independent_chunks = False


def row_keeper(base: BaseModel, form: type[RowKeeper] = RowKeeper, *, chunk_tokens: int = CHUNK_TOKENS, seed: int = 5):
    """A tiny base model with such a generator."""
    config = tiny_encoder_config(chunk_tokens=chunk_tokens)
    targets = find_targets(base.model, config.targets, config.layers)
    generator = form(targets, base.model.config.hidden_size, seed)
    return GenerativeAdapter(base, GeneratorCheckpoint(generator, config, PromptConfig(), base.name, base.fingerprint))
