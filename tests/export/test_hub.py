"""Generators and adapters as the hub keeps them; what is uploaded, and what is found where a file is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError

from generative_adapter.checkpoint import find_generator, load_generator_alone, save_generator, shipped_generator
from generative_adapter.errors import CheckpointError, DataError
from generative_adapter.export.hub import push_adapter, push_generator, save_generator_folder
from generative_adapter.export.peft import save_peft


class Hub:
    """What an upload was called with; `refuse` is raised instead."""

    def __init__(self) -> None:
        self.repositories: list[tuple[str, bool | None]] = []
        self.files: dict[str, bytes] = {}
        self.refuse: Exception | None = None

    def create_repo(self, _api: HfApi, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        if self.refuse is not None:
            raise self.refuse
        assert exist_ok
        self.repositories.append((repo_id, private))

    def upload_folder(self, _api: HfApi, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        assert commit_message
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: made.create_repo(*args, **kwargs))
    monkeypatch.setattr(HfApi, "upload_folder", lambda *args, **kwargs: made.upload_folder(*args, **kwargs))
    return made


def test_a_folder_holds_weights_settings_and_a_card(model, tmp_path):
    folder = save_generator_folder(model.checkpoint, tmp_path / "generator", dtype=torch.float32)
    assert load_generator_alone(find_generator(folder)).fingerprint == model.generator_fingerprint
    settings = json.loads((folder / "config.json").read_text())
    assert settings["generator"]["encoder"]["width"] == 15
    assert settings["fingerprint"] == model.generator_fingerprint
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "generative-adapter" and "lora" in (card.data.tags or [])
    assert "from_pretrained" in card.text
    again = save_generator_folder(model.checkpoint, tmp_path / "generator", card="---\nlicense: mit\n---\nMine.")
    assert ModelCard.load(again / "README.md").data.license == "mit"


def test_a_folder_of_other_files_is_kept(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not replaced"):
        save_generator_folder(model.checkpoint, tmp_path)


def test_a_card_names_the_data_that_the_file_names(model, tmp_path):
    recipe = {"sources": [{"paths": ["data/notes.jsonl"]}, {"dataset": "user/questions"}]}
    import dataclasses

    checkpoint = dataclasses.replace(model.checkpoint, training={"recipe": recipe, "step": 12}, base_name="user/base")
    folder = save_generator_folder(checkpoint, tmp_path / "generator")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "user/base"
    assert "- notes.jsonl\n- user/questions\n" in card.text and "12 steps" in card.text


def test_a_generator_is_uploaded_whole(model, hub):
    address = push_generator(model.checkpoint, "user/generator", private=True)
    assert address == "https://hub/user/generator/commit/1"
    assert hub.repositories == [("user/generator", True)]
    assert hub.files.keys() == {"generator.safetensors", "config.json", "README.md"}
    assert b'from_pretrained("user/generator")' in hub.files["README.md"]


def test_an_adapter_is_uploaded_with_its_base_models_name(model, hub, tmp_path):
    memory = model.contextualize("Ann lives in Bonn.")
    save_peft(model.adapter(memory), tmp_path / "lora", "user/base", model=model.base.model)
    push_adapter(tmp_path / "lora", "user/ann")
    assert hub.files.keys() == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "user/base"
    card = ModelCard(hub.files["README.md"].decode())
    assert (card.data.base_model, card.data.library_name) == ("user/base", "peft")
    assert 'PeftModel.from_pretrained(base, "user/ann")' in card.text


def test_what_the_hub_refuses_is_told(model, hub, tmp_path):
    hub.refuse = HfHubHTTPError("403: not yours", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="not yours"):
        push_generator(model.checkpoint, "user/generator")
    with pytest.raises(CheckpointError, match="genadapter export"):
        push_adapter(tmp_path, "user/ann")


def test_a_hub_id_is_found_in_the_hubs_cache(model, tmp_path, monkeypatch, tiny_llama_base):
    """As `hf_hub_download` leaves it there, without a network."""
    commit = "a" * 40
    kept = tmp_path / "models--user--generator"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    save_generator(kept / "snapshots" / commit / "generator.safetensors", model.checkpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in ("user/generator", "user/generator@main", f"user/generator@{commit}"):
        assert load_generator_alone(find_generator(source)).fingerprint == model.generator_fingerprint
    with pytest.raises(CheckpointError, match="can't be had from the hub"):
        find_generator("user/nothing")
    with pytest.raises(CheckpointError, match="can't be had from the hub"):
        find_generator("user/generator@other")


def test_what_is_no_hub_id_is_a_missing_file(tmp_path):
    for source in ("nothing.safetensors", tmp_path / "a" / "b.safetensors", "../x/y", "a/b/c"):
        with pytest.raises(CheckpointError, match="no generator file"):
            find_generator(source)
    assert find_generator() == shipped_generator()
