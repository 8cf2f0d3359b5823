"""The final norm's gains, found by what it does, against what each family keeps."""

from __future__ import annotations

import torch
from torch import nn

from generative_adapter.base_model.final_norm import final_norm_gains
from tiny_models import HIDDEN, tiny_model

NORMS = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}


def test_gains_of_every_family(family):
    model = tiny_model(family)
    weight = model.get_submodule(NORMS.get(family, "model.norm")).weight
    expected = weight + 1 if family.startswith("gemma") else weight
    torch.testing.assert_close(final_norm_gains(model, HIDDEN), expected, rtol=1e-4, atol=1e-4)
    assert (expected - 1).abs().max() > 0.1


def test_bfloat16_and_the_meta_device():
    model = tiny_model("llama")
    exact = model.get_submodule("model.norm").weight.clone()
    gains = final_norm_gains(model.bfloat16(), HIDDEN)
    assert gains.dtype == torch.float32
    torch.testing.assert_close(gains, exact, rtol=0.01, atol=0)
    assert final_norm_gains(model.to("meta"), HIDDEN).is_meta


def test_a_model_without_a_final_norm():
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)) for _ in range(3))
    before = nn.ModuleDict({"norm": nn.RMSNorm(5), "blocks": blocks})
    model = nn.ModuleDict({"decoder": before, "head": nn.Linear(5, 9)})
    assert torch.equal(final_norm_gains(model, 5), torch.ones(5))
