"""GGUF adapters: what is read back is what was written, names and orders are llama.cpp's, the rest is refused."""

from __future__ import annotations

import pytest
import torch

from generative_adapter.base_model.targets import find_targets
from generative_adapter.errors import AdapterError, CheckpointError, ConfigError, DataError
from generative_adapter.export.gguf import ARCHITECTURES, load_gguf, save_gguf
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors
from tiny_models import tiny_base

gguf = pytest.importorskip("gguf")
ROLES = ("attention_output", "feed_forward_down")


def adapter_for(model, targets=ROLES, layers=None, ranks=(5,)) -> LowRankAdapter:
    random = torch.Generator().manual_seed(23)
    return LowRankAdapter(
        {
            shape.name: LowRankFactors(
                torch.randn(ranks[at % len(ranks)], shape.in_features, generator=random),
                torch.randn(shape.out_features, ranks[at % len(ranks)], generator=random),
            )
            for at, shape in enumerate(find_targets(model, targets, layers))
        }
    )


def close(first: LowRankAdapter, second: LowRankAdapter, tolerance: float) -> bool:
    same = first.keys() == second.keys()
    return same and all(
        bool((factors.delta() - second[name].delta()).norm() <= tolerance * factors.delta().norm())
        for name, factors in first.items()
    )


@pytest.fixture
def model(tiny_llama_base):
    return tiny_llama_base.model


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("fp16", 2e-3), ("bf16", 2e-2)])
def test_what_was_written_comes_back_in_every_family(family_base, tmp_path, dtype, tolerance):
    adapter = adapter_for(family_base.model)
    written = save_gguf(adapter, tmp_path / "a.gguf", family_base.model, "some/base", dtype=dtype)
    assert (written.rank, written.num_targets, written.truncation_error) == (5, len(adapter), 0.0)
    assert written.num_bytes == (tmp_path / "a.gguf").stat().st_size
    assert close(adapter, load_gguf(tmp_path / "a.gguf", family_base.model), tolerance)


def test_names_shapes_and_keys_are_those_of_llama_cpp(model, tmp_path):
    save_gguf(adapter_for(model), tmp_path / "a.gguf", model, "some/base", dtype="fp32")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert {tensor.name for tensor in reader.tensors} == {
        f"blk.{block}.{name}.weight.lora_{letter}"
        for block in (0, 1)
        for name in ("attn_output", "ffn_down")
        for letter in "ab"
    }
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert (values["general.type"], values["general.architecture"], values["adapter.type"]) == (
        "adapter",
        "llama",
        "lora",
    )
    assert values["adapter.lora.alpha"] == 5.0
    assert values["general.base_model.0.name"] == "some/base"


def test_ranks_that_differ_share_one_alpha(model, tmp_path):
    """llama.cpp multiplies by alpha / r of each tensor."""
    adapter = adapter_for(model, ranks=(2, 5, 3))
    save_gguf(adapter, tmp_path / "a.gguf", model, "base", dtype="fp32")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    for name, own in (
        ("model.layers.0.self_attn.o_proj", "blk.0.attn_output"),
        ("model.layers.1.mlp.down_proj", "blk.1.ffn_down"),
    ):
        down, up = tensors[f"{own}.weight.lora_a"], tensors[f"{own}.weight.lora_b"]
        update = torch.from_numpy(up @ down) * (5.0 / len(down))
        torch.testing.assert_close(update, adapter[name].delta(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("end", ["q_proj", "k_proj"])
def test_queries_and_keys_of_llama_are_turned_as_its_converter_turns_weights(model, tmp_path, end):
    """With w of one head of size 2 n, rows 0, n, 1, n + 1, ... of the model's order."""
    adapter = adapter_for(model, targets=(end,))
    save_gguf(adapter, tmp_path / "a.gguf", model, "base", dtype="fp32")
    tensors = {
        tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors
    }
    name = f"model.layers.0.self_attn.{end}"
    heads = model.config.num_attention_heads if end == "q_proj" else model.config.num_key_value_heads
    size = adapter[name].up.shape[0] // heads
    order = [
        head * size + half * (size // 2) + at for head in range(heads) for at in range(size // 2) for half in (0, 1)
    ]
    torch.testing.assert_close(tensors[f"blk.0.attn_{end[0]}.weight.lora_b"], adapter[name].up[order])
    assert close(adapter, load_gguf(tmp_path / "a.gguf", model), 1e-6)


def test_a_smaller_rank_tells_what_it_loses(model, tmp_path):
    adapter = adapter_for(model)
    cut, error = adapter.truncate(2)
    written = save_gguf(adapter, tmp_path / "a.gguf", model, "base", rank=2, dtype="fp32")
    assert (written.rank, written.truncation_error) == (2, error) and error > 0.1
    assert close(cut, load_gguf(tmp_path / "a.gguf", model), 1e-5)
    assert save_gguf(adapter, tmp_path / "a.gguf", model, "base", rank=64).truncation_error == 0


def test_what_can_not_be_written_is_refused_with_the_reason(model, tmp_path):
    adapter = adapter_for(model)
    with pytest.raises(ConfigError, match="fp8"):
        save_gguf(adapter, tmp_path / "a.gguf", model, "base", dtype="fp8")
    with pytest.raises(ConfigError, match="positive"):
        save_gguf(adapter, tmp_path / "a.gguf", model, "base", rank=0)
    with pytest.raises(AdapterError, match="nothing to write"):
        save_gguf(LowRankAdapter({}), tmp_path / "a.gguf", model, "base")
    huge = LowRankAdapter({name: LowRankFactors(each.down * 1e6, each.up) for name, each in adapter.items()})
    with pytest.raises(AdapterError, match="bf16"):
        save_gguf(huge, tmp_path / "a.gguf", model, "base", dtype="fp16")
    wide = {name: LowRankFactors(torch.ones(1, 3), torch.ones(20, 1)) for name in adapter}
    with pytest.raises(AdapterError, match="maps 3"):
        save_gguf(LowRankAdapter(wide), tmp_path / "a.gguf", model, "base")
    assert not list(tmp_path.iterdir())


def test_linears_in_an_order_of_their_own_are_refused(tmp_path):
    model = tiny_base("gpt_neox").model
    with pytest.raises(AdapterError, match="order of their own"):
        save_gguf(adapter_for(model, targets=("query_key_value",)), tmp_path / "a.gguf", model, "base")


def test_an_unknown_architecture_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, "llama")
    with pytest.raises(AdapterError, match="format peft"):
        save_gguf(adapter_for(model), tmp_path / "a.gguf", model, "base")


def test_only_adapters_are_replaced(model, tmp_path):
    path = tmp_path / "notes.gguf"
    path.write_text("my notes")
    with pytest.raises(DataError, match="not replaced"):
        save_gguf(adapter_for(model), path, model, "base")
    assert path.read_text() == "my notes"
    with pytest.raises(DataError, match="folder"):
        save_gguf(adapter_for(model), tmp_path, model, "base")


def test_damaged_and_foreign_files_are_told(model, tmp_path):
    path = tmp_path / "a.gguf"
    with pytest.raises(CheckpointError, match="no GGUF file"):
        load_gguf(path, model)
    save_gguf(adapter_for(model), path, model, "base")
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="export the adapter again"):
            load_gguf(path, model)
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="adapter for llama models"):
        load_gguf(path, tiny_base("qwen3").model)
    one_block = adapter_for(model, layers=(1,))
    other = tiny_base("llama").model
    other.model.layers = other.model.layers[:1]
    save_gguf(one_block, path, model, "base")
    with pytest.raises(CheckpointError, match="no linear of this base model"):
        load_gguf(path, other)
