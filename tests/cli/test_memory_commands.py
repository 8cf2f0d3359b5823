"""`contextualize`, `forget` and `info`, which write and read memory files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from generative_adapter import checkpoint
from generative_adapter.generator.memory import ContextMemory


@pytest.fixture
def memory_path(tmp_path):
    return tmp_path / "memory.safetensors"


def documents_of(path):
    return [(document.name, document.streamed) for document in ContextMemory.load(path).documents]


def test_documents_are_added(run, model, two_documents, memory_path):
    result = run("contextualize", *two_documents, "--output", memory_path)
    assert result.exit_code == 0
    assert "2 documents, 11 tokens in 2 chunks" in result.stdout
    assert documents_of(memory_path) == [("first.txt", False), ("second.md", False)]


def test_a_previous_memory_is_added_to_and_left_alone(run, model, two_documents, memory_path, tmp_path):
    longer = tmp_path / "longer.safetensors"
    run("contextualize", two_documents[0], "-o", memory_path)
    before = memory_path.read_bytes()
    assert run("contextualize", two_documents[1], "--memory", memory_path, "-o", longer).exit_code == 0
    assert documents_of(longer) == [("first.txt", False), ("second.md", False)]
    assert memory_path.read_bytes() == before
    torch.testing.assert_close(ContextMemory.load(longer).states["target"], torch.full((3, 3), 11.0).double())


def test_stream_reads_under_what_came_before(run, model, two_documents, memory_path):
    run("contextualize", *two_documents, "-o", memory_path, "--stream")
    assert model.calls == [("contextualize", ("first.txt", False)), ("contextualize", ("second.md", True))]
    assert documents_of(memory_path) == [("first.txt", False), ("second.md", True)]


def test_contextualize_json(run, model, two_documents, memory_path):
    report = json.loads(run("contextualize", two_documents[0], "-o", memory_path, "--json").stdout)
    assert report["path"] == str(memory_path)
    assert (report["context_tokens"], report["chunks"], report["bytes"]) == (4, 1, 36)
    assert report["documents"][0]["name"] == "first.txt"
    assert list(report["seconds"]) == ["load", "contextualize"]


def test_contextualize_bad_input(fails, model, two_documents, memory_path, tmp_path):
    assert "the folder" in fails("contextualize", two_documents[0], "-o", tmp_path / "missing" / "m")
    assert "this is a folder" in fails("contextualize", two_documents[0], "-o", tmp_path)
    assert "this is a folder" in fails("contextualize", tmp_path, "-o", memory_path)
    assert "only once" in fails("contextualize", "-", "-", "-o", memory_path)
    assert "holds no text" in fails("contextualize", "-", "-o", memory_path, input="<html></html>")
    assert "the document is empty" in fails("contextualize", "-", "-o", memory_path, input="")
    assert "no such memory" in fails("contextualize", two_documents[0], "-m", tmp_path / "none", "-o", memory_path)
    assert "--output" in fails("contextualize", two_documents[0])
    assert not memory_path.exists()
    assert model.calls == []


def test_forget_in_place(run, model, two_documents, memory_path):
    run("contextualize", *two_documents, "-o", memory_path)
    result = run("forget", memory_path, two_documents[0])
    assert (result.exit_code, result.stdout) == (0, f"{memory_path}: forgot first.txt; 1 document left\n")
    assert documents_of(memory_path) == [("second.md", False)]
    torch.testing.assert_close(ContextMemory.load(memory_path).states["target"], torch.full((3, 3), 7.0).double())


def test_forget_into_another_file(run, model, two_documents, memory_path, tmp_path):
    shorter = tmp_path / "shorter.safetensors"
    run("contextualize", *two_documents, "-o", memory_path)
    report = json.loads(run("forget", memory_path, two_documents[1], "-o", shorter, "--json").stdout)
    assert [document["name"] for document in report["documents"]] == ["first.txt"]
    assert len(documents_of(memory_path)) == 2
    assert documents_of(shorter) == [("first.txt", False)]


def test_forgetting_what_is_not_held_changes_nothing(run, fails, model, two_documents, memory_path):
    run("contextualize", two_documents[0], "-o", memory_path)
    before = memory_path.read_bytes()
    assert "can't be forgotten" in fails("forget", memory_path, two_documents[1])
    assert "no such memory" in fails("forget", memory_path.with_name("none"), two_documents[0])
    assert memory_path.read_bytes() == before


def test_info_of_a_memory(run, model, two_documents, memory_path):
    run("contextualize", *two_documents, "-o", memory_path)
    report = json.loads(run("info", memory_path, "--json").stdout)
    assert (report["kind"], report["base_model"], report["generator_fingerprint"]) == (
        "memory",
        "fake-base",
        "generator-1",
    )
    table = run("info", memory_path).stdout
    assert "second.md: 7 tokens, 1 chunk" in table
    assert "generator-1" in table


def test_info_of_a_generator(run, monkeypatch, tmp_path):
    path = tmp_path / "generator.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"format": "generative-adapter-generator"})
    description = {"generator": {"rank": 16, "layers": None}, "num_parameters": 1234567, "training": {"sources": ["a"]}}
    monkeypatch.setattr(checkpoint, "read_generator_info", lambda given: description if given == path else {})
    report = json.loads(run("info", path, "--json").stdout)
    assert report == {"kind": "generator", "path": str(path)} | description
    table = run("info", path).stdout
    assert "1,234,567" in table
    assert "generator: rank" in table


def test_info_without_a_file_tells_of_the_shipped_generator(run, monkeypatch, tmp_path):
    path = tmp_path / "shipped.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"format": "generative-adapter-generator"})
    monkeypatch.setattr(checkpoint, "shipped_generator", lambda: path)
    monkeypatch.setattr(checkpoint, "read_generator_info", lambda given: {"num_parameters": 2})
    assert json.loads(run("info", "--json").stdout)["path"] == str(path)


def test_info_bad_input(fails, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, other)
    text = tmp_path / "text.txt"
    text.write_text("no tensors")
    assert "no memory or generator" in fails("info", other)
    assert "not a memory or generator" in fails("info", text)
    assert "there is no such file" in fails("info", tmp_path / "missing")
    assert str(tmp_path) in fails("info", tmp_path)


def stored_as(run, path):
    return json.loads(run("info", path, "--json").stdout)["stored_as"]


@pytest.mark.parametrize("form", ["float64", "bfloat16", "int8"])
def test_a_memory_is_written_in_the_form_asked_for(run, model, two_documents, memory_path, form):
    result = run("contextualize", two_documents[0], "-o", memory_path, "--memory-dtype", form)
    assert (result.exit_code, result.stdout.rstrip().endswith(f" MB, {form}")) == (0, True)
    report = json.loads(run("info", memory_path, "--json").stdout)
    assert (report["stored_as"], report["file_bytes"]) == (form, memory_path.stat().st_size)
    table = run("info", memory_path).stdout
    assert form in table and f"{memory_path.stat().st_size:,}" in table


def test_the_form_is_that_of_the_memory_gone_on_from(run, model, two_documents, memory_path, tmp_path):
    run("contextualize", two_documents[0], "-o", memory_path)
    assert stored_as(run, memory_path) == "float64"
    rounded, longer = tmp_path / "rounded.safetensors", tmp_path / "longer.safetensors"
    run("contextualize", two_documents[0], "-o", rounded, "--memory-dtype", "int8")
    run("contextualize", two_documents[1], "-m", rounded, "-o", longer)
    assert stored_as(run, longer) == "int8"
    run("forget", longer, two_documents[0])
    assert stored_as(run, longer) == "int8"
    run("forget", rounded, two_documents[0], "--memory-dtype", "float64", "-o", longer)
    assert (stored_as(run, longer), stored_as(run, rounded)) == ("float64", "int8")


def test_an_unknown_form_is_refused_before_anything_is_read(run, fails, model, two_documents, memory_path):
    message = fails("contextualize", two_documents[0], "-o", memory_path, "--memory-dtype", "float32")
    assert "float64, bfloat16 or int8, not as 'float32'" in message
    assert not memory_path.exists() and model.calls == []
    run("contextualize", two_documents[0], "-o", memory_path)
    before = memory_path.read_bytes()
    assert "float64, bfloat16 or int8" in fails("forget", memory_path, two_documents[0], "--memory-dtype", "fp8")
    assert memory_path.read_bytes() == before
