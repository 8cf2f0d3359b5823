"""Block inputs during a forward pass, for every family."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from generative_adapter.base_model.capture import capture_block_inputs, on_block_inputs
from generative_adapter.base_model.targets import find_blocks
from generative_adapter.errors import BaseModelError
from tiny_models import HIDDEN, LAYERS, PAD, tiny_model

IDS = torch.randint(7, 263, (3, 11), generator=torch.Generator().manual_seed(5))
LENGTHS = (11, 4, 7)


def test_block_inputs_are_the_hidden_states_of_the_model(family_base):
    captured = capture_block_inputs(family_base.model, range(LAYERS), IDS)
    with torch.no_grad():
        expected = family_base.model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert list(captured) == [0, 1]
    for layer, hidden in captured.items():
        assert hidden.shape == (3, 11, HIDDEN)
        torch.testing.assert_close(hidden, expected[layer], rtol=0, atol=0)
    assert not torch.equal(captured[0], captured[1])


def test_padding_and_the_rest_of_the_batch_do_not_change_a_row(family_base):
    mask = torch.arange(11) < torch.tensor(LENGTHS).unsqueeze(1)
    together = capture_block_inputs(family_base.model, (1,), IDS.where(mask, torch.tensor(PAD)), mask)[1]
    for row, length in enumerate(LENGTHS):
        alone = capture_block_inputs(family_base.model, (1,), IDS[row : row + 1, :length])[1][0]
        torch.testing.assert_close(together[row, :length], alone, rtol=0, atol=3e-6)


def test_only_the_blocks_asked_for(tiny_llama_base):
    assert list(capture_block_inputs(tiny_llama_base.model, (1,), IDS)) == [1]
    assert capture_block_inputs(tiny_llama_base.model, (), IDS) == {}


def test_the_head_is_not_run(tiny_llama_base):
    def fail(*_: object) -> None:
        raise AssertionError("the head was run")

    handle = tiny_llama_base.model.get_output_embeddings().register_forward_hook(fail)
    try:
        capture_block_inputs(tiny_llama_base.model, (0,), IDS)
    finally:
        handle.remove()


def test_bfloat16(family):
    model = tiny_model(family)
    exact = capture_block_inputs(model, (1,), IDS)[1]
    rounded = capture_block_inputs(model.bfloat16(), (1,), IDS)[1]
    assert rounded.dtype == torch.bfloat16
    assert torch.linalg.norm(rounded.float() - exact) < 0.03 * torch.linalg.norm(exact)


def test_callbacks_come_just_before_their_blocks(tiny_llama_base):
    _, blocks = find_blocks(tiny_llama_base.model)
    order: list[str] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, layer=layer: order.append(f"block {layer}"))
        for layer, block in enumerate(blocks)
    ]
    with on_block_inputs(tiny_llama_base.model, (0, 1), lambda layer, _: order.append(f"callback {layer}")):
        tiny_llama_base.model(input_ids=IDS)
    for handle in handles:
        handle.remove()
    assert order == ["block 0", "callback 0", "block 1", "callback 1"]


def test_hooks_are_removed_also_after_an_exception(tiny_llama_base):
    calls: list[int] = []

    def fail(layer: int, _: torch.Tensor) -> None:
        calls.append(layer)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), on_block_inputs(tiny_llama_base.model, (0, 1), fail):
        tiny_llama_base.model(input_ids=IDS)
    tiny_llama_base.model(input_ids=IDS)
    assert calls == [0]
    assert not any(module._forward_pre_hooks for module in tiny_llama_base.model.modules())


def test_layer_out_of_range_leaves_no_hook(tiny_llama_base):
    with pytest.raises(IndexError), on_block_inputs(tiny_llama_base.model, (0, 5), lambda *_: None):
        pass
    assert not any(module._forward_pre_hooks for module in tiny_llama_base.model.modules())


class Oddity(nn.Module):
    """Hands its blocks their hidden states under a name of its own."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, *, states: torch.Tensor) -> torch.Tensor:
            return self.linear(states)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.Block()])

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](states=states)


def test_block_without_hidden_states_is_an_error():
    model = Oddity()
    with (
        pytest.raises(BaseModelError, match=r"block 0 \(Block\) .* got 0 positional arguments and \['states'\]"),
        on_block_inputs(model, (0,), lambda *_: None),
    ):
        model(torch.ones(1, 2, 3))
