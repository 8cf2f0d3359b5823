"""TokenUnits: factors against the feed-forward part written out, and which block takes which token."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from generative_adapter.config import TargetShape
from generative_adapter.generator.token_units import TokenUnits, lone_activation, tokens_of_blocks

WIDTH, UNITS, KEYS, VALUES = 6, 10, 4, 3


def make_units(seed: int = 0) -> TokenUnits:
    torch.manual_seed(seed)
    gate, up = (TargetShape(f"block.{name}", 0, WIDTH, UNITS) for name in ("gate", "up"))
    block = TokenUnits(gate, up, TargetShape("block.down", 0, UNITS, WIDTH), KEYS, VALUES)
    for parameter in block.parameters():
        parameter.data = torch.randn_like(parameter)
    block.input_scales.copy_(torch.rand(WIDTH) + 0.5)
    block.set_activity(torch.rand(UNITS))
    return block.requires_grad_(False)


def test_factors_are_one_unit_a_token():
    block = make_units()
    keys, values, directions = torch.randn(5, KEYS), torch.randn(5, VALUES), torch.randn(WIDTH, VALUES)
    gate, up, down = torch.randn(UNITS, WIDTH), torch.randn(UNITS, WIDTH), torch.randn(WIDTH, UNITS)
    factors = block.factors(keys, values, directions)
    inputs = torch.randn(7, WIDTH)

    def adapted(name: str, weight: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        return given @ (weight + factors[f"block.{name}"].delta()).mT

    inner = F.silu(adapted("gate", gate, inputs)) * adapted("up", up, inputs)
    found = adapted("down", down, inner)

    scaled = inputs * block.input_scales
    asked = scaled @ block.query_proj.mT
    gates, ups = inputs @ gate.mT, inputs @ up.mT
    columns = down.clone()
    least_active = sorted(range(UNITS), key=lambda unit: float(block.activity[unit]))
    for token in range(5):
        unit, score = least_active[token], asked @ keys[token]
        gates[:, unit] += block.gate_strength * score + scaled @ block.gate_offset
        ups[:, unit] += block.up_strength * score + scaled @ block.up_offset
        columns[:, unit] += (block.output_proj + block.word_strength * directions) @ values[token]
    torch.testing.assert_close(found, (F.silu(gates) * ups) @ columns.mT, rtol=1e-4, atol=1e-4)


def test_no_token_changes_nothing():
    factors = make_units().factors(torch.zeros(0, KEYS), torch.zeros(0, VALUES), torch.randn(WIDTH, VALUES))
    assert sorted(factors) == ["block.down", "block.gate", "block.up"]
    assert all(float(each.delta().abs().max()) == 0 for each in factors.values())


def test_a_copy_in_bfloat16_takes_units_in_the_same_order():
    """A generator stored in bfloat16 puts a memory's tokens into the units that it was trained with."""
    block = make_units()
    activity = torch.linspace(1.001, 1.0, UNITS)  # too close for bfloat16
    activity[3] = 0.5
    block.set_activity(activity)
    order = block.order
    block.activity.copy_(block.activity.to(torch.bfloat16))
    assert torch.equal(block.order, order) and int(order[0]) == 3


def test_offset_is_the_threshold_where_answers_are_given():
    block = make_units()
    answering = torch.randn(400, WIDTH) + torch.tensor([3.0, 0, 0, 0, 0, 0])
    other = torch.randn(900, WIDTH)
    block.set_offset(answering, other)
    offset = block.offsets[0]
    assert float((answering @ offset).mean()) == pytest.approx(-3, abs=0.6)
    assert float((other @ offset).mean()) == pytest.approx(0, abs=0.6)


def test_tokens_whose_key_is_zero_take_no_unit():
    keys = torch.randn(14, KEYS)
    keys[[0, 3, 4, 13]] = 0
    only = tokens_of_blocks(keys, [make_units()])
    assert only[0].tolist() == [1, 2, 5, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize(("tokens", "step"), [(0, 1), (1, 1), (10, 1), (11, 2), (20, 2), (21, 3), (30, 3)])
def test_every_token_is_taken_and_no_block_overflows(tokens, step):
    blocks = [make_units(seed) for seed in range(3)]
    taken = tokens_of_blocks(torch.randn(tokens, KEYS), blocks)
    assert len(taken) == 3 and all(len(each) <= UNITS for each in taken)
    assert sorted({int(number) for each in taken for number in each}) == list(range(tokens))
    for index, each in enumerate(taken):
        assert each.tolist() == [number for number in range(tokens) if number % step == index % step]


def test_tokens_that_matter_least_are_left_out():
    keys = torch.ones(40, KEYS)
    keys[5:15] *= 0.1
    taken = tokens_of_blocks(keys, [make_units(seed) for seed in range(3)])
    assert sorted({int(number) for each in taken for number in each}) == [*range(5), *range(15, 40)]


def test_a_lone_lookup_says_what_is_meant_and_not_the_rest():
    one, half, other = lone_activation(torch.tensor([1.0, 0.5, 0.1])).tolist()
    assert one == pytest.approx(1)
    assert 0 < half < 0.2
    assert abs(other) < 0.01
