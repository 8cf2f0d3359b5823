"""Generators on disk: one safetensors file whose header carries the versioned settings as JSON.

Tensor names are `<target>.<projection>`, such as `model.layers.7.self_attn.o_proj.key_proj`, and with an encoder also
`encoder.<...>` and `memory.<...>`. Leaves out: optimiser state and other things only a training run needs
(`training.state`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from generative_adapter.base_model.fingerprint import tensors_fingerprint
from generative_adapter.base_model.generator_building import build_generator, generator_of_weights
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.config import GeneratorConfig, PromptConfig
from generative_adapter.config_mapping import from_mapping, to_mapping
from generative_adapter.errors import CheckpointError, ConfigError, FingerprintMismatchError
from generative_adapter.generator.protocol import ContextGenerator
from generative_adapter.generator.storage import write_safetensors

GENERATOR_FORMAT = "generative-adapter-generator"
GENERATOR_FILE = "generator.safetensors"
_VERSION = 1
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HEADER_KEYS = {"generator", "prompt", "base_name", "base_fingerprint", "training"}


@dataclass(frozen=True)
class GeneratorCheckpoint:
    """A generator with everything needed to use it.

    Attributes:
        generator: the trained network.
        config: its form.
        prompt: the wording it was trained with.
        base_name: name of its base model.
        base_fingerprint: fingerprint of its base model.
        training: what it was trained on and for how long, as its run recorded it.
    """

    generator: ContextGenerator
    config: GeneratorConfig
    prompt: PromptConfig
    base_name: str
    base_fingerprint: str
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of all weights and of the settings that change what they mean."""
        return generator_fingerprint(self.generator, self.config)


def shipped_generator() -> Path:
    """Path of the generator inside this package, trained for the embedded base model.

    Raises:
        CheckpointError: when the installation lacks it.
    """
    path = Path(__file__).parent / "checkpoints" / "smollm2-135m-instruct.safetensors"
    if not path.is_file():
        raise CheckpointError(f"this installation has no shipped generator ({path} is missing); pass one or train one")
    return path


def find_generator(source: str | Path | None = None) -> Path:
    """Path of a generator's file: a file, a folder that holds one, a hub id, or the shipped one.

    Args:
        source: a path, or `user/name` or `user/name@revision` on the Hugging Face hub, which is asked only where there
            is no such path; None: the shipped generator.

    Raises:
        CheckpointError: when there is none.
    """
    if source is None:
        return shipped_generator()
    path = Path(source)
    if path.is_dir():
        path = path / GENERATOR_FILE
    if path.is_file():
        return path
    repo_id, _, revision = str(source).partition("@")
    if _HUB_ID.fullmatch(repo_id) is None:
        raise CheckpointError(f"no generator file at {path}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, GENERATOR_FILE, revision=revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"no generator file at {path}, and {GENERATOR_FILE} of {repo_id} can't be had from the hub: {error}"
        ) from error


def generator_fingerprint(generator: ContextGenerator, config: GeneratorConfig) -> str:
    """Hash of a generator's weights and settings; two generators that write different memories differ in it."""
    return _fingerprint(named_weights(generator), config)


def generator_file_fingerprint(path: str | Path) -> str:
    """The fingerprint of the generator in a file, without loading a base model; that of `load_generator`'s checkpoint.

    Raises:
        CheckpointError: when the file is missing, damaged or of another kind.
    """
    path = Path(path)
    config, _ = _read_settings(path, _read_header(path))
    return _fingerprint(load_file(path), config)


def named_weights(generator: ContextGenerator) -> dict[str, Tensor]:
    """Every tensor of a generator under its name on disk."""
    return {name: tensor.detach() for name, tensor in generator.named_weights().items()}


def load_weights(
    generator: ContextGenerator, tensors: Mapping[str, Tensor], what: str, *, may_lack: str | tuple[str, ...] = ()
) -> None:
    """Copies tensors by name into a generator.

    Args:
        generator: keeps what it has of the tensors that may lack.
        tensors: by name.
        what: where they come from, for messages.
        may_lack: tensors with this, or one of these, in their names need not be given.

    Raises:
        CheckpointError: when names or shapes differ; says which.
    """
    own = generator.named_weights()
    parts = (may_lack,) if isinstance(may_lack, str) else may_lack
    own = {name: p for name, p in own.items() if name in tensors or not any(part in name for part in parts)}
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(
            f"{what} doesn't fit this generator: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(extra)} unknown {extra[:2]}"
        )
    with torch.no_grad():
        for name, weight in own.items():
            if weight.shape != tensors[name].shape:
                raise CheckpointError(
                    f"{what}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(weight.shape)}"
                )
            weight.copy_(tensors[name])


def save_generator(path: str | Path, checkpoint: GeneratorCheckpoint, dtype: torch.dtype = torch.float32) -> None:
    """Writes a generator, first to a temporary name and then renamed.

    Raises:
        CheckpointError: when a weight isn't finite; nothing is written then.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in named_weights(checkpoint.generator).items()}
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"not written: {len(broken)} tensors hold non-finite numbers, the first is {broken[0]}")
    header = {
        "generator": to_mapping(checkpoint.config),
        "prompt": to_mapping(checkpoint.prompt),
        "base_name": checkpoint.base_name,
        "base_fingerprint": checkpoint.base_fingerprint,
        "training": dict(checkpoint.training),
    }
    metadata = {"format": GENERATOR_FORMAT, "version": str(_VERSION), "settings": json.dumps(header)}
    write_safetensors(Path(path), tensors, metadata)


def load_generator(path: str | Path, base: BaseModel, *, any_base: bool = False) -> GeneratorCheckpoint:
    """The generator in a file, in float32, on the base model's device and ready to use.

    Args:
        path: what `save_generator` wrote.
        base: the base model it is to run with.
        any_base: take a generator of another base model of the same shapes (a fine-tune of it, say).

    Raises:
        CheckpointError: when the file is missing, damaged, of another kind, or doesn't fit.
        FingerprintMismatchError: when it was trained for another base model.
    """
    header = _read_header(Path(path))
    if header["base_fingerprint"] != base.fingerprint and not any_base:
        raise FingerprintMismatchError(
            f"{path} was trained for {header['base_name']} ({header['base_fingerprint']}), not for {base.name} "
            f"({base.fingerprint}); load that base model, or allow any base of the same shapes"
        )
    config, prompt = _read_settings(Path(path), header)
    generator = build_generator(config, base)
    with safe_open(Path(path), framework="pt") as file:
        load_weights(generator, {name: file.get_tensor(name) for name in file.keys()}, str(path))  # noqa: SIM118
    generator.eval().requires_grad_(False)
    return GeneratorCheckpoint(
        generator, config, prompt, header["base_name"], header["base_fingerprint"], header["training"]
    )


def load_generator_alone(path: str | Path) -> GeneratorCheckpoint:
    """The generator in a file without its base model: it can make adapters of memories, but read no text.

    What it needs to know of the base model, the shapes of its targets, is in the shapes of the weights.

    Raises:
        CheckpointError: when the file is missing, damaged or of another kind.
    """
    path = Path(path)
    header = _read_header(path)
    config, prompt = _read_settings(path, header)
    tensors = load_file(path)
    try:
        generator = generator_of_weights(config, tensors)
    except KeyError as error:
        raise CheckpointError(f"{path} doesn't hold the weights of its settings: {error} is missing") from error
    load_weights(generator, tensors, str(path))
    generator.eval().requires_grad_(False)
    return GeneratorCheckpoint(
        generator, config, prompt, header["base_name"], header["base_fingerprint"], header["training"]
    )


def read_generator_info(path: str | Path) -> dict[str, Any]:
    """What a generator's file says of itself, without loading the base model.

    Returns:
        `generator`, `prompt`, `base_name`, `base_fingerprint`, `training`, and `num_parameters`, `num_tensors`,
        `num_bytes`, `dtype`.

    Raises:
        CheckpointError: when the file is missing, damaged or of another kind.
    """
    path = Path(path)
    header = _read_header(path)
    with safe_open(path, framework="pt") as file:
        slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
        shapes = [part.get_shape() for part in slices]
        dtypes = sorted({str(part.get_dtype()) for part in slices})
    sizes = [int(torch.Size(shape).numel()) for shape in shapes]
    return header | {
        "num_parameters": sum(sizes),
        "num_tensors": len(sizes),
        "num_bytes": path.stat().st_size,
        "dtype": ", ".join(dtypes),
    }


def _fingerprint(tensors: Mapping[str, Tensor], config: GeneratorConfig) -> str:
    settings = to_mapping(config)
    if not config.subspace_iterations:  # memories from before there was this setting stay readable
        del settings["subspace_iterations"]
    if config.encoder is None:  # nor this one
        del settings["encoder"]
    else:
        for name in ("unit_layers", "surroundings_dim"):  # nor these
            if not getattr(config.encoder, name):
                del settings["encoder"][name]
    return tensors_fingerprint(dict(tensors), json.dumps(settings, sort_keys=True))


def _read_settings(path: Path, header: Mapping[str, Any]) -> tuple[GeneratorConfig, PromptConfig]:
    try:
        config = from_mapping(GeneratorConfig, header["generator"], "generator")
        prompt = from_mapping(PromptConfig, header["prompt"], "prompt")
    except ConfigError as error:
        raise CheckpointError(f"{path}: its settings can't be read by this release: {error}") from error
    return config, prompt


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"no generator file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} can't be read as safetensors: {error}") from error
    if metadata.get("format") != GENERATOR_FORMAT:
        raise CheckpointError(f"{path} is not a generator: its format is {metadata.get('format')!r}")
    if metadata.get("version") != str(_VERSION):
        raise CheckpointError(
            f"{path} is a generator of version {metadata.get('version')}, this release reads version {_VERSION}"
        )
    try:
        header = json.loads(metadata["settings"])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: its settings are damaged: {error}") from error
    missing = _HEADER_KEYS - (header.keys() if isinstance(header, dict) else set())
    if missing:
        raise CheckpointError(f"{path}: its settings are damaged: {', '.join(sorted(missing))} missing")
    return header
