"""Adapters over a running model, one a row; merged weights; and that nothing stays behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from generative_adapter.base_model.inject import add_to_outputs, find_linear, inject, merge
from generative_adapter.base_model.targets import find_targets
from generative_adapter.config import TargetShape
from generative_adapter.errors import AdapterError
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors
from tiny_models import FAMILIES, PAD, VOCABULARY, tiny_model

RANDOM = torch.Generator().manual_seed(17)
IDS = torch.randint(7, VOCABULARY, (3, 9), generator=RANDOM)
LAST = "model.layers.1.self_attn.o_proj"


def targets_of(family: str, model: nn.Module) -> tuple[TargetShape, ...]:
    return find_targets(model, ("attention_output", "feed_forward_down", FAMILIES[family].by_name[0]))


def random_adapter(targets: tuple[TargetShape, ...], rank: int, seed: int, size: float = 0.7) -> LowRankAdapter:
    random = torch.Generator().manual_seed(seed)
    return LowRankAdapter(
        {
            target.name: LowRankFactors(
                down=torch.randn(rank, target.in_features, generator=random) * target.in_features**-0.5,
                up=torch.randn(target.out_features, rank, generator=random) * size * rank**-0.5,
            )
            for target in targets
        }
    )


def logits(model: nn.Module, ids: Tensor = IDS, **keywords: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **keywords).logits


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_inject_equals_merge_equals_hand_made_weights(family, family_base):
    model = family_base.model
    adapter = random_adapter(targets_of(family, model), rank=3, seed=1)
    by_hand = copy.deepcopy(model)
    for name, factors in adapter.items():
        weight = by_hand.get_submodule(name).weight
        for output in range(factors.up.shape[0]):
            row = weight[:, output] if family == "gpt2" else weight[output]
            row += sum(factors.up[output, k] * factors.down[k] for k in range(3))
    expected = logits(by_hand)
    assert (expected - logits(model)).abs().max() > 0.1
    with inject(model, adapter):
        close(logits(model), expected)
    with inject(model, [adapter] * 3):
        close(logits(model), expected)
    close(logits(merge(model, adapter)), expected)


def test_rows_of_a_batch_run_under_their_own_adapters(family, family_base):
    model = family_base.model
    targets = targets_of(family, model)
    first = random_adapter(targets, rank=3, seed=1)
    second = random_adapter(targets[1:4], rank=5, seed=2)  # another rank, and not every target
    base = logits(model)
    with inject(model, [first, None, second]):
        together = logits(model)
    for row, adapter in ((0, first), (2, second)):
        with inject(model, adapter):
            alone = logits(model, IDS[row : row + 1])[0]
        close(together[row], alone)
        assert (alone - base[row]).abs().max() > 0.1
    torch.testing.assert_close(together[1], base[1], rtol=0, atol=0)


def test_padding_on_either_side_does_not_change_a_row(family, family_base):
    model = family_base.model
    targets = targets_of(family, model)
    adapters = [random_adapter(targets, rank=2, seed=seed) for seed in range(3)]
    for side in ("left", "right"):
        lengths = (9, 4, 6)
        ids = torch.full((3, 9), PAD)
        mask = torch.zeros(3, 9, dtype=torch.long)
        parts = [slice(9 - length, 9) if side == "left" else slice(0, length) for length in lengths]
        for row, part in enumerate(parts):
            ids[row, part] = IDS[row, : lengths[row]]
            mask[row, part] = 1
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with inject(model, adapters):
            together = logits(model, ids, attention_mask=mask, position_ids=positions)
        for row, part in enumerate(parts):
            with inject(model, adapters[row]):
                close(together[row, part], logits(model, IDS[row : row + 1, : lengths[row]])[0])


def test_model_is_bit_for_bit_what_it_was(family, family_base):
    model = family_base.model
    adapter = random_adapter(targets_of(family, model), rank=3, seed=1)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    before, hooks = logits(model), num_hooks(model)
    with inject(model, adapter):
        assert num_hooks(model) == hooks + len(adapter)
    merge(model, adapter)
    with pytest.raises(RuntimeError, match="in the middle"), inject(model, [adapter, None, adapter]):
        logits(model)
        raise RuntimeError("in the middle")
    assert num_hooks(model) == hooks
    assert torch.equal(logits(model), before)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_exception_inside_the_forward_pass(tiny_llama_base):
    model = tiny_llama_base.model
    adapter = random_adapter(targets_of("llama", model), rank=3, seed=1)
    before, hooks = logits(model), num_hooks(model)
    with (
        pytest.raises(AdapterError, match=r"2 adapters were injected, the batch has 3 rows"),
        inject(model, [adapter] * 2),
    ):
        logits(model)
    assert num_hooks(model) == hooks
    assert torch.equal(logits(model), before)


def test_bfloat16(family):
    model = tiny_model(family)
    targets = targets_of(family, model)
    adapter = random_adapter(targets, rank=3, seed=1)
    with inject(model, adapter):
        exact = logits(model)
    model.bfloat16()
    with inject(model, [adapter, adapter, None]):
        rounded = logits(model)[:2]
    merged = merge(model, adapter)
    assert rounded.dtype == merged.dtype == torch.bfloat16
    for other in (rounded, logits(merged)[:2]):
        assert torch.linalg.norm(other.float() - exact[:2]) < 0.06 * torch.linalg.norm(exact[:2])


def test_generation_with_a_cache_equals_a_pass_without(family_base, family):
    model = family_base.model
    adapter = random_adapter(targets_of(family, model), rank=3, seed=4)
    ids = IDS[:1]
    options = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False, "pad_token_id": PAD}
    with inject(model, adapter):
        generated = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    slow = ids
    merged = merge(model, adapter)
    for _ in range(7):
        scores = logits(merged, slow)[:, -1]
        scores[:, model.config.eos_token_id] = -torch.inf
        slow = torch.cat([slow, scores.argmax(-1, keepdim=True)], 1)
    assert generated.tolist() == slow.tolist()


def test_nested_adapters_add_up(tiny_llama_base):
    model = tiny_llama_base.model
    targets = targets_of("llama", model)
    first, second = (random_adapter(targets, rank=2, seed=seed) for seed in (1, 2))
    with inject(model, first), inject(model, second):
        nested = logits(model)
    close(nested, logits(merge(merge(model, first), second)))


def test_no_adapters_and_empty_adapters(tiny_llama_base):
    model = tiny_llama_base.model
    before = logits(model)
    for nothing in ([None, None, None], [], LowRankAdapter({}), [LowRankAdapter({})] * 3):
        with inject(model, nothing):
            assert torch.equal(logits(model), before)


def test_adapter_factors_may_be_on_disk_precision(tiny_llama_base):
    model = tiny_llama_base.model
    adapter = random_adapter(targets_of("llama", model), rank=3, seed=1).to(dtype=torch.bfloat16)
    with inject(model, adapter):
        shared = logits(model)
    close(shared, logits(merge(model, adapter)))
    assert shared.dtype == torch.float32


def test_adapter_of_another_model(tiny_llama_base):
    model, other = tiny_llama_base.model, tiny_model("gpt2")
    adapter = random_adapter(targets_of("gpt2", other), rank=2, seed=1)
    hooks = num_hooks(model)
    for attempt in (adapter, [adapter, None]):
        with pytest.raises(AdapterError, match="made for another base model"), inject(model, attempt):
            pass
    with pytest.raises(AdapterError, match=r"LlamaForCausalLM has no layer 'transformer\.h\.0"):
        merge(model, adapter)
    assert num_hooks(model) == hooks


def test_adapter_of_another_width(tiny_llama_base):
    wrong = LowRankAdapter({LAST: LowRankFactors(torch.ones(2, 23), torch.ones(20, 2))})
    for attempt in (wrong, [None, wrong]):
        with (
            pytest.raises(AdapterError, match=r"the adapter maps 23 -> 20, the layer \(24, 20\)"),
            inject(tiny_llama_base.model, attempt),
        ):
            pass
    with pytest.raises(AdapterError, match="maps 23 -> 20"):
        merge(tiny_llama_base.model, wrong)


def test_find_linear_refuses_other_modules(tiny_llama_base):
    with pytest.raises(AdapterError, match=r"'model\.layers\.0' .* is a LlamaDecoderLayer, not a linear layer"):
        find_linear(tiny_llama_base.model, "model.layers.0")


def test_a_hook_that_cannot_be_set_takes_the_others_off(tiny_llama_base):
    hooks = num_hooks(tiny_llama_base.model)
    with (
        pytest.raises(AdapterError, match="no layer 'nowhere'"),
        add_to_outputs(tiny_llama_base.model, {LAST: torch.zeros_like, "nowhere": torch.zeros_like}),
    ):
        pass
    assert num_hooks(tiny_llama_base.model) == hooks
