"""Loads models and memories and reads documents into memories, for the commands; torch is imported only here.

`load_model`, `load_base` and `load_memory` are the seams that tests replace.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from generative_adapter.cli.console import bar_progress, waiting
from generative_adapter.config import require_memory_dtype
from generative_adapter.documents import Document
from generative_adapter.errors import ConfigError, DataError

if TYPE_CHECKING:
    from generative_adapter.base_model.loading import BaseModel
    from generative_adapter.contextualizer import GenerativeAdapter
    from generative_adapter.generator.memory import ContextMemory


def load_model(generator: str | None, base_model: str | None, device: str, dtype: str) -> GenerativeAdapter:
    """The base model with its generator."""
    from generative_adapter.contextualizer import GenerativeAdapter

    with waiting("Loading the model ..."):
        return GenerativeAdapter.from_pretrained(generator, base_model=base_model, device=device, dtype=dtype)


def load_base(generator: str | None, base_model: str | None, device: str, dtype: str) -> BaseModel:
    """The base model alone: that of a generator, unless one is named."""
    from generative_adapter.base_model.loading import load_base_model
    from generative_adapter.checkpoint import find_generator, read_generator_info

    if base_model is None and generator is not None:
        base_model = read_generator_info(find_generator(generator))["training"].get("recipe", {}).get("base_model")
    return load_base_model(base_model, device=device, dtype=dtype)


def load_memory(path: str | Path) -> ContextMemory:
    """The memory in a file."""
    from generative_adapter.generator.memory import ContextMemory

    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such memory; make it with `genadapter contextualize FILE -o {path}`")
    return ContextMemory.load(path)


def memory_dtype(chosen: str | None, previous: Path | None) -> str | None:
    """The form to write a memory in: the chosen one, else that of the memory gone on from; None: its kind's default.

    Raises:
        ConfigError: there is no such form.
        CheckpointError: the previous memory can't be read.
    """
    if chosen is not None:
        require_memory_dtype(chosen)
        return chosen
    if previous is None or not previous.is_file():
        return None
    from generative_adapter.generator.memory_file import stored_dtype

    return stored_dtype(previous)


def read_into_memory(
    model: GenerativeAdapter,
    documents: Sequence[Document],
    memory: ContextMemory | None = None,
    *,
    stream: bool = False,
) -> ContextMemory:
    """The memory with the documents read into it.

    Args:
        model: reads the documents.
        documents: at least one when there is no memory.
        memory: what was read before.
        stream: read each document as the continuation of what came before, instead of separately.
    """
    for document in documents:
        with bar_progress(f"Reading {document.name}") as progress:
            previous = memory if stream else None
            read = model.contextualize(document.text, previous, name=document.name, progress=progress)
        memory = read if stream or memory is None else memory + read
    if memory is None:
        raise ConfigError("no document and no memory was given; give a document to read")
    return memory


class Stopwatch:
    """Seconds spent in named phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 4)


def check_output_path(path: Path) -> None:
    """Refuses a path that can't be written, before the work that is to be written there is done.

    Raises:
        DataError: when the path is a folder or its folder is missing.
    """
    if path.is_dir():
        raise DataError(f"{path}: this is a folder; give a file name to write to")
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist; make it first")
