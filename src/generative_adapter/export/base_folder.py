"""A base model as a folder of safetensors with its tokenizer, for tools that can't read what it came from.

The embedded base model comes from a GGUF file, which most engines don't take. Leaves out: adapters (`peft`).
"""

from __future__ import annotations

import copy
from pathlib import Path

from generative_adapter.base_model.dequantise import quiet_transformers
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import ConfigError
from generative_adapter.export.folders import new_folder
from generative_adapter.export.peft import DTYPES


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
