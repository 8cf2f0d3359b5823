"""`genadapter export`, with a tiny model in place of the real one."""

from __future__ import annotations

import json

import pytest
import torch

from generative_adapter.base_model.loading import load_base_model
from generative_adapter.cli import loading
from generative_adapter.export.gguf import load_gguf
from generative_adapter.export.peft import load_peft


@pytest.fixture
def tiny(monkeypatch, tiny_adapter):
    monkeypatch.setattr(loading, "load_model", lambda *arguments: tiny_adapter)
    return tiny_adapter


@pytest.fixture
def memory(tiny, tmp_path):
    path = tmp_path / "memory.safetensors"
    tiny.contextualize("Ann lives in Bonn.\n", name="first.txt").save(path)
    return path


def check_adapter(folder, expected):
    read = load_peft(folder)
    assert read.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(read[name].delta(), expected[name].delta(), rtol=0, atol=1e-5)


def test_a_memory_becomes_an_adapter(run, tiny, memory, tmp_path):
    result = run("export", memory, "-o", tmp_path / "lora", "--dtype", "fp32")
    assert result.exit_code == 0, result.output
    assert "PEFT adapter for tiny-llama, rank 8, fp32, 4 targets" in result.stdout
    check_adapter(tmp_path / "lora", tiny.adapter(tiny.contextualize("Ann lives in Bonn.\n")))


def test_documents_are_read_and_added(run, tiny, memory, tmp_path, two_documents):
    options = ["-c", two_documents[1], "--dtype", "fp32", "--rank", 32, "--base-name", "some/base", "--json"]
    report = json.loads(run("export", memory, "-o", tmp_path / "lora", *options).stdout)["adapter"]
    assert (report["rank"], report["base_model"], report["truncation_error"]) == (32, "some/base", 0.0)
    text = two_documents[1].read_text().strip()
    both = tiny.contextualize("Ann lives in Bonn.\n") + tiny.contextualize(text)
    check_adapter(tmp_path / "lora", tiny.adapter(both))


def test_a_memory_becomes_a_gguf_adapter(run, tiny, memory, tmp_path):
    options = ["--format", "gguf", "--dtype", "fp32", "--json"]
    report = json.loads(run("export", memory, "-o", tmp_path / "a.gguf", *options).stdout)["adapter"]
    expected = tiny.adapter(tiny.contextualize("Ann lives in Bonn.\n"))
    assert (report["format"], report["architecture"], report["rank"]) == ("gguf", "llama", expected.rank)
    read = load_gguf(tmp_path / "a.gguf", tiny.base.model)
    assert read.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(read[name].delta(), expected[name].delta(), rtol=0, atol=1e-5)


def test_a_memory_becomes_a_model(run, tiny, memory, tmp_path):
    result = run("export", memory, "-o", tmp_path / "merged", "--format", "merged", "--dtype", "fp32", "--rank", 2)
    assert result.exit_code == 0, result.output
    assert "model with the adapter merged into tiny-llama, rank 2, fp32, 4 targets" in result.stdout
    adapter, error = tiny.adapter(tiny.contextualize("Ann lives in Bonn.\n")).truncate(2)
    assert f"truncation error {error:.3%}" in result.stdout
    merged = load_base_model(tmp_path / "merged", dtype="float32", device="cpu").model
    for name, factors in adapter.items():
        expected = tiny.base.model.get_submodule(name).weight + factors.delta()
        torch.testing.assert_close(merged.get_submodule(name).weight, expected, rtol=0, atol=1e-5)


def test_the_base_model_alone(run, tiny, tmp_path):
    result = run("export", "--base", tmp_path / "base", "--dtype", "fp32")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'base'}: tiny-llama as safetensors, fp32\n")
    again = load_base_model(tmp_path / "base", dtype="float32", device="cpu")
    for name, parameter in tiny.base.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], parameter)


def test_bad_input(fails, tiny, memory, tmp_path, two_documents):
    assert "nothing to write" in fails("export", memory)
    assert "nothing to make an adapter from" in fails("export", "-o", tmp_path / "lora")
    assert "no place for its adapter" in fails("export", memory, "--base", tmp_path / "base")
    assert "no such memory" in fails("export", tmp_path / "none", "-o", tmp_path / "lora")
    assert "rank 9" in fails("export", memory, "-o", tmp_path / "lora", "--rank", 9)
    assert "int8" in fails("export", memory, "-o", tmp_path / "lora", "--dtype", "int8")
    assert "other files" in fails("export", memory, "-o", tmp_path)
    assert not (tmp_path / "lora").exists() and not (tmp_path / "base").exists()
