"""The context encoder against slow loops, its padding, and what a new one does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from generative_adapter.generator.encoder import ContextEncoder, EncoderLayer

INPUT, WIDTH, HEADS, FARTHEST, LENGTH = 14, 15, 3, 4, 11


@pytest.fixture
def encoder() -> ContextEncoder:
    torch.manual_seed(2)
    made = ContextEncoder(INPUT, WIDTH, 2, HEADS, FARTHEST)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.4 if parameter.ndim > 1 else 1.0))
    return made.eval().requires_grad_(False)


def unit(vector: Tensor) -> Tensor:
    return vector / (vector.square().mean() + 1e-6).sqrt()


def slow_layer(layer: EncoderLayer, tokens: list[Tensor]) -> list[Tensor]:
    """One layer token by token, in float64."""
    weights = {name: parameter.double() for name, parameter in layer.named_parameters()}
    part = WIDTH // HEADS
    projected = [weights["attention_input.weight"] @ (unit(x) * weights["attention_norm"]) for x in tokens]
    after = []
    for i, token in enumerate(tokens):
        heads = []
        for head in range(HEADS):
            cut = slice(head * part, (head + 1) * part)
            query = projected[i][:WIDTH][cut]
            scores = []
            for j, other in enumerate(projected):
                distance = max(-FARTHEST, min(FARTHEST, j - i))
                bias = float(weights["distance_bias"][head, distance + FARTHEST])
                scores.append(math.exp(float(query @ other[WIDTH : 2 * WIDTH][cut]) / math.sqrt(part) + bias))
            values = [other[2 * WIDTH :][cut] for other in projected]
            heads.append(sum((s / sum(scores) * v for s, v in zip(scores, values, strict=True)), torch.zeros(part)))
        token = token + weights["attention_output.weight"] @ torch.cat(heads).double()
        inner = weights["feed_forward_up.weight"] @ (unit(token) * weights["feed_forward_norm"])
        inner = inner + weights["feed_forward_up.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        after.append(token + weights["feed_forward_down.weight"] @ inner + weights["feed_forward_down.bias"])
    return after


def test_the_encoder_is_the_slow_loop(encoder: ContextEncoder) -> None:
    states = torch.randn(1, LENGTH, INPUT)
    tokens = [encoder.input_proj.weight.double() @ state.double() for state in states[0]]
    for layer in encoder.layers:
        assert isinstance(layer, EncoderLayer)
        tokens = slow_layer(layer, tokens)
    expected = torch.stack([unit(token) * encoder.norm_weight.double() for token in tokens])
    torch.testing.assert_close(encoder(states)[0].double(), expected, rtol=1e-4, atol=1e-4)


def test_padding_is_not_seen(encoder: ContextEncoder) -> None:
    states = torch.randn(3, LENGTH, INPUT)
    lengths = (LENGTH, 1, 6)
    mask = torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)
    together = encoder(states.where(mask.unsqueeze(-1), 1e3), mask)
    for row, length in enumerate(lengths):
        alone = encoder(states[row : row + 1, :length])[0]
        torch.testing.assert_close(together[row, :length], alone, rtol=1e-4, atol=1e-5)


def test_a_token_knows_those_after_it(encoder: ContextEncoder) -> None:
    states = torch.randn(1, LENGTH, INPUT)
    other = states.clone()
    other[0, -1] += 1
    assert (encoder(states)[0, 0] - encoder(other)[0, 0]).abs().max() > 1e-3


def test_a_new_layer_changes_nothing_but_its_bias() -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(WIDTH, HEADS, FARTHEST)
    tokens = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(layer(tokens), tokens + layer.feed_forward_down.bias)


def test_products_run_in_the_type_of_the_input(encoder: ContextEncoder) -> None:
    states = torch.randn(2, LENGTH, INPUT)
    short = encoder(states.bfloat16())
    assert short.dtype == torch.float32
    difference = (short - encoder(states)).norm() / encoder(states).norm()
    assert 1e-4 < difference < 0.05
