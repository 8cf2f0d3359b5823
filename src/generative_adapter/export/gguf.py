"""Adapters as llama.cpp keeps them: one GGUF file beside the base model's.

A file holds for every target `<name>.lora_a` `[r, d_in]` and `<name>.lora_b` `[d_out, r]` under llama.cpp's own names,
and one alpha; llama.cpp multiplies each update by alpha / r. Where a base model's file keeps a linear in another order
than the model itself, so does the adapter. Leaves out: base models as GGUF, and quantised adapters.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.targets import find_blocks, linear_shape
from generative_adapter.errors import AdapterError, CheckpointError, ConfigError, DataError, MissingDependencyError
from generative_adapter.export.peft import DTYPES
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors
from generative_adapter.generator.storage import write_atomically

# Hugging Face's name of an architecture -> llama.cpp's.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "gpt_neox": "gptneox",
    "gpt2": "gpt2",
}
_TURNED = ("self_attn.q_proj", "self_attn.k_proj")  # of `llama`: rotary halves interleaved
_REORDERED = {"gptneox": ("attention.query_key_value",)}
_ALPHA = "adapter.lora.alpha"


@dataclass(frozen=True)
class GgufExport:
    """What was written.

    Attributes:
        path: of the file.
        architecture: llama.cpp's name of the base model's.
        rank: r of all tensors.
        dtype: number format, a key of `DTYPES`.
        num_targets: linear layers that the adapter changes.
        truncation_error: sqrt(sum ||W - W'||^2 / sum ||W||^2) of a smaller rank; 0 where none was asked for.
        num_bytes: of the file.
    """

    path: Path
    architecture: str
    rank: int
    dtype: str
    num_targets: int
    truncation_error: float
    num_bytes: int


def save_gguf(
    adapter: LowRankAdapter,
    path: str | Path,
    model: nn.Module,
    base_name: str,
    *,
    rank: int | None = None,
    dtype: str = "fp16",
) -> GgufExport:
    """Writes an adapter as a GGUF file for llama.cpp (`--lora`).

    Args:
        adapter: its factors hold the generator's scale already.
        path: of the file; an adapter that stands there is replaced, anything else is not.
        model: the base model, whose architecture decides names and orders.
        base_name: the base model's name, for people.
        rank: largest rank of a target; those above it are truncated to the nearest adapter of it. None: as they are.
        dtype: `fp16`, `bf16` or `fp32`.

    Raises:
        ConfigError: when `rank` or `dtype` is not to be had.
        AdapterError: when the adapter is empty or doesn't fit the model, llama.cpp doesn't know the architecture or
            keeps a target in an order that this release doesn't, or a number can't be held in the format.
        DataError: when something else stands at `path`.
        MissingDependencyError: without the package `gguf`.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; give {', '.join(DTYPES)}")
    if not adapter:
        raise AdapterError("the adapter has no target, so there is nothing to write; make one from a memory")
    if rank is not None and rank <= 0:
        raise ConfigError(f"the rank to truncate to must be positive, got {rank}")
    path = Path(path)
    _check_place(path)
    package = _gguf_package()
    architecture = _architecture(model)
    cut, error = adapter.truncate(rank) if rank is not None and rank < adapter.rank else (adapter, 0.0)
    highest = cut.rank
    names = _names(package, architecture, model)
    tensors: list[tuple[str, Any]] = []
    for name, factors in sorted(cut.items(), key=lambda item: _place(names, item[0])):
        own = names.get(name)
        if own is None:
            raise AdapterError(
                f"{name!r}: llama.cpp has no linear of that kind for {architecture}; export another form"
            )
        given, shape = (factors.down.shape[1], factors.up.shape[0]), linear_shape(find_linear(model, name))
        if given != shape:
            raise AdapterError(f"{name!r}: the adapter maps {given[0]} -> {given[1]}, the layer {shape}")
        ordered = _in_file_order(factors, name, architecture, model)
        scaled = ordered.up * (factors.rank / highest)  # llama.cpp multiplies by alpha / r of each tensor
        tensors.append((f"{own}.lora_a", _numbers(package, ordered.down, dtype, name)))
        tensors.append((f"{own}.lora_b", _numbers(package, scaled, dtype, name)))

    def write(temporary: Path) -> None:
        writer = package.GGUFWriter(temporary, architecture)
        writer.add_type(package.GGUFType.ADAPTER)
        writer.add_string(package.Keys.Adapter.TYPE, "lora")
        writer.add_float32(_ALPHA, float(highest))
        writer.add_string("general.base_model.0.name", base_name)
        writer.add_uint32("general.base_model.count", 1)
        for name, (values, raw_dtype) in tensors:
            writer.add_tensor(name, values, raw_dtype=raw_dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_atomically(path, write)
    return GgufExport(path, architecture, highest, dtype, len(cut), error, path.stat().st_size)


def load_gguf(path: str | Path, model: nn.Module) -> LowRankAdapter:
    """The adapter in a GGUF file, its scale folded into the up factors, in float32.

    Args:
        path: of the file.
        model: the base model it was written for.

    Raises:
        CheckpointError: when the file is missing, damaged, no LoRA, or of another architecture.
        MissingDependencyError: without the package `gguf`.
    """
    path = Path(path)
    package = _gguf_package()
    architecture = _architecture(model)
    if not path.is_file():
        raise CheckpointError(f"no GGUF file at {path}")
    try:
        reader = package.GGUFReader(path)
        kind = _text(reader, "general.type")
        found = _text(reader, "general.architecture")
        alpha = float(reader.fields[_ALPHA].parts[-1][0]) if kind == "adapter" else 0.0
        tensors = {tensor.name: _floats(package, tensor) for tensor in reader.tensors}
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise CheckpointError(f"{path} can't be read as a GGUF adapter ({error}); export the adapter again") from error
    if kind != "adapter":
        raise CheckpointError(f"{path} is a GGUF file of type {kind!r}, not an adapter")
    if found != architecture:
        raise CheckpointError(f"{path} is an adapter for {found} models, this one is {architecture}")
    factors = {}
    for name, own in _names(package, architecture, model).items():
        down, up = tensors.pop(f"{own}.lora_a", None), tensors.pop(f"{own}.lora_b", None)
        if down is None and up is None:
            continue
        if down is None or up is None or down.shape[0] != up.shape[1]:
            raise CheckpointError(f"{path}: the tensors of {own!r} don't fit each other; export the adapter again")
        pair = LowRankFactors(down, up * (alpha / down.shape[0]))
        factors[name] = _in_file_order(pair, name, architecture, model, back=True)
    if tensors:
        raise CheckpointError(f"{path}: {next(iter(tensors))!r} belongs to no linear of this base model")
    return LowRankAdapter(factors)


def _architecture(model: nn.Module) -> str:
    config: Any = model.config
    kind = config.get_text_config().model_type
    if kind not in ARCHITECTURES:
        raise AdapterError(
            f"models of type {kind!r} are none of those whose GGUF names are known here ({', '.join(ARCHITECTURES)}); "
            "use --format peft"
        )
    return ARCHITECTURES[kind]


def _names(package: Any, architecture: str, model: nn.Module) -> dict[str, str]:
    """llama.cpp's name of every linear inside the blocks, such as `blk.3.ffn_down.weight`."""
    kinds = {name: kind for kind, name in package.MODEL_ARCH_NAMES.items()}
    path, blocks = find_blocks(model)
    table = package.get_tensor_name_map(kinds[architecture], len(blocks))
    names = {}
    for name, module in model.named_modules():
        if name.startswith(f"{path}.") and linear_shape(module) is not None:
            found = table.get_name(f"{name}.weight", try_suffixes=(".weight",))
            if found is not None:
                names[name] = found
    return names


def _place(names: dict[str, str], name: str) -> tuple[int, str]:
    """Block and name, so that files are in the order of the blocks."""
    digits = [part for part in name.split(".") if part.isdigit()]
    return int(digits[0]) if digits else 0, names.get(name, name)


def _in_file_order(
    factors: LowRankFactors, name: str, architecture: str, model: nn.Module, *, back: bool = False
) -> LowRankFactors:
    """The factors with outputs in the order that a GGUF file keeps them in, or back from it."""
    if any(name.endswith(end) for end in _REORDERED.get(architecture, ())):
        raise AdapterError(f"{name!r}: GGUF files keep this linear in an order of their own; use --format peft")
    if architecture != "llama" or not name.endswith(_TURNED):
        return factors
    config: Any = model.config
    heads = config.num_attention_heads if name.endswith("q_proj") else config.num_key_value_heads
    up = factors.up
    inner = (2, up.shape[0] // heads // 2)
    shape = inner if not back else inner[::-1]
    return LowRankFactors(factors.down, up.view(heads, *shape, -1).transpose(1, 2).reshape(up.shape))


def _numbers(package: Any, tensor: Tensor, dtype: str, name: str) -> tuple[Any, Any]:
    """The array to write, and its type where numpy has none."""
    converted = tensor.detach().cpu().contiguous().to(DTYPES[dtype])
    if not bool(converted.isfinite().all()):
        remedy = "the adapter is broken, make it again" if not bool(tensor.isfinite().all()) else "give dtype bf16"
        raise AdapterError(f"{name!r} holds numbers that are not finite in {dtype}; {remedy}")
    if dtype == "bf16":
        return converted.view(torch.uint8).numpy(), package.GGMLQuantizationType.BF16
    return converted.numpy(), None


def _floats(package: Any, tensor: Any) -> Tensor:
    values = package.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(values.astype("float32")).reshape(*reversed(tensor.shape.tolist())).clone()


def _text(reader: Any, key: str) -> str:
    field = reader.fields[key]
    return bytes(field.parts[field.data[0]]).decode("utf-8")


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: this is a folder; give the name of a file to write, such as adapter.gguf")
    if path.exists() and path.read_bytes()[:4] != b"GGUF":
        raise DataError(f"{path}: this is no GGUF file, so it is not replaced; give a new name")


def _gguf_package() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise MissingDependencyError("GGUF files need the package gguf; pip install gguf") from error
