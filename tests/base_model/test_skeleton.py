"""Base models without weights: where the config comes from, and the sizes of known models."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from generative_adapter.base_model.costs import base_sizes
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.skeleton import load_skeleton, packaged_models
from generative_adapter.errors import BaseModelError


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


PUBLISHED = {
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_packaged_models_have_their_published_sizes(name: str) -> None:
    skeleton = load_skeleton(name)
    assert skeleton.name == name
    assert skeleton.config_from in ("package", "hub cache")
    assert base_sizes(skeleton.model).num_parameters == PUBLISHED[name]
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_all_packaged_models_are_known_here() -> None:
    assert set(packaged_models()) == set(PUBLISHED)


@pytest.mark.parametrize("source", [None, "embedded"])
def test_embedded(source: str | None) -> None:
    skeleton = load_skeleton(source)
    assert (skeleton.name, skeleton.config_from) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "package")


def test_folder(family_base: BaseModel, tmp_path: Path) -> None:
    family_base.model.config.save_pretrained(tmp_path)  # and nothing else
    skeleton = load_skeleton(tmp_path)
    assert skeleton.config_from == "folder"
    found = {name: parameter.shape for name, parameter in skeleton.model.named_parameters()}
    assert found == {name: parameter.shape for name, parameter in family_base.model.named_parameters()}


def test_order_of_places(monkeypatch: pytest.MonkeyPatch, tiny_llama_base: BaseModel) -> None:
    held: set[bool] = set()
    asked: list[bool] = []

    def from_pretrained(name: str, local_files_only: bool = False) -> Any:
        asked.append(local_files_only)
        if local_files_only in held:
            return tiny_llama_base.model.config
        raise OSError(f"{name} is not there")

    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    name = "Qwen/Qwen3-4B-Instruct-2507"
    assert load_skeleton(name).config_from == "package"
    assert asked == [True]  # the hub wasn't asked
    held.add(False)
    assert load_skeleton("somebody/model").config_from == "hub"
    assert load_skeleton(name).config_from == "package"
    held.add(True)
    assert load_skeleton(name).config_from == "hub cache"


def test_no_config_anywhere() -> None:
    with pytest.raises(BaseModelError, match=r"'somebody/model'.*hub's local cache.*Qwen3-4B.*give a folder"):
        load_skeleton("somebody/model")


def test_broken_folder(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"holds no config .* config\.json"):
        load_skeleton(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(BaseModelError, match="no causal language model can be made"):
        load_skeleton(tmp_path)
