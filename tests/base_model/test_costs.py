"""Operations of a base model against torch's own counter, for every family."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from generative_adapter.base_model.costs import activation_bytes, backward_flops, base_sizes, forward_flops
from generative_adapter.base_model.inject import add_to_outputs
from generative_adapter.base_model.targets import find_targets
from tiny_models import tiny_base

ROWS, TOKENS = 3, 61


@pytest.mark.parametrize("role", ["attention_output", "feed_forward_down"])
@pytest.mark.parametrize("layers", [None, (1,)])
def test_flops_are_what_torch_counts(family: str, role: str, layers: tuple[int, ...] | None) -> None:
    base = tiny_base(family)
    base.model.set_attn_implementation("eager")
    sizes = base_sizes(base.model)
    target = find_targets(base.model, (role,), layers)[0]
    shift = torch.zeros(target.out_features, requires_grad=True)
    ids = torch.randint(9, 200, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), FlopCounterMode(display=False) as plain:
        base.model(input_ids=ids, use_cache=False)
    with add_to_outputs(base.model, {target.name: lambda _: shift}), FlopCounterMode(display=False) as forward:
        logits = base.model(input_ids=ids, use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.square().mean().backward()
    layout = (ROWS * TOKENS, TOKENS, ROWS * TOKENS)
    assert forward_flops(sizes, *layout) == pytest.approx(plain.get_total_flops(), rel=0.02)
    assert forward_flops(sizes, *layout) == pytest.approx(forward.get_total_flops(), rel=0.02)
    expected = backward_flops(sizes, *layout, target.layer, target.name)
    if family == "gpt_neox" and role == "attention_output":  # its feed-forward part stands beside attention
        expected -= 2 * ROWS * TOKENS * sum(i * o for name, i, o in sizes.blocks[0].linears if name.startswith("mlp."))
    assert expected == pytest.approx(backward.get_total_flops(), rel=0.02)
    head = 2 * ROWS * TOKENS * sizes.hidden_size * sizes.vocab_size
    assert forward_flops(sizes, *layout[:2]) == forward_flops(sizes, *layout) - head


def test_sizes_by_hand(tiny_llama_base) -> None:
    sizes = base_sizes(tiny_llama_base.model)
    attention = 20 * 24 + 2 * 20 * 12 + 24 * 20  # q, k and v, o
    assert [block.weights for block in sizes.blocks] == [attention + 3 * 20 * 37] * 2
    assert (sizes.hidden_size, sizes.attention_width, sizes.num_heads, sizes.vocab_size) == (20, 24, 4, 263)


def test_checkpointing_keeps_inputs_and_one_block(tiny_llama_base) -> None:
    sizes = base_sizes(tiny_llama_base.model)
    first = sizes.blocks[0].path + ".self_attn.o_proj"

    def kept(checkpointing: bool) -> float:
        return activation_bytes(
            sizes, 100, 50, 2, attention="sdpa", checkpointing=checkpointing, first_layer=0, first_target=first
        )

    block = 100 * (2 * (24 + 12 + 12 + 20 + 37 + 37 + 20 + 37 + 24) + 2 * 4 * 20)
    own = 100 * (2 * (37 + 37 + 20 + 37) + 4 * 20)
    assert kept(False) == block + own
    assert kept(True) == block + 2 * 100 * 2 * 20
