"""PEFT and transformers: the logits of a loaded adapter are those of ours."""

from __future__ import annotations

import pytest
import torch

from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import load_base_model
from generative_adapter.export.peft import save_peft

pytestmark = pytest.mark.engines


@pytest.mark.parametrize("engine", ["peft", "transformers"])
@pytest.mark.parametrize("rank", [None, 8, 512])
def test_logits_are_ours(model, memories, prompts, base_folder, tmp_path, engine, rank):
    save_peft(
        model.adapter(memories[0]), tmp_path / "a", str(base_folder), model=model.base.model, rank=rank, dtype="fp32"
    )
    adapter = model.adapter(memories[0])
    cut = adapter if rank is None or rank >= adapter.rank else adapter.truncate(rank)[0]
    loaded = load_base_model(base_folder, device="cpu", dtype="float32").model
    if engine == "peft":
        peft = pytest.importorskip("peft")
        loaded = peft.PeftModel.from_pretrained(loaded, str(tmp_path / "a")).eval()
    else:
        loaded.load_adapter(str(tmp_path / "a"))
    ids = torch.tensor([prompts[0].ids])
    with torch.no_grad():
        with inject(model.base.model, cut):
            expected = model.base.model(input_ids=ids).logits
        given = loaded(input_ids=ids).logits
        plain = model.base.model(input_ids=ids).logits
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=2e-3)
    assert not torch.allclose(plain, expected, atol=0.1)


@pytest.mark.parametrize("engine", ["peft", "transformers"])
def test_units_that_take_tokens_give_our_logits(model, unit_adapters, unit_prompts, base_folder, tmp_path, engine):
    adapter = unit_adapters[0]
    save_peft(adapter, tmp_path / "a", str(base_folder), model=model.base.model, dtype="fp32")
    loaded = load_base_model(base_folder, device="cpu", dtype="float32").model
    if engine == "peft":
        loaded = pytest.importorskip("peft").PeftModel.from_pretrained(loaded, str(tmp_path / "a")).eval()
    else:
        loaded.load_adapter(str(tmp_path / "a"))
    ids = torch.tensor([unit_prompts[0].ids])
    with torch.no_grad():
        with inject(model.base.model, adapter):
            expected = model.base.model(input_ids=ids).logits
        given = loaded(input_ids=ids).logits
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=2e-3)
