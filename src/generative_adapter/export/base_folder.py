"""A base model as a folder of safetensors with its tokenizer, as it is or with an adapter merged into its weights.

For tools that can't read what it came from (the embedded base model comes from a GGUF file, which most engines don't
take), or that run no adapters. Leaves out: adapters as they are (`peft`, `gguf`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from generative_adapter.base_model.dequantise import quiet_transformers
from generative_adapter.base_model.inject import merge
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import AdapterError, ConfigError
from generative_adapter.export.folders import new_folder
from generative_adapter.export.peft import DTYPES
from generative_adapter.generator.low_rank import LowRankAdapter


@dataclass(frozen=True)
class MergedExport:
    """What was written.

    Attributes:
        folder: where.
        rank: of the adapter that was merged.
        dtype: number format of the weights.
        truncation_error: sqrt(sum ||W - W'||^2 / sum ||W||^2) of a smaller rank; 0 where none was asked for.
        num_bytes: of all files.
    """

    folder: Path
    rank: int
    dtype: str
    truncation_error: float
    num_bytes: int


def save_base_model(base: BaseModel, folder: str | Path, *, dtype: str | None = None) -> None:
    """Writes a base model and its tokenizer as `save_pretrained` does; `base` is unchanged.

    The folder is complete or absent; nothing is replaced.

    Args:
        base: the base model.
        folder: where to write.
        dtype: `bf16`, `fp16` or `fp32`; None: the one that the model has in memory.

    Raises:
        ConfigError: when `dtype` is unknown.
        DataError: when `folder` holds files already.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; give {', '.join(DTYPES)}")
    model = base.model
    if dtype is not None and DTYPES[dtype] != base.dtype:
        model = copy.deepcopy(base.model).to(DTYPES[dtype])  # pyright: ignore[reportArgumentType,reportCallIssue]
    with new_folder(Path(folder)) as temporary, quiet_transformers():
        model.save_pretrained(temporary)
        base.tokenizer.save_pretrained(temporary)


def save_merged(
    base: BaseModel, adapter: LowRankAdapter, folder: str | Path, *, rank: int | None = None, dtype: str = "bf16"
) -> MergedExport:
    """Writes a plain model whose weights hold the adapter: W = W_base + W_delta, eq. (6), arXiv:2411.05877.

    Merged in float32 and rounded once, to `dtype`; `base` is unchanged.

    Args:
        base: the base model.
        adapter: of a memory.
        folder: where to write; nothing is replaced.
        rank: the adapter is truncated to it where it is larger.
        dtype: `bf16`, `fp16` or `fp32`.

    Raises:
        AdapterError: when the adapter is empty or doesn't fit the model.
        ConfigError: when `rank` or `dtype` is not to be had.
        DataError: when `folder` holds files already.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; give {', '.join(DTYPES)}")
    if rank is not None and rank <= 0:
        raise ConfigError(f"the rank to truncate to must be positive, got {rank}")
    if not adapter:
        raise AdapterError("the adapter has no target, so there is nothing to merge; make one from a memory")
    cut, error = adapter.truncate(rank) if rank is not None and rank < adapter.rank else (adapter, 0.0)
    exact = copy.deepcopy(base.model).float()  # pyright: ignore[reportArgumentType,reportCallIssue]
    merged = merge(exact, cut).to(DTYPES[dtype])  # pyright: ignore[reportArgumentType]
    save_base_model(replace(base, model=merged), folder)
    num_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    return MergedExport(Path(folder), cut.rank, dtype, error, num_bytes)
