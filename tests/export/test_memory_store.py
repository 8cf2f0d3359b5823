"""A store of memories and the adapters made of them on first use, in a folder and behind a URL."""

from __future__ import annotations

import threading

import pytest
import torch

from generative_adapter.checkpoint import load_generator_alone, save_generator
from generative_adapter.errors import CheckpointError, ConfigError, DataError, FingerprintMismatchError
from generative_adapter.export import adapter_folders
from generative_adapter.export.adapter_folders import AdapterFolders
from generative_adapter.export.memory_store import MemoryStore
from generative_adapter.export.peft import load_peft
from generative_adapter.export.vllm_plugin import folders_from_environment, register, stable_number


@pytest.fixture(params=["folder", "url"])
def store(request, tmp_path) -> MemoryStore:
    return MemoryStore(tmp_path / "store" if request.param == "folder" else f"memory://{tmp_path}/store")


@pytest.fixture
def folders(model, store, tmp_path) -> AdapterFolders:
    save_generator(tmp_path / "generator.safetensors", model.checkpoint)
    return AdapterFolders(store, load_generator_alone(tmp_path / "generator.safetensors"), tmp_path / "adapters")


def test_a_memory_comes_back(store, model, memory):
    assert (list(store.ids()), store.version("ann")) == ([], None)
    store.put("ann", memory, "float64")
    store.put("bo.2", memory)
    read = store.get("ann", model.generator_fingerprint)
    assert read.documents == memory.documents
    assert all(torch.equal(read.states[name], state) for name, state in memory.states.items())
    assert list(store.ids()) == ["ann", "bo.2"]
    store.delete("ann")
    store.delete("ann")
    assert list(store.ids()) == ["bo.2"]
    with pytest.raises(DataError, match="no memory 'ann'"):
        store.get("ann")


def test_a_file_that_was_saved_into_the_folder_is_in_the_store(tmp_path, memory):
    memory.save(tmp_path / "store" / "ann.safetensors")
    (tmp_path / "store" / ".bo.safetensors.tmp").write_text("half")
    assert list(MemoryStore(tmp_path / "store").ids()) == ["ann"]
    assert MemoryStore(tmp_path / "store").get("ann").documents == memory.documents


def test_a_new_content_has_a_new_version(store, model, memory):
    store.put("ann", memory)
    first = store.version("ann")
    assert store.version("ann") == first
    store.put("ann", memory + model.contextualize("Bo mends pumps."))
    assert store.version("ann") != first
    assert store.get("ann").num_chunks > memory.num_chunks


@pytest.mark.parametrize("name", ["", "../ann", "a/b", ".hidden", "ann.safetensors", "a" * 201, "a\n", "ä"])
def test_a_name_is_no_path(store, folders, memory, name):
    for call in (store.get, store.version, store.delete, folders.adapter):
        with pytest.raises(ConfigError, match="can't be called"):
            call(name)
    with pytest.raises(ConfigError, match="can't be called"):
        store.put(name, memory)


def test_another_generators_memory_is_refused(store, memory):
    store.put("ann", memory)
    with pytest.raises(FingerprintMismatchError):
        store.get("ann", "another")


def test_an_unknown_kind_of_url_is_told():
    with pytest.raises(ConfigError, match="nowhere"):
        MemoryStore("nowhere://bucket/memories")


def test_adapters_are_made_on_first_use_and_kept(model, store, folders, memory, monkeypatch):
    assert folders.adapter("ann") is None
    store.put("ann", memory, "float64")
    path = folders.adapter("ann")
    assert path is not None
    written, expected = load_peft(path), model.adapter(memory)
    for name in expected:
        torch.testing.assert_close(written[name].delta(), expected[name].delta(), rtol=0.02, atol=0.02)
    monkeypatch.setattr(adapter_folders, "save_peft", lambda *_, **__: pytest.fail("made again"))
    assert folders.adapter("ann") == path


def test_a_memory_that_grew_has_another_adapter(model, store, folders, memory):
    store.put("ann", memory)
    first = folders.adapter("ann")
    both = memory + model.contextualize("Bo mends pumps.")
    store.put("ann", both, "float64")
    second = folders.adapter("ann")
    assert first != second and second is not None
    name = "model.layers.1.mlp.down_proj"
    torch.testing.assert_close(load_peft(second)[name].delta(), model.adapter(both)[name].delta(), rtol=0.02, atol=0.02)


def test_threads_get_the_same_whole_folder(store, folders, memory):
    store.put("ann", memory)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(folders.adapter("ann"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len(set(found)) == 1


def test_folders_are_not_padded(store, folders, model, memory):
    store.put("ann", memory)
    made, own = folders.adapter("ann"), model.adapter(memory)
    assert made is not None
    ranks = {name: factors.rank for name, factors in own.items()}
    assert {name: factors.rank for name, factors in load_peft(made).items()} == ranks
    assert set(ranks.values()) - {8}, "8 is the least rank that padding gives"


def test_a_damaged_memory_is_told(tmp_path, model):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "ann.safetensors").write_bytes(b"broken")
    folders = AdapterFolders(MemoryStore(tmp_path / "store"), model.checkpoint, tmp_path / "adapters")
    with pytest.raises(CheckpointError):
        folders.adapter("ann")


def test_the_environment_says_which_generator_rank_and_folder(tmp_path, model, memory, monkeypatch):
    save_generator(tmp_path / "generator.safetensors", model.checkpoint)
    memory.save(tmp_path / "store" / "ann.safetensors")
    monkeypatch.setenv("GENERATIVE_ADAPTER_GENERATOR", str(tmp_path / "generator.safetensors"))
    monkeypatch.setenv("GENERATIVE_ADAPTER_FOLDERS", str(tmp_path / "adapters"))
    monkeypatch.setenv("GENERATIVE_ADAPTER_RANK", "8")
    path = folders_from_environment(str(tmp_path / "store")).adapter("ann")
    assert path is not None and path.is_relative_to(tmp_path / "adapters" / "ann")
    assert load_peft(path).rank == 8
    monkeypatch.setenv("GENERATIVE_ADAPTER_RANK", "9")
    with pytest.raises(ConfigError, match="RANK must be one of"):
        folders_from_environment(str(tmp_path / "store"))


def test_without_a_store_nothing_is_registered(monkeypatch):
    monkeypatch.delenv("GENERATIVE_ADAPTER_STORE", raising=False)
    register()  # would import vLLM


def test_numbers_are_positive_stable_and_differ():
    assert stable_number("context:ann") == stable_number("context:ann") > 0
    assert len({stable_number(f"context:{number}") for number in range(1000)}) == 1000
