"""The grouped kernel against Transformers' eager one: outputs, gradients and whole models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import eager_attention_forward

from generative_adapter.base_model.grouped_attention import grouped_attention
from generative_adapter.base_model.prefix_pass import attention_kernel, attention_mask
from generative_adapter.errors import BaseModelError
from tiny_models import tiny_base

ROWS, TOKENS, WIDTH, VALUE_WIDTH = 3, 11, 5, 7


def sample(heads: int, key_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value as a model makes them: heads beside one another in a token."""
    random = torch.Generator().manual_seed(0)
    shapes = [(heads, WIDTH), (key_heads, WIDTH), (key_heads, VALUE_WIDTH)]
    made = [torch.randn(ROWS, TOKENS, *shape, generator=random).to(dtype).transpose(1, 2) for shape in shapes]
    return [each.requires_grad_() for each in made]


def causal(dtype: torch.dtype = torch.float32) -> Tensor:
    blocked = ~torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    return torch.zeros(ROWS, 1, TOKENS, TOKENS, dtype=dtype).masked_fill(blocked, torch.finfo(dtype).min)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
def test_equals_eager(heads: int, key_heads: int, masked: bool, dtype: torch.dtype, tolerance: float) -> None:
    mask = causal(dtype) if masked else None
    given = sample(heads, key_heads, dtype)
    module: Any = SimpleNamespace(num_key_value_groups=heads // key_heads, training=False)
    right, _ = eager_attention_forward(module, *given, mask, 0.3)
    found, weights = grouped_attention(module, *given, mask, 0.3)
    assert weights is None and found.shape == (ROWS, TOKENS, heads, VALUE_WIDTH)
    torch.testing.assert_close(found, right, rtol=tolerance / 5, atol=tolerance / 50)
    probe = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for ours, theirs in zip(
        torch.autograd.grad(found, given, probe), torch.autograd.grad(right, given, probe), strict=True
    ):
        assert ours.dtype == dtype and theirs.norm() > 0
        assert (ours - theirs).float().norm() <= tolerance * theirs.float().norm()


def test_scaling_is_one_over_the_root_of_the_width_unless_told() -> None:
    given = sample(4, 2)
    told, _ = grouped_attention(torch.nn.Identity(), *given, None, WIDTH**-0.5)
    found, _ = grouped_attention(torch.nn.Identity(), *given, None)
    assert torch.equal(found, told)


def test_gradients_by_finite_differences() -> None:
    given = [each.detach().double().requires_grad_() for each in sample(4, 2)]
    mask = causal(torch.float64)
    assert torch.autograd.gradcheck(lambda *x: grouped_attention(torch.nn.Identity(), *x, mask, 0.3)[0], given)


@pytest.mark.parametrize("settings", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"dropout": 0.1}])
def test_what_it_leaves_out_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BaseModelError, match=f"{next(iter(settings))}.*use eager"):
        grouped_attention(torch.nn.Identity(), *sample(4, 4), None, **settings)
    nothing: dict[str, Any] = {name: 0.0 if name == "dropout" else None for name in settings}
    grouped_attention(torch.nn.Identity(), *sample(4, 4), None, **nothing)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("own_mask", [True, False], ids=["given mask", "mask by Transformers"])
def test_models_give_the_same(family: str, own_mask: bool) -> None:
    model = tiny_base(family).model
    ids = torch.randint(10, 200, (2, 9), generator=torch.Generator().manual_seed(2))
    segments = torch.tensor([[1] * 5 + [2] * 4, [1] * 9])
    logits = []
    for kernel in ("eager", "grouped"):
        with attention_kernel(model, kernel):
            mask = attention_mask(model, segments) if own_mask else None
            logits.append(model(input_ids=ids, attention_mask=mask, use_cache=False).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
    assert model.config._attn_implementation != "grouped"
