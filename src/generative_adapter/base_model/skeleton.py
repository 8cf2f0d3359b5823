"""A base model without its weights: its modules on torch's meta device, from its config alone.

Counts what a model would cost before anything large is downloaded. Leaves out: tokenizers, and everything that
computes (`loading`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from generative_adapter.base_model.dequantise import quiet_transformers
from generative_adapter.base_model.loading import EMBEDDED, EMBEDDED_NAME
from generative_adapter.errors import BaseModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_PACKAGED = Path(__file__).parent / "architectures"
_CONFIG_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError)


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A base model's modules without numbers in them.

    Attributes:
        model: on the meta device.
        name: hub id, folder or file.
        config_from: where the config was found: `folder`, `GGUF file`, `package`, `hub cache` or `hub`.
    """

    model: PreTrainedModel
    name: str
    config_from: str


def load_skeleton(source: str | Path | None = None) -> Skeleton:
    """The modules of the base model at `source`, from its config; no weights are read.

    The config comes from the folder or GGUF file named, else from the local cache of the hub, else from those this
    package carries (`architectures/`), and only then from the hub.

    Args:
        source: what `load_base_model` takes.

    Raises:
        BaseModelError: when there is no config, or no causal language model can be made of it.
    """
    shown = EMBEDDED_NAME if source is None or source == EMBEDDED else str(source)
    config, config_from = _find_config(shown, embedded=shown != str(source))
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except _CONFIG_ERRORS as error:
        raise BaseModelError(
            f"no causal language model can be made of the config of {shown!r} ({_first_line(error)}); a decoder-only "
            "model of an architecture that this release of transformers knows was expected"
        ) from error
    return Skeleton(model.requires_grad_(False), shown, config_from)


def packaged_models() -> tuple[str, ...]:
    """Hub ids of the models whose config this package carries."""
    return tuple(sorted(path.stem.replace("--", "/", 1) for path in _PACKAGED.glob("*.json")))


def _find_config(name: str, embedded: bool) -> tuple[PretrainedConfig, str]:
    from transformers import AutoConfig

    path = Path(name).expanduser()
    if embedded:
        return _packaged_config(name), "package"
    if path.exists():
        try:
            with quiet_transformers():
                if path.is_dir():
                    return AutoConfig.from_pretrained(str(path), local_files_only=True), "folder"
                return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True), "GGUF file"
        except _CONFIG_ERRORS as error:
            raise BaseModelError(
                f"{name!r} holds no config of a model that can be read ({_first_line(error)}); a folder with a "
                "config.json or a .gguf file was expected"
            ) from error
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(name, local_files_only=True), "hub cache"
    except _CONFIG_ERRORS:
        if name in packaged_models():
            return _packaged_config(name), "package"
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(name), "hub"
    except _CONFIG_ERRORS as error:
        raise BaseModelError(
            f"base model {name!r}: its config is in no folder of that name, not in the hub's local cache, not in this "
            f"package ({', '.join(packaged_models())}) and not to be had from the hub ({_first_line(error)}); check "
            "the name, or give a folder with its config.json"
        ) from error


def _packaged_config(name: str) -> PretrainedConfig:
    from transformers import AutoConfig

    values: dict[str, Any] = json.loads((_PACKAGED / f"{name.replace('/', '--', 1)}.json").read_text(encoding="utf-8"))
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
