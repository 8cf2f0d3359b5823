"""Norms with a backward written out: found by what they compute, the same numbers, always put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from generative_adapter.base_model.lean_norms import find_plain_norms, lean_norms
from tiny_models import tiny_base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_output_and_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(29, eps=0.1).to(dtype)
    norm.weight.data.normal_()
    norm.weight.requires_grad_(False)
    hidden = torch.randn(3, 5, 29).to(dtype).requires_grad_()
    probe = torch.randn(3, 5, 29).to(dtype)
    right = norm(hidden)
    (expected,) = torch.autograd.grad(right, hidden, probe)
    assert find_plain_norms(norm) == [norm]
    with lean_norms([norm]):
        found = norm(hidden)
        assert type(found.grad_fn.next_functions[1][0]).__name__ == "_UnitRmsBackward"
    (gradient,) = torch.autograd.grad(found, hidden, probe)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(gradient, expected, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    assert "forward" not in norm.__dict__


class EpsilonOutsideRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        root = hidden_states.square().mean(-1, keepdim=True).sqrt()
        return self.weight * hidden_states / (root + self.variance_epsilon)


def test_others_are_left_alone() -> None:
    norms = nn.ModuleList([GemmaRMSNorm(29), EpsilonOutsideRMSNorm(29), nn.LayerNorm(29), LlamaRMSNorm(29)])
    assert find_plain_norms(norms) == [norms[3]]


def test_norms_of_models_and_wrappers() -> None:
    model = tiny_base("llama").model
    norms = find_plain_norms(model)
    assert len(norms) == sum(type(module) is LlamaRMSNorm for module in model.modules()) > 3
    assert find_plain_norms(tiny_base("gpt2").model) == []
    wrapped = norms[0].forward
    norms[0].forward = wrapped
    with pytest.raises(RuntimeError, match="stop"), lean_norms(norms):
        assert norms[0].forward is wrapped
        assert "forward" in norms[1].__dict__
        raise RuntimeError("stop")
    assert norms[0].__dict__.pop("forward") is wrapped
    assert not any("forward" in norm.__dict__ for norm in norms)
