"""A merged model says by itself what the base model says under the adapter."""

from __future__ import annotations

import pytest
import torch

from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import load_base_model
from generative_adapter.base_model.targets import find_targets
from generative_adapter.errors import AdapterError, ConfigError, DataError
from generative_adapter.export.base_folder import save_merged
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors
from tiny_models import VOCABULARY

IDS = torch.randint(7, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(5))


def random_adapter(model, rank=5) -> LowRankAdapter:
    random = torch.Generator().manual_seed(23)
    return LowRankAdapter(
        {
            shape.name: LowRankFactors(
                torch.randn(rank, shape.in_features, generator=random) * shape.in_features**-0.5,
                torch.randn(shape.out_features, rank, generator=random) * 0.5 * rank**-0.5,
            )
            for shape in find_targets(model, ("attention_output", "feed_forward_down"), None)
        }
    )


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("rank", [None, 2])
def test_it_gives_the_logits_of_the_adapter(family_base, tmp_path, rank):
    adapter = random_adapter(family_base.model)
    before = {name: tensor.clone() for name, tensor in family_base.model.state_dict().items()}
    written = save_merged(family_base, adapter, tmp_path / "merged", rank=rank, dtype="fp32")
    cut, error = adapter.truncate(rank) if rank else (adapter, 0.0)
    assert (written.rank, written.truncation_error) == (rank or 5, error)
    merged = load_base_model(tmp_path / "merged", device="cpu", dtype="float32").model
    plain = logits(family_base.model)
    with inject(family_base.model, cut):
        expected = logits(family_base.model)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in family_base.model.state_dict().items())


def test_it_is_rounded_once(tiny_llama_base, tmp_path):
    adapter = random_adapter(tiny_llama_base.model)
    name = "model.layers.1.mlp.down_proj"
    save_merged(tiny_llama_base, adapter, tmp_path / "merged", dtype="bf16")
    merged = load_base_model(tmp_path / "merged", device="cpu", dtype="bfloat16").model
    exact = tiny_llama_base.model.get_submodule(name).weight + adapter[name].delta()
    assert torch.equal(merged.get_submodule(name).weight, exact.to(torch.bfloat16))


def test_bad_input_is_refused(tiny_llama_base, tmp_path):
    adapter = random_adapter(tiny_llama_base.model)
    with pytest.raises(AdapterError, match="nothing to merge"):
        save_merged(tiny_llama_base, LowRankAdapter({}), tmp_path / "merged")
    with pytest.raises(ConfigError, match="positive"):
        save_merged(tiny_llama_base, adapter, tmp_path / "merged", rank=0)
    with pytest.raises(ConfigError, match="fp8"):
        save_merged(tiny_llama_base, adapter, tmp_path / "merged", dtype="fp8")
    assert not list(tmp_path.iterdir())
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not replaced"):
        save_merged(tiny_llama_base, adapter, tmp_path / "merged")
