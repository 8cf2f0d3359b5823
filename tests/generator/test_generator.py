"""The generator against slow loops, closed forms and finite differences (eqs. 1-4, 6, 8, 9)."""

from collections.abc import Sequence

import numpy
import pytest
import torch
from torch import Tensor

from generative_adapter.config import GeneratorConfig, TargetShape
from generative_adapter.errors import ConfigError
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.generator.target_generator import TargetGenerator, window_weights

HIDDEN, IN, OUT, STATE, RANK, TOKENS = 13, 17, 19, 11, 7, 23
SCALE = 0.3
METHODS = [("svd", RANK), ("svd", STATE), ("frobenius", STATE), ("newton_schulz", STATE), ("ridge", STATE)]


def make_target(
    normalization: str = "newton_schulz",
    rank: int = STATE,
    *,
    hidden_norm: bool = True,
    value_shift: int = 0,
    key_windows: Sequence[int] = (),
    gates: bool = False,
) -> TargetGenerator:
    """A target whose every weight is random, also those that start at zero or one."""
    torch.manual_seed(11)
    target = TargetGenerator(
        HIDDEN,
        IN,
        OUT,
        STATE,
        rank=rank,
        scale=SCALE,
        normalization=normalization,
        hidden_norm=hidden_norm,
        value_shift=value_shift,
        key_windows=key_windows,
        window_gates=gates and len(key_windows) > 0,
        write_gate=gates,
    )
    with torch.no_grad():
        target.output_proj.normal_()
        for gate in (target.gate_proj, target.gate_bias, target.write_proj, target.write_bias):
            if gate is not None:
                gate.normal_()
        for projection in target.window_projs:
            projection.normal_()
        if target.norm_weight is not None:
            target.norm_weight.uniform_(0.5, 1.5)
    return target


def random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_write(target: TargetGenerator, hidden: Tensor, value_hidden: Tensor | None = None) -> Tensor:
    """Eq. (3) one token at a time, in NumPy's float64: the sum of (A2 h_j) k_i^T, j = i + shift, k_i = B1^T h_i and,
    with windows, the averages over the tokens up to i or after it, with all gates; values from `value_hidden`."""
    value_proj, key_proj = (p.detach().double().numpy() for p in (target.value_proj, target.key_proj))
    rows = [row for row in hidden.double().numpy()]
    if target.norm_weight is not None:
        weight = target.norm_weight.detach().double().numpy()
        rows = [weight * row / numpy.sqrt(sum(x * x for x in row) / len(row) + 1e-6) for row in rows]
    value_rows = rows
    if value_hidden is not None:
        value_rows = [row for row in value_hidden.double().numpy()]
        if target.norm_weight is not None:
            value_rows = [row / numpy.sqrt(sum(x * x for x in row) / len(row) + 1e-6) for row in value_rows]
    state = numpy.zeros((STATE, STATE))

    def gate(projection: Tensor | None, bias: Tensor | None, number: int, row: int) -> float:
        if projection is None or bias is None:
            return 1.0
        logit = projection[number].detach().double().numpy() @ rows[row] + bias[number].item()
        return 1 / (1 + numpy.exp(-logit))

    for i in range(len(rows)):
        j = min(i + target.value_shift, len(rows) - 1)
        key = key_proj @ rows[i]
        for number, (window, projection) in enumerate(zip(target.key_windows, target.window_projs, strict=True)):
            share, step = 1 / abs(window), 1 if window < 0 else -1
            k = i if window > 0 else i + 1
            if window < 0 and k < len(rows):
                share *= gate(target.gate_proj, target.gate_bias, 2 * number, k)
            while 0 <= k < len(rows):
                counts = gate(target.gate_proj, target.gate_bias, 2 * number + 1, k)
                key = key + share * counts * (projection.detach().double().numpy() @ rows[k])
                share *= 1 - 1 / abs(window)
                passed = k if window > 0 else k + 1  # going back one leaves token k behind, going on one takes k + 1 in
                if passed < len(rows):
                    share *= gate(target.gate_proj, target.gate_bias, 2 * number, passed)
                k += step
        key = key * gate(target.write_proj, target.write_bias, 0, j)
        state += numpy.outer(value_proj @ value_rows[j], key)
    return torch.from_numpy(state)


def make_generator(normalization: str = "svd", rank: int = RANK) -> AdapterGenerator:
    """Three targets of different shapes; blocks 1 and 4 are read, and block 4 feeds two targets."""
    torch.manual_seed(5)
    targets = [TargetShape("b.1.o", 1, 17, 19), TargetShape("b.4.o", 4, 17, 19), TargetShape("b.4.down", 4, 29, 13)]
    generator = AdapterGenerator(targets, HIDDEN, state_dim=STATE, rank=rank, scale=SCALE, normalization=normalization)
    with torch.no_grad():
        for target in targets:
            generator[target.name].output_proj.normal_()
    return generator


# -------------------------------------------------------------------------------------------------------------- write


@pytest.mark.parametrize("key_windows", [(), (1,), (-1,), (4, 16, -8)])
@pytest.mark.parametrize("value_shift", [0, 1, 2])
@pytest.mark.parametrize("hidden_norm", [True, False])
@pytest.mark.parametrize("gates", [True, False])
def test_write_is_a_sum_of_outer_products(
    gates: bool, hidden_norm: bool, value_shift: int, key_windows: tuple[int, ...]
) -> None:
    target = make_target(hidden_norm=hidden_norm, value_shift=value_shift, key_windows=key_windows, gates=gates)
    hidden = random(2, TOKENS, HIDDEN) * 5
    expected = torch.stack([slow_write(target, row) for row in hidden])
    torch.testing.assert_close(target.write(hidden).double(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("hidden_norm", [True, False])
@pytest.mark.parametrize("gates", [True, False])
def test_values_may_come_from_another_block(gates: bool, hidden_norm: bool) -> None:
    windows = (4, -8)
    target = make_target(hidden_norm=hidden_norm, value_shift=1, key_windows=windows, gates=gates)
    hidden, below = random(2, TOKENS, HIDDEN) * 5, random(2, TOKENS, HIDDEN, seed=4) * 3
    expected = torch.stack([slow_write(target, row, other) for row, other in zip(hidden, below, strict=True)])
    torch.testing.assert_close(target.write(hidden, None, below).double(), expected, atol=1e-3, rtol=1e-4)


def test_every_target_takes_its_values_from_the_value_layer() -> None:
    targets = [TargetShape("b.1.o", 1, 17, 19), TargetShape("b.4.o", 4, 17, 19)]
    generator = AdapterGenerator(targets, HIDDEN, state_dim=STATE, scale=SCALE, value_layer=0)
    assert generator.layers == (0, 1, 4)
    hidden = {layer: random(1, TOKENS, HIDDEN, seed=layer) for layer in generator.layers}
    for target in targets:
        expected = slow_write(generator[target.name], hidden[target.layer][0], hidden[0][0])
        torch.testing.assert_close(generator.write(hidden)[target.name][0].double(), expected, atol=1e-3, rtol=1e-4)


def test_values_from_above_an_adapted_block_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"value_layer must not lie above the lowest adapted block \(1\), got 2"):
        AdapterGenerator([TargetShape("b.1.o", 1, 17, 19)], HIDDEN, state_dim=STATE, value_layer=2)


@pytest.mark.parametrize("key_windows", [(), (4, 16, -8)])
@pytest.mark.parametrize("value_shift", [0, 1, 2, 5])
@pytest.mark.parametrize("gates", [True, False])
def test_write_sees_real_tokens_only(gates: bool, value_shift: int, key_windows: tuple[int, ...]) -> None:
    """Rows of every length, also no token and fewer tokens than the shift, padded with large numbers."""
    target = make_target(value_shift=value_shift, key_windows=key_windows, gates=gates)
    lengths = [TOKENS, 1, 2, 0, 3, 7]
    hidden = random(len(lengths), TOKENS, HIDDEN)
    mask = torch.zeros(len(lengths), TOKENS, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, :length] = True
        hidden[row, length:] = 1e4
    expected = torch.stack([slow_write(target, row[:length]) for row, length in zip(hidden, lengths, strict=True)])
    torch.testing.assert_close(target.write(hidden, mask).double(), expected, atol=1e-4, rtol=1e-4)


def test_write_of_half_precision_hidden_states_is_summed_in_float32() -> None:
    target = make_target()
    hidden = random(1, TOKENS, HIDDEN).bfloat16()
    state = target.write(hidden)
    assert state.dtype == torch.float32
    exact = slow_write(target, hidden[0].float())
    assert (state[0].double() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("hidden_norm", [True, False])
def test_chunks_add_up_to_the_concatenation(hidden_norm: bool) -> None:
    """Eq. (2): H^T H of the whole is the sum over chunks of any length."""
    target = make_target(hidden_norm=hidden_norm)
    hidden = random(2, TOKENS, HIDDEN)
    total = torch.zeros(2, STATE, STATE)
    for chunk in hidden.split([5, 1, 10, 7], dim=1):
        total = total + target.write(chunk)
    torch.testing.assert_close(total, target.write(hidden), atol=1e-4, rtol=1e-4)


def test_a_shifted_value_never_leaves_its_chunk() -> None:
    """With a shift, chunking drops just the pairs that would reach over a boundary."""
    target = make_target(hidden_norm=False, value_shift=1)
    hidden = random(1, TOKENS, HIDDEN)
    first, second = hidden.split([9, 14], dim=1)
    key = (target.key_proj @ first[0, -1]).detach()
    over, own = (target.value_proj @ second[0, 0]).detach(), (target.value_proj @ first[0, -1]).detach()
    difference = target.write(hidden) - target.write(first) - target.write(second)
    torch.testing.assert_close(difference[0], torch.outer(over - own, key), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [3, -3])
def test_weights_of_a_window_come_near_one_and_fade(window: int) -> None:
    weights = window_weights(window, 200)
    middle = weights[100]
    near = middle[:101].flip(0) if window > 0 else middle[101:]
    assert middle.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (middle[101:] if window > 0 else middle[:101]).abs().max() == 0
    torch.testing.assert_close(near[1:10] / near[:9], torch.full((9,), 2 / 3))


def test_a_closed_gate_ends_an_average_and_drops_a_token() -> None:
    """Gates of tokens 3 and 6 closed: averages reach neither over nor into what lies behind them."""
    open_, closed = 0.0, -100.0
    log_gates = torch.full((1, 9), open_)
    log_gates[0, [3, 6]] = closed
    back, ahead = window_weights(4, 9, log_gates=log_gates)[0], window_weights(-4, 9, log_gates=log_gates)[0]
    torch.testing.assert_close(window_weights(4, 9, log_gates=torch.zeros(1, 9))[0], window_weights(4, 9))
    assert (back[4] > 1e-6).nonzero().flatten().tolist() == [3, 4]
    assert (back[5] > 1e-6).nonzero().flatten().tolist() == [3, 4, 5]
    assert (ahead[4] > 1e-6).nonzero().flatten().tolist() == [5]
    assert (ahead[6] > 1e-6).nonzero().flatten().tolist() == [7, 8]


def test_new_windows_start_without_effect() -> None:
    torch.manual_seed(4)
    plain = TargetGenerator(HIDDEN, IN, OUT, STATE, rank=STATE, scale=SCALE, normalization="frobenius")
    torch.manual_seed(4)
    settings = {"rank": STATE, "scale": SCALE, "normalization": "frobenius", "key_windows": (4, -8)}
    grown = TargetGenerator(HIDDEN, IN, OUT, STATE, **settings)  # type: ignore[arg-type]
    hidden = random(2, TOKENS, HIDDEN)
    assert torch.equal(plain.write(hidden), grown.write(hidden))
    grown.write(hidden).square().sum().backward()
    for projection in grown.window_projs:
        assert projection.grad is not None and projection.grad.abs().max() > 0


# ------------------------------------------------------------------------------------------------------ read, factors


def test_the_whole_of_equation_one() -> None:
    """Read of the raw state is A1 A2 H^T H B1 B2 x, the paper's bilinear generator without normalisation."""
    target = make_target(hidden_norm=False)
    hidden, inputs = random(TOKENS, HIDDEN), random(5, IN, seed=4)
    a1, a2 = target.output_proj.detach().double(), target.value_proj.detach().double()
    b1, b2 = target.key_proj.detach().double().mT, target.query_proj.detach().double()
    delta = (a1 @ a2) @ (hidden.double().mT @ hidden.double()) @ (b1 @ b2)
    assert delta.shape == (OUT, IN)
    expected = SCALE * inputs.double() @ delta.mT
    read = target.read(inputs.unsqueeze(0), target.write(hidden.unsqueeze(0)))[0]
    torch.testing.assert_close(read.double(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("normalization", "rank"), METHODS)
def test_factors_do_what_read_does(normalization: str, rank: int) -> None:
    """Eq. (9) against eq. (6), another state in every row."""
    target = make_target(normalization, rank)
    states = target.write(random(3, TOKENS, HIDDEN)).detach()
    inputs = random(3, 5, IN, seed=4)
    read = target.read(inputs, target.normalize(states))
    for row in range(3):
        factors = target.factors(states[row])
        assert factors.down.shape == (rank, IN) and factors.up.shape == (OUT, rank)
        expected = torch.stack([factors.up @ (factors.down @ x) for x in inputs[row]])
        torch.testing.assert_close(read[row], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rank", [RANK, STATE])
def test_factors_are_the_closed_form_of_numpy(rank: int) -> None:
    target = make_target("svd", rank)
    state = target.write(random(1, TOKENS, HIDDEN))[0].detach()
    left, _, right = numpy.linalg.svd(state.double().numpy())
    polar = torch.from_numpy(left[:, :rank] @ right[:rank])
    expected = SCALE * target.output_proj.double() @ polar @ target.query_proj.double()
    torch.testing.assert_close(target.factors(state).delta().double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("normalization", "rank"), METHODS)
def test_one_token_gives_one_direction(normalization: str, rank: int) -> None:
    target = make_target(normalization, rank, hidden_norm=False)
    hidden = random(1, 1, HIDDEN)
    value, key = target.value_proj @ hidden[0, 0], target.key_proj @ hidden[0, 0]
    unit = torch.outer(value / value.norm(), key / key.norm())
    if normalization == "ridge":  # the value for its key, less the regularisation's share
        unit = torch.outer(value, key) / (key.square().sum() + target.ridge_strength)
    expected = SCALE * target.output_proj @ unit @ target.query_proj
    delta = target.factors(target.write(hidden)[0]).delta()
    tolerance = {"newton_schulz": 2e-3, "ridge": 1e-4}.get(normalization, 1e-5)
    assert (delta - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("num_tokens", [2, 5])
def test_a_short_context_gives_an_update_of_its_own_rank(num_tokens: int) -> None:
    target = make_target("svd", RANK)
    delta = target.factors(target.write(random(1, num_tokens, HIDDEN))[0]).delta()
    values = torch.linalg.svdvals(delta.detach().double())
    assert (values > 1e-4 * values[0]).sum() == num_tokens


@pytest.mark.parametrize(
    ("normalization", "rank", "gates"),
    [*((*method, False) for method in METHODS), ("frobenius", STATE, True), ("ridge", STATE, True)],
)
def test_gradients_of_the_whole_chain(normalization: str, rank: int, gates: bool) -> None:
    """write -> normalize -> read: the slope along a random change of each weight, by central differences."""
    target = make_target(normalization, rank, value_shift=1, key_windows=(4, -3) if gates else (), gates=gates)
    hidden, inputs, weights = random(2, TOKENS, HIDDEN), random(2, 5, IN, seed=4), random(2, 5, OUT, seed=6).double()
    mask = torch.arange(TOKENS) < torch.tensor([[TOKENS], [9]])

    def loss() -> Tensor:
        return (target.read(inputs, target.normalize(target.write(hidden, mask))).double() * weights).sum()

    loss().backward()
    for seed, (name, parameter) in enumerate(target.named_parameters()):
        assert parameter.grad is not None
        gradient = parameter.grad
        # Half along the gradient, so that the slope is well above float32's rounding.
        noise = random(*parameter.shape, seed=20 + seed)
        direction = gradient / gradient.norm() + 0.5 * noise / noise.norm()
        step = 2e-3 * parameter.detach().norm().clamp_min(1.0)
        with torch.no_grad():
            original = parameter.clone()
            ends = []
            for sign in (1, -1):
                parameter.copy_(original + sign * step * direction)
                ends.append(loss())
            parameter.copy_(original)
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=2e-2), name


# ------------------------------------------------------------------------------------------------------ all the targets


def test_an_untrained_generator_changes_nothing_and_learns() -> None:
    generator = AdapterGenerator([TargetShape("t", 0, IN, OUT)], HIDDEN, state_dim=STATE, scale=SCALE)
    states = generator.write({0: random(1, TOKENS, HIDDEN)})
    adapter = generator.adapter({"t": states["t"][0]})
    assert not adapter["t"].up.any() and adapter["t"].down.any()
    generator["t"].read(random(1, 2, IN), generator.normalize(states["t"])).sum().backward()
    gradient = generator["t"].output_proj.grad
    assert gradient is not None and gradient.norm() > 0


@pytest.mark.parametrize(("normalization", "rank"), METHODS)
def test_the_adapter_of_no_context_is_zero(normalization: str, rank: int) -> None:
    generator = make_generator(normalization, rank)
    adapter = generator.adapter({t.name: torch.zeros(generator[t.name].state_shape) for t in generator.targets})
    for factors in adapter.values():
        assert torch.isfinite(factors.up).all() and torch.isfinite(factors.down).all()
        assert not factors.delta().any()


def test_projections_start_kaiming_normal() -> None:
    torch.manual_seed(0)
    target = TargetGenerator(307, 211, 19, 293, rank=293, scale=1.0, normalization="svd")
    for projection, width in ((target.value_proj, 307), (target.key_proj, 307), (target.query_proj, 211)):
        assert projection.std().item() == pytest.approx(width**-0.5, rel=0.02)
        assert abs(projection.mean().item()) < 0.02 * width**-0.5
    assert not target.output_proj.any()
    assert target.norm_weight is not None and torch.equal(target.norm_weight, torch.ones(307))


def test_every_target_reads_the_input_of_its_own_block() -> None:
    generator = make_generator()
    assert generator.layers == (1, 4)
    hidden = {1: random(2, TOKENS, HIDDEN), 4: random(2, TOKENS, HIDDEN, seed=8)}
    mask = torch.arange(TOKENS) < torch.tensor([[TOKENS], [9]])
    states = generator.write(hidden, mask)
    assert list(states) == ["b.1.o", "b.4.o", "b.4.down"]
    for name, layer in (("b.1.o", 1), ("b.4.o", 4), ("b.4.down", 4)):
        rows = (hidden[layer][0], hidden[layer][1, :9])
        expected = torch.stack([slow_write(generator[name], row) for row in rows])
        torch.testing.assert_close(states[name].double(), expected, atol=1e-4, rtol=1e-4)
    adapter = generator.adapter({name: state[0] for name, state in states.items()})
    assert {name: (f.up.shape[0], f.down.shape[1]) for name, f in adapter.items()} == {
        "b.1.o": (19, 17),
        "b.4.o": (19, 17),
        "b.4.down": (13, 29),
    }
    for name, factors in adapter.items():
        target = generator[name]
        expected = SCALE * target.output_proj @ target.normalize(states[name][0]) @ target.query_proj
        torch.testing.assert_close(factors.delta(), expected, atol=1e-5, rtol=1e-4)
        assert not factors.up.requires_grad and not factors.down.requires_grad


def test_an_adapter_has_the_rank_asked_for_never_the_width_of_the_state() -> None:
    generator = make_generator("svd", 3)
    states = generator.write({1: random(1, TOKENS, HIDDEN), 4: random(1, TOKENS, HIDDEN)})
    adapter = generator.adapter({name: state[0] for name, state in states.items()})
    assert adapter.rank == 3
    assert adapter.num_parameters == 3 * (19 + 17 + 19 + 17 + 13 + 29)


def test_num_parameters_counts_every_weight() -> None:
    projections = 2 * (2 * HIDDEN + 17 + 19) + (2 * HIDDEN + 29 + 13)
    assert make_generator().num_parameters == STATE * projections + 3 * HIDDEN


def test_an_adapter_is_the_same_bit_for_bit_and_whatever_the_batch() -> None:
    generator = make_generator("newton_schulz", STATE)
    hidden = random(3, TOKENS, HIDDEN)
    mask = torch.arange(TOKENS) < torch.tensor([[TOKENS], [9], [16]])

    def adapter(rows: Tensor, row_mask: Tensor | None, row: int):
        states = generator.write({1: rows, 4: rows}, row_mask)
        return generator.adapter({name: state[row] for name, state in states.items()})

    in_batch, again = adapter(hidden, mask, 1), adapter(hidden.clone(), mask, 1)
    alone = adapter(hidden[1:2, :9], None, 0)
    for name, factors in in_batch.items():
        assert torch.equal(factors.up, again[name].up) and torch.equal(factors.down, again[name].down)
        torch.testing.assert_close(factors.delta(), alone[name].delta(), atol=1e-4, rtol=1e-4)


def test_the_scale_is_a_factor_on_the_update() -> None:
    small, large = make_target(), make_target()
    large.scale = 3 * SCALE
    state = small.write(random(1, TOKENS, HIDDEN))
    torch.testing.assert_close(large.factors(state[0]).delta(), 3 * small.factors(state[0]).delta())
    inputs, normalized = random(1, 5, IN), small.normalize(state)
    torch.testing.assert_close(large.read(inputs, normalized), 3 * small.read(inputs, normalized))


def test_a_generator_from_a_config_takes_over_every_setting() -> None:
    config = GeneratorConfig(
        state_dim=STATE, rank=RANK, scale=SCALE, normalization="svd", hidden_norm=False, value_shift=2
    )
    target = AdapterGenerator.from_config(config, [TargetShape("t", 0, IN, OUT)], HIDDEN)["t"]
    assert (target.rank, target.scale, target.normalization, target.value_shift) == (RANK, SCALE, "svd", 2)
    assert target.norm_weight is None
    assert target.key_proj.shape == (STATE, HIDDEN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": RANK}, "newton_schulz keeps all 11 directions"),
        ({"rank": RANK, "normalization": "frobenius"}, "frobenius keeps all 11 directions"),
        ({"rank": STATE + 1, "normalization": "svd"}, r"rank must lie in 1..state_dim \(11\), got 12"),
        ({"normalization": "qr"}, "must be one of svd, frobenius, newton_schulz, ridge, got 'qr'"),
        ({"value_shift": -1}, "value_shift must not be negative"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdapterGenerator([TargetShape("t", 0, IN, OUT)], HIDDEN, state_dim=STATE, **settings)


def test_a_generator_without_targets_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one target"):
        AdapterGenerator([], HIDDEN)
