"""EncoderGenerator: chunk -> encoder -> keys and values -> one memory -> adapter (docs/method.md, "Beyond the paper").

The second form of generator. What differs from the paper's (`generator.py`): chunks are read independently, keys and
values come from an encoder with layers of its own, all targets read one memory, and a part of the adapter is constant.
Plain torch, no Hugging Face. Leaves out: splitting a text into chunks, and training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import record_function

from generative_adapter.config import EncoderConfig, TargetShape
from generative_adapter.errors import ConfigError
from generative_adapter.generator.encoder import ContextEncoder
from generative_adapter.generator.encoder_form import check_form
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors
from generative_adapter.generator.memory_reader import MemoryReader
from generative_adapter.generator.normalization import NORMALIZATION_LABEL, ridge_inverse
from generative_adapter.generator.protocol import ContextGenerator
from generative_adapter.generator.surroundings import WEIGHTS as SURROUNDINGS
from generative_adapter.generator.surroundings import Surroundings
from generative_adapter.generator.token_units import TokenUnits, longest, tokens_of_blocks
from generative_adapter.generator.trained_adapter import TrainedAdapter
from generative_adapter.generator.unit_rms import unit_rms
from generative_adapter.generator.word_map import WordMap, word_directions

MEMORY = "memory"  # name of the one state
_MEMORY_WEIGHTS = (
    "key_proj",
    "gate_proj",
    "gate_bias",
    "value_proj",
    "log_ridge",
    "word_proj",
    "word_bias",
    "word_directions",
)
_NEW_RIDGE = 2.0  # strength of a new generator's regularisation; keys have length one at most


class EncoderGenerator(ContextGenerator):
    """Hidden states -> keys and values -> one memory that all targets read.

    Keys k = (B1^T x / ||B1^T x||) sigmoid(g.x + c + 1) and values v = P e - b + A2 x of every token, with x its encoded
    vector, e its embedding and P and b of a fixed `WordMap` (of random directions, until `set_word_map`); S = sum v k^T
    and C = sum k k^T, kept as one state, S above C; target l's update is scale * A_l S (C + lambda I)^-1 B_l
    (`MemoryReader`), and beside it the constant part. With `unit_targets` the memory keeps values and keys of tokens
    (`remembered`) instead of the sums, and units of these blocks take one token each (`TokenUnits`). With
    `encoder.surroundings_dim` keys end with a fixed part, sigmoid(g.x + c + 1) n (`Surroundings`), that C knows
    nothing of.

    Args:
        targets: the linears that read the memory; none where only units do.
        hidden_size: d_h.
        state_dim: d_r, width of keys, their fixed part included.
        value_dim: d_v, width of values.
        scale: factor on the generated update.
        encoder: form of the encoder.
        final_norm: gains of the base model's final norm, `[d_h]`.
        reading_targets: linears of the adapter that contexts are read under.
        constant_targets: linears of the constant part.
        unit_targets: gate, up and down of every block whose units take tokens.

    Raises:
        ConfigError: when there is neither a target nor a unit, or they and the sizes don't fit one another.
    """

    independent_chunks = True
    word_proj: Tensor
    word_bias: Tensor
    word_directions: Tensor

    def __init__(
        self,
        targets: Sequence[TargetShape],
        hidden_size: int,
        *,
        state_dim: int,
        value_dim: int,
        scale: float = 1.0,
        encoder: EncoderConfig,
        final_norm: Tensor,
        reading_targets: Sequence[TargetShape] = (),
        constant_targets: Sequence[TargetShape] = (),
        unit_targets: Sequence[TargetShape] = (),
    ) -> None:
        super().__init__()
        if not (targets or unit_targets):
            raise ConfigError("an EncoderGenerator needs at least one target layer or block of units, got none")
        check_form(targets, hidden_size, value_dim, encoder.surroundings_dim)
        self.targets = tuple(targets)
        self.hidden_size, self.state_dim, self.value_dim = hidden_size, state_dim, value_dim
        self.learned_dim = state_dim - encoder.surroundings_dim
        self.token_share, self.least_tokens = encoder.token_share, encoder.least_tokens
        self.compute_dtype = torch.float32  # of the encoder's products; training may take a shorter one
        self._layers = (0, *encoder.states)
        self._index = {target.name: index for index, target in enumerate(self.targets)}
        width = encoder.width
        self.encoder = ContextEncoder(
            hidden_size * len(self._layers), width, encoder.layers, encoder.heads, encoder.largest_distance
        )
        self.key_proj = nn.Parameter(torch.randn(self.learned_dim, width) * width**-0.5)
        self.gate_proj = nn.Parameter(torch.zeros(width))
        self.gate_bias = nn.Parameter(torch.zeros(1))
        self.value_proj = nn.Parameter(torch.zeros(value_dim, width))
        self.log_ridge = nn.Parameter(torch.tensor([_NEW_RIDGE]).log())
        self.register_buffer("word_proj", nn.init.orthogonal_(torch.empty(value_dim, hidden_size)))
        self.register_buffer("word_bias", torch.zeros(value_dim))
        self.register_buffer("word_directions", word_directions(self.word_proj, final_norm.detach().float()))
        self.surroundings = Surroundings(hidden_size, encoder.surroundings_dim) if encoder.surroundings_dim else None
        self.readers = nn.ModuleList(
            MemoryReader(each.in_features, each.out_features, state_dim, value_dim, scale, len(self.targets))
            for each in self.targets
        )
        self.reading = TrainedAdapter(reading_targets, encoder.reading_rank) if encoder.reading_rank else None
        self.constant = TrainedAdapter(constant_targets, encoder.constant_rank) if encoder.constant_rank else None
        threes = zip(unit_targets[::3], unit_targets[1::3], unit_targets[2::3], strict=True)
        self.units = nn.ModuleList(TokenUnits(*each, state_dim, value_dim) for each in threes)

    def __getitem__(self, name: str) -> MemoryReader:
        module = self.readers[self._index[name]]
        assert isinstance(module, MemoryReader)
        return module

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the Transformer blocks whose inputs the generator reads, ascending; 0 for the embeddings."""
        return self._layers

    @property
    def unit_blocks(self) -> list[TokenUnits]:
        """The blocks whose units take tokens, in the order of the model."""
        return [each for each in self.units if isinstance(each, TokenUnits)]

    @property
    def keeps_tokens(self) -> bool:
        """Whether the memory is a row for every token."""
        return len(self.units) > 0

    @property
    def state_shapes(self) -> dict[str, tuple[int, int]]:
        """One state: S above C, or rows of values and keys side by side."""
        if self.keeps_tokens:
            return {MEMORY: (0, self.value_dim + self.state_dim)}
        return {MEMORY: (self.value_dim + self.state_dim, self.state_dim)}

    @property
    def reading_adapter(self) -> LowRankAdapter | None:
        """The adapter that contexts are read under; differentiable."""
        return None if self.reading is None else self.reading.adapter()

    @property
    def ridge_strength(self) -> Tensor:
        """The strength lambda of the regularisation, `[1]`."""
        return self.log_ridge.exp()

    def set_word_map(self, words: WordMap) -> None:
        """Takes over a word map that was measured; before training, since everything learned builds on it."""
        self.word_proj.copy_(words.projection)
        self.word_bias.copy_(words.bias)
        self.word_directions.copy_(words.directions)

    def write(self, hidden: Mapping[int, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
        """S and C of each chunk, or the rows of its tokens; see `ContextGenerator.write`."""
        keys, values = self.keys_and_values(hidden, mask)
        if not self.keeps_tokens:
            return {MEMORY: self.pair(keys, values)}
        return {MEMORY: torch.cat([values, keys * self.remembered(keys, mask).unsqueeze(-1)], dim=-1)}

    def taken_in(self, increments: Mapping[str, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
        """See `ContextGenerator.taken_in`; a key of zeros is that of a token that isn't remembered."""
        taken = super().taken_in(increments, mask)
        if self.token_share == 1:
            return taken
        return {name: rows[rows[:, self.value_dim :].any(-1)] for name, rows in taken.items()}

    def num_rows(self, num_tokens: int) -> int:
        """See `ContextGenerator.num_rows`."""
        return min(num_tokens, max(self.least_tokens, math.ceil(self.token_share * num_tokens)))

    @torch.no_grad()
    def remembered(self, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Which tokens a memory keeps: in each chunk the `num_rows` with the longest keys, `[batch, tokens]`, bool.

        Args:
            keys: of all tokens, `[batch, tokens, d_r]`.
            mask: True for real tokens, `[batch, tokens]`.
        """
        real = torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device) if mask is None else mask.bool()
        wanted = [self.num_rows(size) for size in real.sum(-1).tolist()]
        learned = keys[..., : self.learned_dim]
        return real if self.token_share == 1 else longest(learned, real, torch.tensor(wanted, device=keys.device))

    def pair(self, keys: Tensor, values: Tensor) -> Tensor:
        """sum_i v_i k_i^T above sum_i k_i k_i^T, `[batch, d_v + d_r, d_r]`."""
        return torch.cat([values, keys], dim=-1).mT @ keys

    def keys_and_values(self, hidden: Mapping[int, Tensor], mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Key and value of every token, `[batch, tokens, d_r]` and `[batch, tokens, d_v]`, float32.

        Keys of padding are zero.

        Args:
            hidden: block index -> block input `[batch, tokens, d_h]`, for every index in `layers`.
            mask: True for real tokens, `[batch, tokens]`.
        """
        states = [unit_rms(hidden[layer].to(self.compute_dtype)) for layer in self._layers]
        encoded = self.encoder(torch.cat(states, dim=-1), mask)
        short = encoded.to(self.compute_dtype)
        keys = functional.normalize(self._product(short, self.key_proj).float(), dim=-1)
        gates = torch.sigmoid(encoded @ self.gate_proj + self.gate_bias + 1.0)
        if mask is not None:
            gates = gates * mask
        words = hidden[0].float() @ self.word_proj.mT - self.word_bias
        if self.surroundings is not None:
            keys = torch.cat([keys, self.surroundings(hidden[0], mask)], dim=-1)
        return keys * gates.unsqueeze(-1), words + self._product(short, self.value_proj).float()

    def normalize(self, states: Tensor) -> Tensor:
        """norm(S) = S (C + lambda I)^-1 of states `[..., d_v + d_r, d_r]`: `[..., d_v, d_r]`."""
        return self.normalized(states)[0]

    def normalized(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """norm(S) and (C + lambda I)^-1, `[..., d_r, d_r]`; the latter leaves the fixed part of keys as it is."""
        learned, fixed = self.learned_dim, self.state_dim - self.learned_dim
        with record_function(NORMALIZATION_LABEL):
            part = states[..., : self.value_dim + learned, :learned]
            _, inverse = ridge_inverse(part, self.ridge_strength)
            if fixed:
                own = torch.arange(self.state_dim, device=states.device) >= learned
                inverse = functional.pad(inverse, (0, fixed, 0, fixed)) + own.to(states).diag()
            return states[..., : self.value_dim, :] @ inverse, inverse

    def units_taken(self, num_rows: int) -> int:
        """See `ContextGenerator.units_taken`."""
        blocks = self.unit_blocks
        return sum(map(len, tokens_of_blocks(torch.ones(num_rows, 1), blocks))) if blocks else 0

    @torch.no_grad()
    def adapter(self, states: Mapping[str, Tensor]) -> LowRankAdapter:
        """Generated and constant factors side by side; zeros for the empty memory.

        Where a target has both, their ranks add up; see `ContextGenerator.adapter`.
        """
        state, words = states[MEMORY].float(), self.word_directions
        rows, widths = state, [self.value_dim, self.state_dim]
        if self.keeps_tokens:
            values, keys = rows.split(widths, dim=-1)
            state = self.pair(keys, values)
        normalized, inverse = self.normalized(state)
        factors = {target.name: self[target.name].factors(normalized, words) for target in self.targets}
        if self.keeps_tokens:
            values, keys = rows.split(widths, dim=-1)
            taken = tokens_of_blocks(keys[:, : self.learned_dim], self.unit_blocks)
            for block, numbers in zip(self.unit_blocks, taken, strict=True):
                for name, own in block.factors(keys[numbers] @ inverse, values[numbers], words).items():
                    factors[name] = _side_by_side(factors[name], own) if name in factors else own
        if self.constant is not None:
            was_told = state.any()
            for name, constant in self.constant.adapter().items():
                own = LowRankFactors(constant.down.detach(), constant.up * was_told)
                factors[name] = _side_by_side(factors[name], own) if name in factors else own
        return LowRankAdapter(factors)

    def named_weights(self) -> dict[str, Tensor]:
        """`encoder.*`, `memory.*`, and `<target>.*` of what belongs to a target."""
        named: dict[str, Tensor] = {f"encoder.{name}": tensor for name, tensor in self.encoder.named_parameters()}
        for name in _MEMORY_WEIGHTS:
            named[f"memory.{name}"] = getattr(self, name)
        if self.surroundings is not None:
            named |= {f"memory.{name}": getattr(self.surroundings, name) for name in SURROUNDINGS}
        for target in self.targets:
            named |= {
                f"{target.name}.{name}": tensor for name, tensor in self[target.name].state_dict(keep_vars=True).items()
            }
        for block in self.unit_blocks:
            named |= block.named_weights()
        for kind, part in (("reading", self.reading), ("constant", self.constant)):
            named |= {} if part is None else part.named_weights(kind)
        return named

    def _product(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return inputs @ weight.to(self.compute_dtype).mT


def _side_by_side(first: LowRankFactors, second: LowRankFactors) -> LowRankFactors:
    """Factors of the sum of two updates of one target."""
    return LowRankFactors(torch.cat([first.down, second.down]), torch.cat([first.up, second.up], dim=1))
