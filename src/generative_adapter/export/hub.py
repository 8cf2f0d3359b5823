"""Generators and adapters for the Hugging Face hub: folders with a model card, and their upload.

Leaves out: downloading (`checkpoint.find_generator`); an adapter that was uploaded is loaded as any LoRA is.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from generative_adapter.checkpoint import GENERATOR_FILE, GeneratorCheckpoint, save_generator
from generative_adapter.config_mapping import to_mapping
from generative_adapter.errors import CheckpointError
from generative_adapter.export.folders import new_folder
from generative_adapter.generator.storage import write_json

SETTINGS_FILE = "config.json"
CARD_FILE = "README.md"
TAG = "generative-adapter"


def save_generator_folder(
    checkpoint: GeneratorCheckpoint, folder: str | Path, *, dtype: torch.dtype = torch.bfloat16, card: str | None = None
) -> Path:
    """Writes a generator as a folder that the hub shows well: weights, settings and a model card.

    Args:
        checkpoint: the generator.
        folder: where; a generator's folder that stands there is replaced, anything else is not.
        dtype: number format of the weights.
        card: text of the model card; None: one that says what the file itself tells.

    Raises:
        DataError: when `folder` holds something else.
        CheckpointError: when a weight isn't finite.
    """
    with new_folder(Path(folder), (GENERATOR_FILE, SETTINGS_FILE, CARD_FILE)) as temporary:
        save_generator(temporary / GENERATOR_FILE, checkpoint, dtype)
        write_json(temporary / SETTINGS_FILE, _settings(checkpoint))
        (temporary / CARD_FILE).write_text(card or generator_card(checkpoint), encoding="utf-8")
    return Path(folder)


def push_generator(
    checkpoint: GeneratorCheckpoint,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    card: str | None = None,
) -> str:
    """Uploads a generator to the hub; `GenerativeAdapter.from_pretrained(repo_id)` loads it from there.

    Args:
        checkpoint: the generator.
        repo_id: `user/name`; made where there is none.
        private: whether a new repository is; None: the account's default.
        token: of the account; None: the one that `hf auth login` stored.
        dtype: number format of the weights.
        card: text of the model card; None: one that says what the file itself tells.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: when the hub refuses or can't be reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = save_generator_folder(checkpoint, Path(folder) / "generator", dtype=dtype, card=card)
        return _upload(made, repo_id, private, token, "Add generator")


def push_adapter(folder: str | Path, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Uploads an adapter that `save_peft` wrote; any tool that loads LoRA adapters from the hub loads it.

    Args:
        folder: of the adapter.
        repo_id: `user/name`; made where there is none.
        private: whether a new repository is; None: the account's default.
        token: of the account; None: the one that `hf auth login` stored.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: when the folder holds no adapter, or the hub refuses or can't be reached.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no adapter_config.json; write the adapter with `genadapter export` first"
        )
    return _upload(folder, repo_id, private, token, "Add adapter")


def generator_card(checkpoint: GeneratorCheckpoint) -> str:
    """A model card that says what the generator's file tells of itself."""
    recipe: Mapping[str, Any] = checkpoint.training.get("recipe", {})
    paths = sorted({path for source in recipe.get("sources", ()) for path in source.get("paths", ())})
    sources = [Path(path).name for path in paths]
    sources += [str(source["dataset"]) for source in recipe.get("sources", ()) if source.get("dataset")]
    trained = [f"- {name}" for name in sources] or ["- not recorded in the file"]
    steps = checkpoint.training.get("step", "An unrecorded number of")
    return "\n".join(
        [
            _header(checkpoint.base_name, "generative-adapter"),
            f"# Generator for {checkpoint.base_name}",
            "",
            "Turns a text into a low-rank adapter (LoRA) of the base model in one forward pass; the adapted model",
            "answers questions about the text without having it in its prompt.",
            "",
            "```python",
            "from generative_adapter import GenerativeAdapter",
            "",
            'model = GenerativeAdapter.from_pretrained("REPO_ID")',
            'memory = model.contextualize(open("handbook.txt").read())',
            'print(model.generate("What colour are the visitor badges?", memory))',
            "```",
            "",
            "## Training data",
            "",
            *trained,
            "",
            f"{steps} steps; `config.json` holds the whole recipe.",
            "",
        ]
    )


def adapter_card(base_name: str, rank: int, num_targets: int) -> str:
    """A model card of one adapter, for its PEFT folder."""
    return "\n".join(
        [
            _header(base_name, "peft"),
            f"# Generated adapter of {base_name}",
            "",
            f"A LoRA of rank {rank} on {num_targets} linear layers, made of a text in one forward pass. The adapted",
            "model answers questions about the text without having it in its prompt.",
            "",
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{base_name}")',
            'model = PeftModel.from_pretrained(base, "REPO_ID")',
            "```",
            "",
        ]
    )


def _header(base_name: str, library: str) -> str:
    from huggingface_hub import ModelCardData

    is_hub_id = base_name.count("/") == 1 and not base_name.startswith((".", "/"))
    data = ModelCardData(base_model=base_name if is_hub_id else None, library_name=library, tags=[TAG, "lora"])
    return f"---\n{data.to_yaml()}\n---\n"


def _settings(checkpoint: GeneratorCheckpoint) -> dict[str, Any]:
    return {
        "generator": to_mapping(checkpoint.config),
        "prompt": to_mapping(checkpoint.prompt),
        "base_model": checkpoint.base_name,
        "base_fingerprint": checkpoint.base_fingerprint,
        "fingerprint": checkpoint.fingerprint,
        "training": json.loads(json.dumps(dict(checkpoint.training))),
    }


def _upload(folder: Path, repo_id: str, private: bool | None, token: str | None, message: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi(token=token)
    card = folder / CARD_FILE
    if card.is_file():
        card.write_text(card.read_text(encoding="utf-8").replace("REPO_ID", repo_id), encoding="utf-8")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(f"{folder} can't be uploaded to {repo_id}: {error}") from error
    return str(done.commit_url)
