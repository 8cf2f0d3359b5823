"""Fingerprints: short hashes that tell which base model or generator a file belongs to.

A base model is told by a sample of its weights, since hashing gigabytes at every start would be slow; a generator is
small and hashed whole. Leaves out: what to do on a mismatch (the readers of memories and generators raise).
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

SAMPLES_PER_PARAMETER = 256
_FINGERPRINT_BYTES = 16
_CONFIG_NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def base_model_fingerprint(model: torch.nn.Module) -> str:
    """32 hex digits that tell one set of base weights from another.

    Hashes the architecture's name, its sizes and, for each parameter in name order, its name, shape and at most 256
    evenly strided elements as bfloat16, so a float32 and a bfloat16 load of the same bfloat16 weights agree. An edit
    that spares every sampled element goes unseen.

    Args:
        model: the model; its parameters may be on any device and of any floating type.
    """
    digest = hashlib.sha256()
    digest.update(f"{type(model).__name__}\n{_config_summary(getattr(model, 'config', None))}\n".encode())
    parameters = sorted(model.named_parameters())
    for name, parameter in parameters:
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
    for sample in _samples_on_cpu([parameter for _, parameter in parameters]):
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.digest()[:_FINGERPRINT_BYTES].hex()


def tensors_fingerprint(tensors: dict[str, torch.Tensor], config_json: str) -> str:
    """32 hex digits over every byte of `tensors`, cast to float32, in name order, and over `config_json`.

    Args:
        tensors: the tensors of a generator, by name.
        config_json: its configuration; the same settings must be written the same way to agree.
    """
    digest = hashlib.sha256()
    digest.update(f"{len(config_json)}\n{config_json}\n".encode())
    for name in sorted(tensors):
        values = tensors[name].detach().to(device="cpu", dtype=torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).numpy().tobytes())
    return digest.digest()[:_FINGERPRINT_BYTES].hex()


def _config_summary(config: Any) -> str:
    numbers = [f"{key}={getattr(config, key, None)}" for key in _CONFIG_NUMBERS]
    rope_parameters = getattr(config, "rope_parameters", None)
    rope_theta = getattr(config, "rope_theta", None)
    if rope_theta is None and isinstance(rope_parameters, dict):
        rope_theta = rope_parameters.get("rope_theta")
    numbers.append(f"rope_theta={float(rope_theta):.6g}" if rope_theta is not None else "rope_theta=None")
    return " ".join(numbers)


def _samples_on_cpu(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Samples of the parameters in their order, brought over in one transfer per run of parameters on one device."""
    chunks: list[torch.Tensor] = []
    pending: list[torch.Tensor] = []
    for parameter in parameters:
        sample = _strided_sample(parameter.detach())
        if pending and pending[0].device != sample.device:
            chunks.append(torch.cat(pending).cpu())
            pending = []
        pending.append(sample)
    if pending:
        chunks.append(torch.cat(pending).cpu())
    return chunks


def _strided_sample(values: torch.Tensor) -> torch.Tensor:
    """At most `SAMPLES_PER_PARAMETER` elements as bfloat16; the stride is odd, so that it walks over all columns."""
    stride = max(1, -(-values.numel() // SAMPLES_PER_PARAMETER))
    if stride > 1:
        stride |= 1
    return values.reshape(-1)[::stride].to(torch.bfloat16)
