"""A pass that starts in the middle gives what the whole pass gives."""

from __future__ import annotations

import pytest
import torch

from generative_adapter.base_model.capture import on_block_inputs
from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.resumed_pass import resumed_logits
from generative_adapter.errors import BaseModelError
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors


def rows(base, tokens: int = 9):
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(10, 200, (2, tokens), generator=random)
    hidden: dict[int, torch.Tensor] = {}
    with torch.no_grad(), on_block_inputs(base.model, [1], hidden.__setitem__):
        logits = base.model(input_ids=ids).logits
    return ids, hidden[1], logits


def test_equals_the_whole_pass_in_every_family(family_base):
    ids, hidden, logits = rows(family_base)
    segments = torch.ones_like(ids)
    supervised = torch.zeros_like(ids, dtype=torch.bool)
    supervised[0, 3:7] = supervised[1, 8] = True
    with torch.no_grad():
        resumed = resumed_logits(family_base.model, 1, hidden, segments, supervised)
        again = family_base.model(input_ids=ids).logits
    torch.testing.assert_close(resumed, logits[supervised], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, logits)  # nothing is left behind


def test_segments_of_a_row_and_padding_are_kept_apart(tiny_llama_base):
    model = tiny_llama_base.model
    ids = torch.tensor([[11, 12, 13, 14, 15, 16, 17]])
    hidden: dict[int, torch.Tensor] = {}
    parts, logits = [], []
    for part in (ids[:, :4], ids[:, 4:]):
        with torch.no_grad(), on_block_inputs(model, [1], hidden.__setitem__):
            logits.append(model(input_ids=part).logits[0])
        parts.append(hidden[1])
    packed = torch.cat([*parts, torch.zeros_like(parts[0])], dim=1)
    segments = torch.tensor([[1] * 4 + [2] * 3 + [0] * 4])
    with torch.no_grad():
        resumed = resumed_logits(model, 1, packed, segments, segments > 0)
    torch.testing.assert_close(resumed, torch.cat(logits), rtol=1e-4, atol=1e-4)


def test_adapters_count_and_gradients_reach_them(tiny_llama_base):
    model = tiny_llama_base.model
    name = "model.layers.1.mlp.down_proj"
    width = model.get_submodule(name).weight.shape
    down = torch.randn(3, width[1], generator=torch.Generator().manual_seed(1)).requires_grad_()
    up = torch.randn(width[0], 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    ids, hidden, plain = rows(tiny_llama_base)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    with inject(model, LowRankAdapter({name: LowRankFactors(down, up)})):
        expected = model(input_ids=ids).logits
        resumed = resumed_logits(model, 1, hidden, torch.ones_like(ids), everywhere)
        torch.testing.assert_close(resumed, expected.flatten(0, 1), rtol=1e-4, atol=1e-4)
        resumed.square().sum().backward()
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert down.grad is not None and up.grad is not None
    assert bool(down.grad.any()) and bool(up.grad.any())


def test_a_wrapped_block_is_refused_and_left_alone(tiny_llama_base):
    model = tiny_llama_base.model
    block = model.get_submodule("model.layers.0")
    own = block.forward
    block.forward = own  # as a wrapper would
    ids = torch.ones(1, 3, dtype=torch.long)
    try:
        with pytest.raises(BaseModelError, match="wrapped"):
            resumed_logits(model, 1, torch.zeros(1, 3, 20), ids, ids > 0)
        assert block.__dict__["forward"] == own
    finally:
        del block.forward
