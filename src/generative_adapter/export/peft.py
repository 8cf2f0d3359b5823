"""Adapters as PEFT keeps them on disk, which PEFT, transformers, vLLM, SGLang and LoRAX load; and back.

The written form is the plainest there is, so that every engine takes it: one rank for all tensors out of those that
vLLM knows, the scale inside B, `lora_alpha = r`, no bias, no patterns. With `one_rank=False` every target keeps its own
rank, which PEFT, transformers and vLLM read too, and takes no more room than it needs. Leaves out: other formats, and
running adapters (`base_model.inject`). PEFT itself is not needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.targets import find_blocks, is_transposed, linear_shape
from generative_adapter.errors import AdapterError, CheckpointError, ConfigError
from generative_adapter.export.folders import new_folder
from generative_adapter.export.hub import CARD_FILE, adapter_card
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors
from generative_adapter.generator.storage import write_json, write_safetensors

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<letter>[AB])\.weight")
# What a config may ask for beyond plain factors; each must be absent or empty here.
_EXTRAS = ("modules_to_save", "use_dora", "lora_bias", "layer_replication")


@dataclass(frozen=True)
class PeftExport:
    """What was written.

    Attributes:
        folder: where.
        base_name: the base model's name in the config.
        rank: r of all tensors, or the largest that they may have.
        dtype: number format, a key of `DTYPES`.
        num_targets: linear layers that the adapter changes.
        num_zero_targets: layers that got zeros, so that every block has the same targets.
        truncation_error: sqrt(sum ||W - W'||^2 / sum ||W||^2) of a smaller rank; 0 where none was asked for.
        num_bytes: of the tensor file.
    """

    folder: Path
    base_name: str
    rank: int
    dtype: str
    num_targets: int
    num_zero_targets: int
    truncation_error: float
    num_bytes: int


def save_peft(
    adapter: LowRankAdapter,
    folder: str | Path,
    base_name: str,
    *,
    model: nn.Module | None = None,
    rank: int | None = None,
    dtype: str = "bf16",
    one_rank: bool = True,
) -> PeftExport:
    """Writes an adapter as a PEFT folder: `adapter_config.json`, `adapter_model.safetensors` and a model card.

    Tensors are named `base_model.model.<module>.lora_A.weight` `[r, d_in]` and `.lora_B.weight` `[d_out, r]`; the
    update is B A, since `lora_alpha = r`. The folder is complete or absent; an older export in it is replaced.

    Args:
        adapter: its factors hold the generator's scale already.
        folder: where to write.
        base_name: what the base model is called where the adapter will run: a hub id or a path.
        model: the base model. With it the targets are checked, and targets that only some blocks have get zeros in the
            others: LoRAX drops a module that is missing in a block.
        rank: one of `RANKS`; None: the least that holds the adapter. Factors are padded with zeros, or truncated to
            the nearest adapter of that rank.
        dtype: `bf16`, `fp16` or `fp32`.
        one_rank: pad all targets to one rank, and blocks without a target with zeros. False: neither; the config tells
            each target's rank (`rank_pattern`, `alpha_pattern`), which LoRAX and engines like it don't read.

    Raises:
        ConfigError: when `rank`, `dtype` or `base_name` is not to be had.
        AdapterError: when the adapter is empty, doesn't fit the model, or holds numbers that the format can't.
        DataError: when `folder` holds something else.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; give {', '.join(DTYPES)}")
    if not base_name.strip():
        raise ConfigError("the base model's name is empty; give the hub id or path that the adapter is to run with")
    if not adapter:
        raise AdapterError("the adapter has no target, so there is nothing to write; make one from a memory")
    chosen = _choose_rank(adapter.rank, rank)
    cut, error = adapter.truncate(chosen) if chosen < adapter.rank else (adapter, 0.0)
    full = cut if model is None else _same_in_every_block(cut, model, with_zeros=one_rank)
    tensors: dict[str, Tensor] = {}
    for name in sorted(full):
        down, up = _padded(full[name], chosen if one_rank else full[name].rank)
        for letter, tensor in (("A", down), ("B", up)):
            tensors[f"base_model.model.{name}.lora_{letter}.weight"] = _as_dtype(tensor, dtype, name)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": chosen,
        "lora_alpha": chosen,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(full) if model is None else _shortest_names(full, model),
        **({} if one_rank else _patterns(full, chosen)),
        "fan_in_fan_out": model is not None and all(is_transposed(find_linear(model, name)) for name in full),
        "inference_mode": True,
    }
    folder = Path(folder)
    with new_folder(folder, (CONFIG_FILE, TENSOR_FILE, CARD_FILE)) as temporary:
        (temporary / CARD_FILE).write_text(adapter_card(base_name, chosen, len(cut)), encoding="utf-8")
        write_safetensors(temporary / TENSOR_FILE, tensors, {"format": "pt"})
        write_json(temporary / CONFIG_FILE, config)
        num_bytes = (temporary / TENSOR_FILE).stat().st_size  # a trimmer may delete the folder once it has its name
    return PeftExport(folder, base_name, chosen, dtype, len(cut), len(full) - len(cut), error, num_bytes)


def load_peft(folder: str | Path) -> LowRankAdapter:
    """The adapter in a PEFT folder, its scale (`lora_alpha / r`) folded into the up factors, in float32.

    Raises:
        CheckpointError: when a file is missing or damaged, or the config asks for more than a plain LoRA; says what to
            do.
    """
    folder = Path(folder)
    config = _read_config(folder)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: r {rank!r} and lora_alpha {alpha!r} are no numbers; export it again"
        )
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read_tensors(folder).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(
                f"{folder / TENSOR_FILE}: the tensor {key!r} is not of a plain LoRA of linear layers; merge this "
                "adapter into its base model with PEFT instead"
            )
        pairs.setdefault(match["module"], {})[match["letter"]] = tensor.float()
    factors = {}
    for name, pair in pairs.items():
        shapes = {letter: tuple(tensor.shape) for letter, tensor in pair.items()}
        down, up = pair.get("A"), pair.get("B")
        own = _of_pattern(config.get("rank_pattern"), name, rank)
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or {down.shape[0], up.shape[1]} != {own}:
            raise CheckpointError(
                f"{folder / TENSOR_FILE}: {name!r} has {shapes}, A [{own}, in] and B [out, {own}] were expected; "
                "the file is damaged or not of this config: export the adapter again"
            )
        scale = _of_pattern(config.get("alpha_pattern"), name, alpha)
        factors[name] = LowRankFactors(down, up * (scale / (own**0.5 if config.get("use_rslora") else own)))
    if not factors:
        raise CheckpointError(f"{folder / TENSOR_FILE}: it holds no tensor; export the adapter again")
    return LowRankAdapter(factors)


def _choose_rank(own: int, asked: int | None) -> int:
    if asked is not None:
        if asked not in RANKS:
            raise ConfigError(f"rank {asked} is none that every engine takes; give one of {', '.join(map(str, RANKS))}")
        return asked
    fitting = [rank for rank in RANKS if rank >= own]
    if not fitting:
        raise ConfigError(
            f"the adapter has rank {own}, engines take at most {RANKS[-1]}; give that rank or less to truncate it"
        )
    return fitting[0]


def _patterns(adapter: LowRankAdapter, rank: int) -> dict[str, dict[str, int]]:
    """What a config says of targets whose rank is another."""
    others = {re.escape(name): factors.rank for name, factors in sorted(adapter.items()) if factors.rank != rank}
    return {"rank_pattern": others, "alpha_pattern": others}


def _of_pattern(pattern: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """The value of the first key that a module's path is, or ends in, as PEFT finds it."""
    found = (value for key, value in (pattern or {}).items() if re.fullmatch(rf"(.*\.)?({key})", name))
    return next(found, otherwise)


def _padded(factors: LowRankFactors, rank: int) -> tuple[Tensor, Tensor]:
    missing = rank - factors.rank
    down = torch.cat([factors.down, factors.down.new_zeros(missing, factors.down.shape[1])])
    up = torch.cat([factors.up, factors.up.new_zeros(factors.up.shape[0], missing)], dim=1)
    return down, up


def _as_dtype(tensor: Tensor, dtype: str, name: str) -> Tensor:
    converted = tensor.detach().cpu().to(DTYPES[dtype])
    if not bool(converted.isfinite().all()):
        remedy = "the adapter is broken, make it again" if not bool(tensor.isfinite().all()) else "give dtype bf16"
        raise AdapterError(f"{name!r} holds numbers that are not finite in {dtype}; {remedy}")
    return converted


def _same_in_every_block(adapter: LowRankAdapter, model: nn.Module, *, with_zeros: bool) -> LowRankAdapter:
    """The adapter, which must fit, with zeros for the targets that only some blocks have; block by block."""
    for name, factors in adapter.items():
        given, shape = (factors.down.shape[1], factors.up.shape[0]), linear_shape(find_linear(model, name))
        if given != shape:
            raise AdapterError(f"{name!r}: the adapter maps {given[0]} -> {given[1]}, the layer {shape}")
    if not with_zeros:
        return adapter
    path, blocks = find_blocks(model)
    inside = re.compile(re.escape(path) + r"\.\d+\.(.+)")
    like = {match[1]: adapter[name].down for name in adapter if (match := inside.fullmatch(name))}
    full = dict(adapter)
    for index, block in enumerate(blocks):
        for target, example in like.items():
            name = f"{path}.{index}.{target}"
            shape = linear_shape(block.get_submodule(target)) if _has(block, target) else None
            if name not in full and shape is not None:
                rank = example.shape[0]
                full[name] = LowRankFactors(example.new_zeros(rank, shape[0]), example.new_zeros(shape[1], rank))
    return LowRankAdapter(full)


def _has(module: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in module.named_modules())


def _shortest_names(adapter: Mapping[str, Any], model: nn.Module) -> list[str]:
    """The ends of module paths that pick exactly the adapter's targets among the model's linears, as PEFT does."""
    linears = [name for name, module in model.named_modules() if linear_shape(module) is not None]
    found = set()
    for name in adapter:
        parts = name.split(".")
        ends = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        picked = (end for end in ends if all(other in adapter for other in linears if f".{other}".endswith(f".{end}")))
        found.add(next(picked, name))
    return sorted(found)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: this is no PEFT folder, it has no {CONFIG_FILE}; write one with `genadapter export`"
        ) from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: this can't be read as JSON ({error}); export the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise CheckpointError(f"{path}: peft_type is {kind!r}, only LORA can be read; give a LoRA adapter")
    extras = [name for name in _EXTRAS if config.get(name)] + ["bias"] * (config.get("bias", "none") != "none")
    if extras:
        raise CheckpointError(
            f"{path}: {', '.join(extras)} can't be expressed as plain factors; give a LoRA without, or merge this one "
            "into its base model with PEFT"
        )
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(
            isinstance(each, int | float) and each for each in pattern.values()
        ):
            raise CheckpointError(f"{path}: {name} is {pattern!r}, numbers by layer were expected; export it again")
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / TENSOR_FILE
    if not path.is_file():
        other = "; adapter_model.bin is not read, since unpickling runs code: save it with PEFT as safetensors"
        pickled = (folder / "adapter_model.bin").is_file()
        raise CheckpointError(f"{path}: there is no such file{other if pickled else '; export the adapter again'}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: the file is damaged ({error}); export the adapter again") from error
