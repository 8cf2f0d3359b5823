"""The commands on a memory that keeps a row for every token, with a tiny model in place of the real one."""

from __future__ import annotations

import json

import pytest
import torch

from generative_adapter.cli import forget as forget_command
from generative_adapter.cli import loading
from generative_adapter.export.peft import load_peft
from generative_adapter.generator.memory import ContextMemory
from row_keeper import row_keeper


@pytest.fixture
def keeper(monkeypatch, tiny_llama_base):
    model = row_keeper(tiny_llama_base)
    monkeypatch.setattr(loading, "load_model", lambda *arguments: model)
    return model


@pytest.fixture
def memory_path(run, keeper, two_documents, tmp_path):
    path = tmp_path / "memory.safetensors"
    result = run("contextualize", *two_documents, "-o", path)
    assert result.exit_code == 0, result.output
    assert result.stdout.rstrip().endswith(" MB, bfloat16")
    return path


def described(run, path):
    return json.loads(run("info", path, "--json").stdout)


def test_info(run, keeper, memory_path):
    report = described(run, memory_path)
    tokens = len("Ann lives in Bonn.") + len("Carl lives in the town of Delft.")
    assert (report["keeps_tokens"], report["stored_as"], report["context_tokens"]) == (True, "bfloat16", tokens)
    assert report["bytes"] == tokens * 12 * 4
    assert "keeps tokens" in run("info", memory_path).stdout


@pytest.mark.parametrize("form", ["float64", "bfloat16", "int8"])
def test_the_form_asked_for_is_kept(run, keeper, two_documents, tmp_path, form):
    first, both = tmp_path / "first", tmp_path / "both"
    run("contextualize", two_documents[0], "-o", first, "--memory-dtype", form)
    run("contextualize", two_documents[1], "-m", first, "-o", both)
    assert described(run, first)["stored_as"] == described(run, both)["stored_as"] == form
    run("forget", both, two_documents[1])
    assert described(run, both)["stored_as"] == form
    assert torch.equal(ContextMemory.load(both).states["memory"], ContextMemory.load(first).states["memory"])


def test_forgetting_is_exact_and_says_nothing_of_rounding(run, monkeypatch, keeper, memory_path, two_documents):
    notes: list[str] = []
    monkeypatch.setattr(forget_command, "print_note", notes.append)
    result = run("forget", memory_path, two_documents[0])
    assert (result.exit_code, result.stdout) == (0, f"{memory_path}: forgot first.txt; 1 document left\n")
    assert notes == []
    alone = keeper.contextualize(two_documents[1].read_text().strip())
    assert torch.equal(ContextMemory.load(memory_path).states["memory"], alone.states["memory"].bfloat16().float())


def test_export_and_ask(run, keeper, memory_path, tmp_path):
    result = run("export", memory_path, "-o", tmp_path / "lora", "--dtype", "fp32")
    assert result.exit_code == 0, result.output
    expected = keeper.adapter(ContextMemory.load(memory_path))
    read = load_peft(tmp_path / "lora")
    assert read.keys() == expected.keys()
    for name, factors in expected.items():
        torch.testing.assert_close(read[name].delta(), factors.delta(), rtol=0, atol=1e-5)
    answered = run("ask", "--memory", memory_path, "Who?", "--max-new-tokens", 3, "--json")
    assert answered.exit_code == 0, answered.output
    assert json.loads(answered.stdout)["context_tokens"] == described(run, memory_path)["context_tokens"]
