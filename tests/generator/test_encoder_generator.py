"""The generator with an encoder against closed forms: what is written, solved, read, and left alone when empty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generative_adapter.config import EncoderConfig, TargetShape
from generative_adapter.errors import ConfigError
from generative_adapter.generator.encoder_generator import MEMORY, EncoderGenerator
from generative_adapter.generator.generator import AdapterGenerator, paper_generator
from generative_adapter.generator.word_map import measure_word_map
from tiny_models import randomize

HIDDEN, STATE, VALUE, INNER, SCALE = 19, 11, 7, 23, 0.5
TARGETS = (TargetShape("a.down", 1, INNER, HIDDEN), TargetShape("b.out", 3, 13, HIDDEN))
CONSTANT = (TargetShape("a.down", 1, INNER, HIDDEN), TargetShape("c.gate", 2, HIDDEN, 17))
FORM = EncoderConfig(states=(2, 5), width=12, heads=2, largest_distance=3, constant_rank=2)
GAINS = torch.linspace(-0.1, 2.0, HIDDEN)


def make(encoder: EncoderConfig = FORM, **settings) -> EncoderGenerator:
    torch.manual_seed(0)
    values = {"state_dim": STATE, "value_dim": VALUE, "scale": SCALE, "final_norm": GAINS} | settings
    return EncoderGenerator(TARGETS, HIDDEN, encoder=encoder, constant_targets=CONSTANT, **values)


@pytest.fixture
def generator() -> EncoderGenerator:
    return randomize(make()).eval().requires_grad_(False)


def hidden_states(batch: int = 1, tokens: int = 9, seed: int = 1) -> dict[int, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(batch, tokens, HIDDEN, generator=random) * (layer + 1) for layer in (0, 2, 5)}


def unit(vector: Tensor) -> Tensor:
    return vector / (vector.square().mean() + 1e-6).sqrt()


def slow_sums(generator: EncoderGenerator, hidden: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """S and C of the first row, token by token in float64, from the encoder's output."""
    states = torch.stack([torch.cat([unit(hidden[n][0, t]) for n in (0, 2, 5)]) for t in range(hidden[0].shape[1])])
    encoded = generator.encoder(states.unsqueeze(0))[0].double()
    values_sum, keys_sum = torch.zeros(VALUE, STATE).double(), torch.zeros(STATE, STATE).double()
    weight = {name.removeprefix("memory."): tensor.double() for name, tensor in generator.named_weights().items()}
    for token, embedding in zip(encoded, hidden[0][0].double(), strict=True):
        key = weight["key_proj"] @ token
        gate = 1 / (1 + torch.exp(-(token @ weight["gate_proj"] + weight["gate_bias"] + 1)))
        key = key / key.norm() * gate
        value = weight["word_proj"] @ embedding - weight["word_bias"] + weight["value_proj"] @ token
        values_sum += torch.outer(value, key)
        keys_sum += torch.outer(key, key)
    return values_sum, keys_sum


def slow_update(generator: EncoderGenerator, hidden: dict[int, Tensor], index: int, inputs: Tensor) -> Tensor:
    """A_l S (C + lambda I)^-1 B_l x and the constant part, in float64."""
    values_sum, keys_sum = slow_sums(generator, hidden)
    target = TARGETS[index].name
    weight = {name: tensor.double() for name, tensor in generator.named_weights().items()}
    query = weight[f"{target}.query_proj"] @ (weight[f"{target}.input_scales"] * inputs.double())
    ridge = torch.exp(weight["memory.log_ridge"]) * torch.eye(STATE)
    value = values_sum @ torch.linalg.solve(keys_sum + ridge, query)
    words = weight["memory.word_directions"] @ value
    update = SCALE * (weight[f"{target}.output_proj"] @ value + weight[f"{target}.word_strength"] * words)
    if f"{target}.constant_up" in weight:
        update = update + weight[f"{target}.constant_up"] @ weight[f"{target}.constant_down"] @ inputs.double()
    return update


# Writing


def test_write_is_the_slow_loop(generator):
    hidden = hidden_states()
    state = generator.write(hidden)[MEMORY][0]
    assert state.shape == generator.state_shapes[MEMORY] == (VALUE + STATE, STATE) and state.dtype == torch.float32
    values_sum, keys_sum = slow_sums(generator, hidden)
    torch.testing.assert_close(state[:VALUE].double(), values_sum, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state[VALUE:].double(), keys_sum, rtol=1e-4, atol=1e-5)


def test_a_chunk_adds_the_same_in_every_batch(generator):
    lengths = (9, 2, 5)
    hidden = hidden_states(batch=3)
    mask = torch.arange(9) < torch.tensor(lengths).unsqueeze(1)
    together = generator.write({layer: h.where(mask.unsqueeze(-1), 77.0) for layer, h in hidden.items()}, mask)[MEMORY]
    for row, length in enumerate(lengths):
        alone = generator.write({layer: h[row : row + 1, :length] for layer, h in hidden.items()})[MEMORY][0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


def test_reads_the_embeddings_and_its_states(generator):
    assert generator.layers == (0, 2, 5) and generator.independent_chunks
    hidden = hidden_states()
    whole = generator.write(hidden)[MEMORY]
    for layer in generator.layers:
        changed = {**hidden, layer: hidden[layer].flip(1)}
        assert (generator.write(changed)[MEMORY] - whole).norm() > 0.05 * whole.norm()
        scaled = {**hidden, layer: hidden[layer] * 7}
        keys = generator.write(scaled)[MEMORY][:, VALUE:]
        torch.testing.assert_close(keys, whole[:, VALUE:], rtol=1e-3, atol=1e-4)  # every state is brought to unit RMS


def test_bfloat16_states_are_encoded_in_float32(generator):
    hidden = {layer: h.bfloat16() for layer, h in hidden_states().items()}
    exact = generator.write({layer: h.float() for layer, h in hidden.items()})[MEMORY]
    assert torch.equal(generator.write(hidden)[MEMORY], exact)
    generator.compute_dtype = torch.bfloat16
    short = generator.write(hidden)[MEMORY]
    assert short.dtype == torch.float32 and 1e-4 < (short - exact).norm() / exact.norm() < 0.05


# Reading


def test_the_adapter_is_the_read(generator):
    hidden = hidden_states()
    adapter = generator.adapter({MEMORY: generator.write(hidden)[MEMORY][0]})
    assert {name: factors.rank for name, factors in adapter.items()} == {"a.down": 9, "b.out": 7, "c.gate": 2}
    for index, target in enumerate(TARGETS):
        inputs = torch.randn(target.in_features)
        got = (adapter[target.name].delta() @ inputs).double()
        torch.testing.assert_close(got, slow_update(generator, hidden, index, inputs), rtol=1e-3, atol=1e-4)
    gate = adapter["c.gate"]
    torch.testing.assert_close(gate.up, generator.named_weights()["c.gate.constant_up"])
    torch.testing.assert_close(gate.down, generator.named_weights()["c.gate.constant_down"])


def test_factors_do_what_read_does_in_every_row(generator):
    states = torch.cat([generator.write(hidden_states(seed=seed))[MEMORY] for seed in (1, 2, 3)])
    reader, normalized = generator["b.out"], generator.normalize(states)
    assert normalized.shape == (3, VALUE, STATE)
    inputs = torch.randn(3, 4, 13)
    rows = reader.read(inputs, normalized, generator.word_directions)
    for row in range(3):
        factors = reader.factors(normalized[row], generator.word_directions)
        expected = inputs[row] @ factors.delta().mT
        torch.testing.assert_close(rows[row], expected, rtol=1e-4, atol=1e-5)


def test_a_key_returns_its_own_value():
    """With a weak regularisation and few tokens, norm(S) maps each token's key to that token's value."""
    generator = randomize(make()).requires_grad_(False)
    generator.log_ridge.fill_(-12)
    keys, values = generator.keys_and_values(hidden_states(tokens=5))
    normalized = generator.normalize(generator.pair(keys, values))[0]
    torch.testing.assert_close(keys[0] @ normalized.mT, values[0], rtol=0, atol=0.02 * float(values.norm()))


def test_new_word_directions_undo_the_final_norm():
    generator = make(value_dim=HIDDEN, state_dim=HIDDEN)  # as many values as channels: V V^T is the identity
    embedding = torch.randn(HIDDEN)
    written = generator.word_directions @ generator.word_proj @ embedding
    torch.testing.assert_close(written * GAINS.where(GAINS.abs() >= 0.1, 0.1), embedding, rtol=1e-3, atol=1e-5)


def test_a_measured_word_map_is_taken_over(generator):
    words = measure_word_map(torch.randn(40, HIDDEN), torch.arange(40), GAINS, VALUE)
    generator.set_word_map(words)
    named = generator.named_weights()
    assert torch.equal(named["memory.word_proj"], words.projection)
    assert torch.equal(named["memory.word_bias"], words.bias)
    assert torch.equal(named["memory.word_directions"], words.directions)


def test_the_empty_memory_changes_nothing(generator):
    told = generator.adapter({MEMORY: generator.write(hidden_states())[MEMORY][0]})
    empty = generator.adapter({MEMORY: torch.zeros(VALUE + STATE, STATE, dtype=torch.float64)})
    assert all(factors.delta().any() for factors in told.values())
    assert not any(factors.delta().any() for factors in empty.values())
    assert {n: f.rank for n, f in empty.items()} == {n: f.rank for n, f in told.items()}


def test_a_new_generator_changes_nothing():
    generator = make()
    with torch.no_grad():
        adapter = generator.adapter({MEMORY: generator.write(hidden_states())[MEMORY][0]})
    assert not any(factors.delta().any() for factors in adapter.values())


def test_memories_add(generator):
    parts = [generator.write(hidden_states(seed=seed))[MEMORY][0] for seed in (1, 2)]
    both = {
        layer: torch.cat([a, b])
        for (layer, a), b in zip(hidden_states(seed=1).items(), hidden_states(seed=2).values(), strict=True)
    }
    torch.testing.assert_close(generator.write(both)[MEMORY].sum(0), parts[0] + parts[1], rtol=1e-4, atol=1e-5)


# Gradients, weights, errors


def test_every_weight_learns():
    """But the buffers: the word map and the input scales are measured."""
    generator = randomize(
        make(
            EncoderConfig(states=(2, 5), width=12, heads=2, reading_rank=2, reading_from_layer=1),
            reading_targets=TARGETS[1:],
        )
    )
    hidden, words = hidden_states(), generator.word_directions
    normalized = generator.normalize(generator.write(hidden)[MEMORY])
    loss = sum(
        generator[t.name].read(torch.randn(1, 3, t.in_features), normalized, words).square().sum() for t in TARGETS
    )
    for part in (generator.constant, generator.reading):
        assert part is not None
        loss = loss + sum(factors.delta().square().sum() for factors in part.adapter().values())
    assert isinstance(loss, Tensor)
    loss.backward()
    assert not words.requires_grad
    missing = [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_named_weights_are_all_there_is():
    generator = make(
        EncoderConfig(states=(2, 5), width=12, heads=2, reading_rank=2, reading_from_layer=1),
        reading_targets=TARGETS[1:],
    )
    named = generator.named_weights()
    own = [*generator.parameters(), *generator.buffers()]
    assert {id(tensor) for tensor in named.values()} == {id(tensor) for tensor in own} and len(named) == len(own)
    assert generator.num_parameters == sum(tensor.numel() for tensor in own)
    reading = generator.reading_adapter
    assert reading is not None and set(reading) == {"b.out"} and reading.rank == 2
    assert make().reading_adapter is None


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="at least one target"):
        EncoderGenerator((), HIDDEN, state_dim=STATE, value_dim=VALUE, encoder=FORM, final_norm=GAINS)
    with pytest.raises(ConfigError, match=r"c\.gate has 17 outputs, not the 19"):
        EncoderGenerator(CONSTANT, HIDDEN, state_dim=STATE, value_dim=VALUE, encoder=FORM, final_norm=GAINS)
    with pytest.raises(ConfigError, match=r"hidden states \(19\) with an encoder, got 20"):
        make(value_dim=20, state_dim=20)


def test_what_needs_the_papers_form_says_so(generator):
    paper = AdapterGenerator(TARGETS, HIDDEN, state_dim=3)
    assert paper_generator(paper, "training") is paper
    with pytest.raises(ConfigError, match=r"^training of generators with an encoder"):
        paper_generator(generator, "training")
